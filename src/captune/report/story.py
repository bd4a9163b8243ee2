"""What the report tells: everything of a study, as the other stages left it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captune.metrics import MetricFacts
from captune.metrics.captions import Scored
from captune.recipe import Recipe
from captune.tokens import Length
from captune.types import (
    Adapter,
    Caption,
    Comparison,
    EpochChoice,
    Example,
    Failure,
    Interval,
    Sample,
    Score,
    Stability,
)

Losses = Sequence[Mapping[str, Any]]  # rows with step and loss


@dataclass(frozen=True)
class Story:
    """A whole study. What is missing (no base pictures, no scores, no exports) is left out of the page."""

    recipe: Recipe
    run: Path
    """The run folder; paths on the page are relative to it."""
    examples: Sequence[Example]
    """The training pictures."""
    captions: Mapping[str, Sequence[Caption]]
    """By arm."""
    samples: Sequence[Sample]
    """Of all arms, training seeds and the base; of the training's progress (epoch > 0), and training pictures asked
    back by their own captions (`of`)."""
    held_out: Sequence[Example] = ()
    """Pictures that no arm was trained on."""
    scores: Sequence[Score] = ()
    intervals: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    """By arm (base and real too), then metric."""
    comparisons: Sequence[Comparison] = ()
    metrics: Mapping[str, MetricFacts] = field(default_factory=dict)
    """By name, as evaluate's manifest keeps them."""
    losses: Mapping[str, Mapping[int, Losses]] = field(default_factory=dict)
    """By arm and training seed."""
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Manifests by the stage's folder within the run: prepare, base/sample, arms/human/caption,
    arms/human/seed-0/train, ..."""
    adapters: Mapping[str, Sequence[Adapter]] = field(default_factory=dict)
    """By arm: one per training that ended."""
    exports: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """By arm."""
    tokens: Mapping[str, Mapping[str, Length]] = field(default_factory=dict)
    """By arm and example id: every caption's length in the base's own tokens."""
    caption_scores: Mapping[str, Scored] = field(default_factory=dict)
    """By arm: its captions scored against those of study.caption_references."""
    matrix: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    """Denoising loss by whose LoRA ("base" for none), then whose captions; lower is better."""
    matrix_held_out: bool = False
    """Whether the matrix was measured on held-out pictures, or on the training pictures themselves."""
    stability: Sequence[Stability] = ()
    epochs: Sequence[EpochChoice] = ()
    failures: Sequence[Failure] = ()
    repeated: Mapping[str, bool] = field(default_factory=dict)
    """What was compared byte by byte in a repeated run, and whether it was equal."""
    known_prompts: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """Sampling prompts, by index, that stand in these arms' training captions."""
    prompt_tokens: Sequence[int] = ()
    """Tokens of every sampling prompt."""
    command: str = ""
    """What to type to repeat the run."""

    @property
    def arms(self) -> list[str]:
        """The arms' names in the recipe's order."""
        return [arm.name for arm in self.recipe.arm]

    @property
    def trainings(self) -> int:
        """The fewest trainings that any arm was scored with, else that ended: what a claim about the arms rests on."""
        seeds: dict[str, set[int]] = {}
        for score in self.scores:
            if score.arm in self.arms:
                seeds.setdefault(score.arm, set()).add(score.training_seed)
        counts = [len(found) for found in seeds.values()] or [len(found) for found in self.adapters.values()]
        return min(counts, default=0)
