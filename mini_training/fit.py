"""The one training loop behind the miniature models: two one-thread processes, averaged gradients, EMA, resumable.

Small convolutions run slower on two threads than on one, so each core gets a process of its own. Draws are keyed by
(step, rank), so a run that was stopped and started again sees the same batches as one that was not.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

LossFunction = Callable[[int, np.random.Generator], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Fit:
    """What a training run is: how long, how fast it learns, and where it keeps its state."""

    name: str
    work: Path
    steps: int
    learning_rate: float
    processes: int = 2
    warmup: int = 100
    final: float = 0.02  # the learning rate's last value, as a share of the first
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    ema: float = 0.999
    save_every: int = 250
    log_every: int = 50
    slow: tuple[str, ...] = ()  # parameter names that begin so learn at half the rate
    seed: int = 0

    @property
    def checkpoint(self) -> Path:
        return self.work / f"{self.name}.ckpt.pt"

    @property
    def start(self) -> Path:
        """A checkpoint whose averaged weights are taken where they fit, if there is one."""
        return self.work / f"{self.name}.start.pt"


def rate(fit: Fit, step: int) -> float:
    """Learning rate factor: linear warm-up, then a cosine down to `fit.final`."""
    if step < fit.warmup:
        return (step + 1) / fit.warmup
    progress = min(1.0, (step - fit.warmup) / max(1, fit.steps - fit.warmup))
    return fit.final + (1 - fit.final) * 0.5 * (1 + math.cos(math.pi * progress))


def _average(parameters: list[nn.Parameter], world: int) -> None:
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= world
    offset = 0
    for p in parameters:
        p.grad = flat[offset : offset + p.numel()].view_as(p)
        offset += p.numel()


def _worker(rank: int, fit: Fit, build: Callable[[], tuple[nn.Module, Callable[[nn.Module], LossFunction]]]) -> None:
    torch.set_num_threads(1)
    if fit.processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{fit.work}/{fit.name}.rendezvous", rank=rank, world_size=fit.processes
        )
    torch.manual_seed(fit.seed)
    model, make_loss = build()
    loss_function = make_loss(model)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    slow = [p for n, p in named if n.startswith(fit.slow)] if fit.slow else []
    chosen = {id(p) for p in slow}
    groups = [{"params": [p for _, p in named if id(p) not in chosen], "factor": 1.0}]
    if slow:
        groups.append({"params": slow, "factor": 0.5})
    optimizer = torch.optim.AdamW(groups, lr=fit.learning_rate, betas=fit.betas, weight_decay=fit.weight_decay)
    parameters = [p for _, p in named]
    start = 0
    if not fit.checkpoint.exists() and fit.start.exists():  # a change of plan: other losses, the same model
        model.load_state_dict(averaged(fit.start), strict=False)
    average = {n: v.detach().clone() for n, v in model.state_dict().items()}
    if fit.checkpoint.exists():
        state = torch.load(fit.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, start = state["average"], state["step"]
    began, seen = time.time(), []
    for step in range(start, fit.steps):
        for group in optimizer.param_groups:
            group["lr"] = fit.learning_rate * rate(fit, step) * group["factor"]
        rng = np.random.default_rng((fit.seed, step, rank))
        torch.manual_seed(int(rng.integers(2**62)))
        loss, notes = loss_function(step, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if fit.processes > 1:
            _average(parameters, fit.processes)
        torch.nn.utils.clip_grad_norm_(parameters, fit.clip)
        optimizer.step()
        decay = min(fit.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for n, v in model.state_dict().items():
                if v.dtype.is_floating_point:
                    average[n].lerp_(v, 1 - decay)
                else:
                    average[n].copy_(v)
        seen.append({"loss": float(loss.detach()), **notes})
        last = step + 1 == fit.steps
        if rank == 0 and (last or (step + 1) % fit.log_every == 0):
            keys = seen[-1].keys()
            mean = {k: round(float(np.mean([s[k] for s in seen if k in s])), 4) for k in keys}
            seconds = (time.time() - began) / (step + 1 - start)
            line = {"step": step + 1, **mean, "s_per_step": round(seconds, 3)}
            line["minutes_left"] = round((fit.steps - step - 1) * seconds / 60, 1)
            with open(fit.work / f"{fit.name}.log", "a") as log:
                log.write(json.dumps(line) + "\n")
            seen = []
        if rank == 0 and (last or (step + 1) % fit.save_every == 0):
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "step": step + 1,
            }
            torch.save(state, f"{fit.checkpoint}.part")
            os.replace(f"{fit.checkpoint}.part", fit.checkpoint)
    if fit.processes > 1:
        dist.barrier()
        dist.destroy_process_group()


def run(fit: Fit, build: Callable[[], tuple[nn.Module, Callable[[nn.Module], LossFunction]]]) -> None:
    """Train to `fit.steps` (continuing from the checkpoint if there is one). `build` must be a module-level function."""
    fit.work.mkdir(parents=True, exist_ok=True)
    (fit.work / f"{fit.name}.rendezvous").unlink(missing_ok=True)
    if fit.processes == 1:
        _worker(0, fit, build)
    else:
        torch.multiprocessing.spawn(_worker, args=(fit, build), nprocs=fit.processes)


def averaged(fit_or_path: Fit | Path) -> dict[str, Tensor]:
    """The EMA weights of a run's newest checkpoint."""
    path = fit_or_path.checkpoint if isinstance(fit_or_path, Fit) else fit_or_path
    return torch.load(path, weights_only=True)["average"]
