"""How long a training will take, by a few real steps of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from captune import pipeline
from captune.progress import Bar, Progress
from captune.recipe import ArmSection, Recipe
from captune.runs import RunFolder

FEWEST = 3  # one to warm up, two to measure between


def measure(
    recipe: Recipe,
    planned: dict[str, Any],
    steps: int,
    progress: Progress,
    *,
    processes: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Seconds of one step, and of all trainings of the plan, by `steps` real steps that leave nothing behind.

    Pictures are prepared and encoded as in a run. Captions are not written: a text of any length takes as long. The first
    step, in which libraries warm up, is left out. Drawing, judging and what comes before the first step are not in it.
    """
    steps = max(steps, FEWEST)
    every = sum(arm.get("total_steps", planned["total_steps"]) for arm in planned["arms"])
    trainings = every * len(recipe.training_seeds)
    watch = _Watch(progress, clock)
    with TemporaryDirectory(prefix="captune-measure-") as place:
        short = _shortened(recipe, steps)
        pipeline.run(short, RunFolder(Path(place) / "run"), watch, upto="train", processes=processes)
    each = (watch.times[-1] - watch.times[0]) / (len(watch.times) - 1)
    return {
        "processes": processes,
        "measured_steps": len(watch.times) - 1,
        "seconds_per_step": round(each, 4),
        "steps_of_all_trainings": trainings,
        "training_seconds": round(each * trainings, 1),
    }


def _shortened(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with one training of so many steps, which is not interrupted by anything."""
    train = recipe.train.model_copy(
        update={
            **{"steps": steps, "epochs": None, "stop_after": None},
            **{"save_every_epochs": None, "save_every_steps": None, "checkpoint_every_steps": steps},
        }
    )
    return recipe.model_copy(
        update={
            "dataset": recipe.dataset.model_copy(update={"trigger_word": recipe.dataset.trigger_word or "a"}),
            "train": train,
            "arm": [ArmSection(name="measured", trigger_only=True)],
            "study": recipe.study.model_copy(update={"training_seeds": [], "repeat": False}),
            "regularization": recipe.regularization.model_copy(update={"count": 0}),
            "sample": recipe.sample.model_copy(update={"every_epochs": None}),
        }
    )


@dataclass
class _Watch:
    """Hands progress on, and notes when each step of the training was done."""

    progress: Progress
    clock: Callable[[], float]
    times: list[float] = field(default_factory=list)

    @contextmanager
    def track(self, title: str, total: int) -> Iterator[Bar]:
        with self.progress.track(title, total) as bar:
            yield _Noting(bar, self) if title.startswith("train") else bar

    def say(self, line: str) -> None:
        """What is said of the pictures stands in the plan already."""


@dataclass
class _Noting:
    bar: Bar
    watch: _Watch

    def advance(self, count: int = 1, note: str = "") -> None:
        self.watch.times.append(self.watch.clock())
        self.bar.advance(count, note)

    def move_to(self, done: int) -> None:
        self.bar.move_to(done)
