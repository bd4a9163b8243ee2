"""What the report tells: everything of a run, as the other stages left it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captune.metrics import MetricFacts
from captune.recipe import Recipe
from captune.types import Adapter, Caption, Comparison, Example, Interval, Sample, Score


@dataclass(frozen=True)
class Story:
    """A whole run. What is missing (no base pictures, no scores, no exports) is left out of the page."""

    recipe: Recipe
    run: Path
    """The run folder; paths on the page are relative to it."""
    examples: Sequence[Example]
    captions: Mapping[str, Sequence[Caption]]
    """By arm."""
    samples: Sequence[Sample]
    """Of all arms and the base, pictures of the training's progress (epoch > 0) too."""
    scores: Sequence[Score] = ()
    intervals: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    """By arm, then metric."""
    comparisons: Sequence[Comparison] = ()
    metrics: Mapping[str, MetricFacts] = field(default_factory=dict)
    """By name, as evaluate's manifest keeps them."""
    losses: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """By arm: rows with step and loss."""
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Manifests by the stage's folder within the run: prepare, base/sample, arms/human/train, ..."""
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    """By arm."""
    exports: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """By arm."""
    tokens: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)
    """By arm and example id: tokens of the caption, and how many the model reads."""

    @property
    def arms(self) -> list[str]:
        """The arms' names in the recipe's order."""
        return [arm.name for arm in self.recipe.arm]
