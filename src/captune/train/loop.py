"""The one training loop: steps, checkpoints, exact resume, moving average, early stop; alone or in a crew."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captune.errors import DataError, TrainingError
from captune.progress import Bar, Progress
from captune.runs import atomic
from captune.train import optimizers
from captune.train.batches import Batch, share_of
from captune.train.crew import Crew
from captune.train.loss_rows import LossRows, Reading

LossFunction = Callable[[Batch], Tensor]  # -> per-picture losses, weighted, (batch,)
AtState = Callable[["State"], None]


@dataclass(frozen=True)
class Loop:
    """What the loop needs to know of a run."""

    title: str
    folder: Path
    epochs: int
    total_steps: int
    checkpoint_every: int
    max_grad_norm: float
    ema: float = 0.0
    save_every: int | None = None  # steps
    stop_after: int | None = None  # epochs
    section: str = "train"  # where the recipe has its learning rate, for what is said when the loss runs off
    precision: str = "base.precision"


@dataclass(frozen=True)
class State:
    """Where a run stands: `step` optimizer steps are done, `epoch` epochs have been closed."""

    step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    pictures: int = 0
    held_out: list[float] = field(default_factory=list)  # the held-out loss of every closed epoch, where it is measured


@dataclass(frozen=True)
class Watch:
    """What tells whether training still helps: a loss on pictures that are not trained on, and what that is made of."""

    loss: Callable[[], float]
    made_of: Any = None


LONG = 10.0  # seconds of training that a kill may cost; epochs that are shorter are not all saved


def best_epoch(held_out: Sequence[float]) -> int:
    """The epoch (from 1) with the lowest held-out loss, the first of equals; a loss that is not a number is no candidate."""
    return min(range(len(held_out)), key=lambda i: held_out[i] if math.isfinite(held_out[i]) else math.inf) + 1


def stops(held_out: Sequence[float], patience: int | None) -> bool:
    """Whether the held-out loss has not improved for `patience` epochs."""
    return bool(patience and held_out) and len(held_out) - best_epoch(held_out) >= (patience or 0)


def ema_decay(decay: float, updates: int) -> float:
    """The decay after so many updates: min(decay, (1 + n) / (10 + n)), as in TensorFlow's and diffusers' averages.

    So a short run's average is not held back by the weights that it began with.
    """
    return min(decay, (1 + updates) / (10 + updates))


@contextmanager
def deterministic() -> Iterator[None]:
    """Ask torch for its deterministic kernels for a while; a kernel that has none warns and runs all the same.

    New memory is not filled, which torch does then too and which takes a tenth of a small model's step: no operation here
    reads what it has not written.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling: Any = torch.utils.deterministic
    filled = filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        filling.fill_uninitialized_memory = filled


def fit(
    loop: Loop,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    steps_of_epoch: Callable[[int], Sequence[Sequence[Batch]]],
    losses_of: LossFunction,
    set_rate: Callable[[int], float],
    name_of: Callable[[int], str],
    progress: Progress,
    after_epoch: AtState,
    *,
    keep: AtState | None = None,
    saved: Callable[[], None] = lambda: None,
    held_out_loss: Callable[[], float] | None = None,
    crew: Crew | None = None,
) -> State:
    """Train to `loop.total_steps`, from the newest checkpoint if there is one; the parameters then hold the result.

    The loss of a step is the mean over all its pictures, accumulated batches and other processes' shares included, so a
    short batch weighs what its pictures weigh. `keep` runs every `loop.save_every` steps and `after_epoch` when an epoch is
    done, both while the parameters hold what the result would be (their moving average with `loop.ema`), both in the
    leading process alone, and both again where a run is killed during them; `saved` after each checkpoint. With
    `held_out_loss`, measured before `after_epoch`, the run stops when it has not improved for `loop.stop_after` epochs.
    """
    crew = crew or Crew()
    run = _Run(loop, parameters, optimizer, name_of, crew, saved)
    with deterministic(), progress.track(loop.title, loop.total_steps) as run.bar, run.rows:
        run.bar.move_to(run.step)
        while run.epoch < loop.epochs and not stops(run.held_out, loop.stop_after):
            steps = steps_of_epoch(run.epoch)
            first = run.step - run.epoch * len(steps_of_epoch(0))
            for batches in steps[first : first + loop.total_steps - run.step]:
                run.do_step(batches, losses_of, set_rate(run.step))
                if loop.save_every and run.step % loop.save_every == 0:
                    run.settle()
                    if keep and crew.leads:
                        with run.result():
                            keep(run.state())
                if run.step % loop.checkpoint_every == 0:
                    run.save()
            run.save_in_time()  # drawing and measuring may take long, too: a kill meanwhile costs that alone
            with run.result():
                if held_out_loss:
                    run.held_out.append(crew.total(held_out_loss() if crew.leads else 0.0))
                run.epoch += 1
                if crew.leads:
                    after_epoch(run.state())
            if held_out_loss:
                run.save()
            run.save_in_time()
        run.save()
        run.take_result()
    return run.state()


