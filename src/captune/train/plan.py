"""The arithmetic of a training run: exact steps, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from captune.errors import RecipeError
from captune.recipe import TUNE_EPOCHS, TUNE_STEPS, TuneSection

Size = tuple[int, int]


@dataclass(frozen=True)
class Steps:
    """How long a run is. A batch never mixes sizes, so every size may leave a short batch."""

    batches_per_epoch: int
    steps_per_epoch: int
    epochs: int
    total_steps: int
    arithmetic: str


def count_steps(
    visits: Mapping[Size, int], batch_size: int, accumulation: int, *, epochs: int | None, steps: int | None
) -> Steps:
    """Steps for `visits` (pictures x repeats) per size; give epochs or steps.

    steps per epoch = ceil(sum over sizes of ceil(visits / batch size) / accumulation), as in kohya's sd-scripts.
    """
    batches = sum(math.ceil(n / batch_size) for n in visits.values())
    per_epoch = math.ceil(batches / accumulation)
    if epochs is not None:
        total, rounds = per_epoch * epochs, epochs
    else:
        assert steps is not None
        total, rounds = steps, math.ceil(steps / per_epoch)
    parts = " + ".join(f"ceil({n} / {batch_size})" for n in visits.values())
    text = f"{parts} = {batches} batches"
    if accumulation > 1:
        text += f", ceil({batches} / {accumulation}) = {per_epoch} steps"
    text += (
        f" per epoch; {total} steps are {rounds} epochs"
        if epochs is None
        else f" per epoch; x {rounds} = {total} steps"
    )
    return Steps(batches, per_epoch, rounds, total, text)


def tuning_steps(section: TuneSection, pictures: int) -> Steps:
    """The steps of a captioner's tuning on so many pictures, each visited once an epoch."""

    def counted(epochs: int | None, steps: int | None) -> Steps:
        return count_steps(
            {(1, 1): pictures}, section.batch_size, section.gradient_accumulation, epochs=epochs, steps=steps
        )

    if section.epochs is not None or section.steps is not None:
        return counted(section.epochs, section.steps)
    length = counted(TUNE_EPOCHS, None)
    return length if length.total_steps >= TUNE_STEPS else counted(None, TUNE_STEPS)


def check_shares(pictures_per_step: int, processes: int) -> None:
    """Raise a RecipeError where some of the processes would have no picture of a step to compute."""
    if pictures_per_step < processes:
        raise RecipeError(
            f"train.batch_size x train.gradient_accumulation = {pictures_per_step} is fewer pictures a step than "
            f"{processes} processes: set train.batch_size = {processes} or more, or use fewer processes"
        )
