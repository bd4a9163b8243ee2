"""The one training loop: steps, checkpoints, exact resume. The only file that knows accelerate."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from captune.errors import DataError, TrainingError
from captune.progress import Progress
from captune.runs import atomic
from captune.train.batches import Batch

LossFunction = Callable[[Batch], Tensor]  # -> per-picture losses, weighted, (batch,)


@dataclass(frozen=True)
class Loop:
    """What the loop needs to know of a run."""

    title: str
    folder: Path
    epochs: int
    total_steps: int
    checkpoint_every: int
    max_grad_norm: float
    cpu: bool


@dataclass(frozen=True)
class State:
    """Where a run stands: `step` optimizer steps are done, `epoch` epochs have been closed."""

    step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    pictures: int = 0


@contextmanager
def deterministic() -> Iterator[None]:
    """Ask torch for its deterministic kernels for a while; a kernel that has none warns and runs all the same."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def fit(
    loop: Loop,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    steps_of_epoch: Callable[[int], Sequence[Sequence[Batch]]],
    losses_of: LossFunction,
    set_rate: Callable[[int], float],
    name_of: Callable[[int], str],
    progress: Progress,
    after_epoch: Callable[[int, int], None],
) -> State:
    """Train to `loop.total_steps`, from the newest checkpoint if there is one.

    The loss of a step is the mean over all its pictures, accumulated batches included, so a short batch weighs what its
    pictures weigh. `after_epoch(epoch, step)` runs when an epoch is closed (again, if a run is killed during it).
    """
    accelerator = Accelerator(mixed_precision="no", cpu=loop.cpu)  # number formats are the family's own affair
    state = _resume(loop, parameters, optimizer)
    rows = loop.folder / "losses.jsonl"
    _keep_rows(rows, state.step)
    began, spent, pictures = time.perf_counter(), state.seconds, state.pictures
    step, epoch, recent = state.step, state.epoch, math.nan
    done_here = 0

    def snapshot() -> State:
        return State(step, epoch, spent + time.perf_counter() - began, pictures)

    with deterministic(), progress.track(loop.title, loop.total_steps) as bar, open(rows, "a") as log:
        bar.move_to(step)
        while epoch < loop.epochs and step < loop.total_steps:
            planned = steps_of_epoch(epoch)
            first = step - _steps_before(steps_of_epoch, epoch)
            for batches in planned[first:]:
                if step >= loop.total_steps:
                    break
                rate = set_rate(step)
                count = sum(len(batch) for batch in batches)
                total = 0.0
                for batch in batches:
                    loss = losses_of(batch).sum() / count
                    accelerator.backward(loss)
                    total += loss.item()
                if not math.isfinite(total):
                    names = ", ".join(sorted({name_of(v.index) for b in batches for v in b}))
                    kept = f"step {_saved_step(loop)}" if _path(loop).exists() else "none yet"
                    raise TrainingError(
                        f"{loop.title}: the loss became {total} at step {step + 1} (pictures: {names}); "
                        f"last good checkpoint: {kept}; try a lower train.learning_rate or base.precision fp32"
                    )
                if loop.max_grad_norm:
                    accelerator.clip_grad_norm_(list(parameters.values()), loop.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step, done_here, pictures = step + 1, done_here + count, pictures + count
                recent = total if math.isnan(recent) else 0.95 * recent + 0.05 * total
                log.write(json.dumps({"step": step, "epoch": epoch + 1, "loss": total, "learning_rate": rate}) + "\n")
                speed = done_here / (time.perf_counter() - began)
                bar.advance(1, f"loss {recent:.4f} · {speed:.1f} pictures/s")
                if step % loop.checkpoint_every == 0:
                    log.flush()
                    _save(loop, parameters, optimizer, snapshot())
            epoch += 1
            log.flush()
            _save(loop, parameters, optimizer, snapshot())
            after_epoch(epoch, step)
        log.flush()
    return snapshot()


def _steps_before(steps_of_epoch: Callable[[int], Sequence[Sequence[Batch]]], epoch: int) -> int:
    """Steps of all epochs before `epoch`; every epoch has as many as the first."""
    return epoch * len(steps_of_epoch(0)) if epoch else 0


def _path(loop: Loop) -> Path:
    return loop.folder / "checkpoint.pt"


def _saved_step(loop: Loop) -> int:
    return int(torch.load(_path(loop), weights_only=True)["step"])


def _save(loop: Loop, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: State) -> None:
    """The whole state, atomically: killed at any moment, either this checkpoint is there or the one before."""
    weights = {name: p.detach().cpu() for name, p in parameters.items()}
    content: dict[str, Any] = {"weights": weights, "optimizer": optimizer.state_dict(), **vars(state)}
    with atomic(_path(loop)) as part:
        torch.save(content, part)


def _resume(loop: Loop, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> State:
    path = _path(loop)
    if not path.exists():
        return State()
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise DataError(f"the checkpoint {path} cannot be read ({error}); delete it to train from the start") from error
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(content["weights"][name].to(parameter.device))
    optimizer.load_state_dict(content["optimizer"])
    return State(content["step"], content["epoch"], content["seconds"], content["pictures"])


def _keep_rows(path: Path, step: int) -> None:
    """Drop the loss rows after the checkpoint: those steps are done again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break  # the kill came while this line was written
        if row["step"] <= step:
            kept.append(line)
    with atomic(path) as part:
        part.write_text("".join(line + "\n" for line in kept))
