"""The LoRA files that a training keeps on its way: of epochs, of steps, and of the lowest held-out loss."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from captune.train.loop import State, best_epoch, stops

BEST = "best.safetensors"
RULE = "lowest held-out denoising loss"


def of_epoch(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:03d}.safetensors"


def of_step(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.safetensors"


def drop_oldest(folder: Path, keep_last: int | None, steps_per_epoch: int) -> None:
    """Leave only the newest of the files of epochs and steps, by the step that they were made at."""
    found = []
    for path in folder.glob("*.safetensors"):
        match = re.fullmatch(r"(epoch|step)-(\d+)", path.stem)
        if match:
            found.append((int(match[2]) * (steps_per_epoch if match[1] == "epoch" else 1), path))
    for _, path in sorted(found)[: -keep_last if keep_last else 0]:
        path.unlink(missing_ok=True)


def facts(state: State, stop_after: int | None, steps_per_epoch: int, total_steps: int) -> dict[str, Any]:
    """What the manifest says of the held-out loss: the recommended epoch and why, and where and why training stopped."""
    if not state.held_out:
        return {}
    best = best_epoch(state.held_out)
    told: dict[str, Any] = {
        "held_out_losses": state.held_out,
        "recommended": {
            "rule": RULE,
            "file": BEST,
            "epoch": best,
            "step": min(best * steps_per_epoch, total_steps),
            "loss": state.held_out[best - 1],
        },
    }
    if stops(state.held_out, stop_after) and state.step < total_steps:
        reason = f"the held-out loss has not improved for {stop_after} epochs (train.stop_after)"
        told["stopped"] = {"epoch": state.epoch, "step": state.step, "of": total_steps, "reason": reason}
    return told