class _Run:
    """A training on its way. The loss of a step is read while the next one is computed, so that a GPU never waits."""

    def __init__(
        self,
        loop: Loop,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        name_of: Callable[[int], str],
        crew: Crew,
        told_saved: Callable[[], None],
    ) -> None:
        self.loop, self.parameters, self.optimizer, self.name_of, self.crew = loop, parameters, optimizer, name_of, crew
        self._told_saved = told_saved
        self.bar: Bar
        self._weights = list(parameters.values())
        self._path = loop.folder / "checkpoint.pt"
        content = _read_checkpoint(self._path) if crew.leads else {}
        crew.total(0.0)  # all are ready
        state = self._resume(crew.share(content))
        self.step, self.epoch, self.held_out, self._pictures = state.step, state.epoch, state.held_out, state.pictures
        self.rows = LossRows(loop.folder / "losses.jsonl", state.step, written=crew.leads)
        self._saved = (state.step, state.epoch) if state.step else None
        self._pending: _Pending | None = None
        self._with_gradient: list[bool] | None = None
        self._recent, self._done_here = math.nan, 0
        self._spent, self._began = state.seconds, time.perf_counter()
        self._saved_at = self._began

    def state(self) -> State:
        seconds = self._spent + time.perf_counter() - self._began
        return State(self.step, self.epoch, seconds, self._pictures, list(self.held_out))

    def do_step(self, batches: Sequence[Batch], losses_of: LossFunction, rate: float) -> None:
        """One optimizer step on the mean loss of the batches' pictures, of which this process computes its share."""
        count = sum(len(batch) for batch in batches)
        total: Tensor | None = None
        for batch in share_of(batches, self.crew.rank, self.crew.size):
            loss = losses_of(batch).sum() / count
            loss.backward()  # type: ignore[no-untyped-call]
            total = loss.detach() if total is None else total + loss.detach()
        self._settle_with_gradients()
        if self.loop.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self._weights, self.loop.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            decay = ema_decay(self.loop.ema, self.step)
            torch._foreach_lerp_(self._average, [w.detach() for w in self._weights], 1 - decay)
        self.step += 1
        self._pictures += count
        self._done_here += count
        self._pending = _Pending(self.step, self.epoch + 1, rate, batches, Reading(total))

    def _settle_with_gradients(self) -> None:
        """Settle the step before, and add up all processes' gradients of this one."""
        settled = self._settle_loss()
        if self.crew.size > 1:
            if self._with_gradient is None:  # a share may be empty, the leader's never is
                self._with_gradient = self.crew.share([w.grad is not None for w in self._weights])
            reached = [w for w, has in zip(self._weights, self._with_gradient, strict=True) if has]
            for weight in reached:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            self.crew.add([weight.grad for weight in reached if weight.grad is not None])
        self._tell(settled)

    def settle(self) -> None:
        """Read the loss of the step before, if that is still to do: afterwards all steps are known to be sound."""
        if self._pending is not None:
            self._tell(self._settle_loss())

    def _settle_loss(self) -> tuple[_Pending, float] | None:
        pending, self._pending = self._pending, None
        total = self.crew.total(pending.loss.value() if pending else 0.0)
        if pending is None:
            return None
        if not math.isfinite(total):
            raise self._unsound(f"the loss became {total}", pending.step, pending.batches)
        self._last = pending.batches
        return pending, total

    def _tell(self, settled: tuple[_Pending, float] | None) -> None:
        if settled is None:
            return
        pending, total = settled
        row = {"step": pending.step, "epoch": pending.epoch, "loss": total, "learning_rate": pending.rate}
        self.rows.write(row)
        self._recent = total if math.isnan(self._recent) else 0.95 * self._recent + 0.05 * total
        speed = self._done_here / (time.perf_counter() - self._began)
        self.bar.advance(1, f"loss {self._recent:.4f} · {speed:.1f} pictures/s")

    def _unsound(self, what: str, step: int, batches: Sequence[Batch]) -> TrainingError:
        names = ", ".join(sorted({self.name_of(visit.index) for batch in batches for visit in batch}))
        kept = f"step {self._saved[0]} ({self._path})" if self._saved else "none yet"
        return TrainingError(
            f"{self.loop.title}: {what} at step {step} (pictures: {names}); last good checkpoint: {kept}; "
            f"try a lower {self.loop.section}.learning_rate or {self.loop.precision} fp32"
        )

    @contextmanager
    def result(self) -> Iterator[None]:
        """For a while the parameters hold what the result would be; afterwards they are as before, bit for bit."""
        with optimizers.result(self.optimizer):
            if self._average is None:
                yield
                return
            before = [weight.detach().clone() for weight in self._weights]
            self._set(self._average)
            try:
                yield
            finally:
                self._set(before)

    def take_result(self) -> None:
        """Set the parameters to the result: the moving average, or what a schedule-free optimizer evaluates at."""
        if self._average is not None:
            self._set(self._average)
        elif callable(evaluate := getattr(self.optimizer, "eval", None)):
            evaluate()

    def _set(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(self._weights, values, strict=True):
                weight.copy_(value)

    def save(self) -> None:
        """The whole state, atomically: killed at any moment, either this checkpoint is there or the one before."""
        self.settle()
        if self._saved == (self.step, self.epoch):
            return
        if self.step and not all(bool(torch.isfinite(weight).all()) for weight in self._weights):
            raise self._unsound("the weights became NaN or infinite", self.step, self._last)
        if self.crew.leads:
            content: dict[str, Any] = {
                "weights": {name: p.detach().cpu() for name, p in self.parameters.items()},
                "optimizer": self.optimizer.state_dict(),
                "average": None if self._average is None else [w.cpu() for w in self._average],
                **vars(self.state()),
            }
            with atomic(self._path) as part, open(part, "wb") as file:
                torch.save(content, file)  # a file that is full says so; given a path, torch does not
            self._told_saved()
        self._saved = self.step, self.epoch
        self._saved_at = time.perf_counter()

    def save_in_time(self) -> None:
        """Save where the last checkpoint is long ago by the leader's clock."""
        late = self.crew.leads and time.perf_counter() - self._saved_at > LONG
        if self.crew.total(float(late)):
            self.save()

    def _resume(self, content: dict[str, Any]) -> State:
        """The state of a checkpoint, set; without one the start."""
        self._average = [w.detach().clone() for w in self._weights] if self.loop.ema else None
        if not content:
            return State()
        try:
            self._set([content["weights"][name].to(p.device) for name, p in self.parameters.items()])
            self.optimizer.load_state_dict(content["optimizer"])
            if self._average is not None:
                self._average = [w.to(p.device) for w, p in zip(content["average"], self._weights, strict=True)]
            return State(**{name: content[name] for name in ("step", "epoch", "seconds", "pictures", "held_out")})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _unreadable(self._path, error) from error


@dataclass(frozen=True)
class _Pending:
    """A step whose loss is still to be read."""

    step: int
    epoch: int
    rate: float
    batches: Sequence[Batch]
    loss: Reading


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's content, or {} where there is none; what a killed run was just writing is removed."""
    for part in path.parent.glob(".*.part"):
        part.unlink(missing_ok=True)
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise _unreadable(path, error) from error
    return content


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"the checkpoint {path} cannot be read ({reason}); delete it to train from the start")
