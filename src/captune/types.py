"""The records that stages hand to each other: what is on disk, as frozen dataclasses without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

BASE = "base"  # the arm name of pictures made without any adapter
REAL = "real"  # the arm name, in scores, of the training pictures themselves: the ceiling
FEWEST_PROMPTS = 6  # below, no difference is claimed: five prompts all agree by chance in 2 of 32 cases, more than 5 %


@dataclass(frozen=True)
class Example:
    """One prepared picture. `id` is its name within the data set (its relative path without extension)."""

    id: str
    image: Path  # the prepared PNG, RGB, exactly `width` x `height`
    source: Path  # the user's own file, never written to
    width: int
    height: int
    source_width: int
    source_height: int
    repeats: int
    sha256: str  # of the prepared PNG's bytes
    weight: float = 1.0  # its share of the loss; below 1 for regularization images


@dataclass(frozen=True)
class Caption:
    """One arm's words for one example."""

    example_id: str
    text: str
    captioner: str  # "blip", "sidecar", ...


@dataclass(frozen=True)
class Adapter:
    """A trained LoRA on disk, in the project's own spelling (peft names, float32, metadata in the header)."""

    arm: str
    path: Path
    family: str
    rank: int
    alpha: float
    training_seed: int
    epoch: int
    step: int
    sha256: str


@dataclass(frozen=True)
class Sample:
    """One generated picture; `arm` is "base" for pictures made without an adapter."""

    arm: str
    prompt: str
    prompt_index: int
    seed: int
    path: Path
    training_seed: int = 0
    epoch: int = 0  # 0: the finished adapter (or the base model); otherwise a picture of the training's progress
    seconds: float = 0.0

    @property
    def item(self) -> str:
        """What pairs samples across arms: the same prompt and sampling seed."""
        return f"{self.prompt_index:03d}-{self.seed}"


@dataclass(frozen=True)
class Score:
    """One metric's judgement of one item; `encoder` names the model that judged."""

    metric: str
    arm: str
    item: str
    value: float
    encoder: str
    prompt_index: int = -1
    training_seed: int = 0


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval, over `n` items in `clusters` prompts."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int


@dataclass(frozen=True)
class Comparison:
    """One metric, two arms: the paired difference first - second, and what may be said about it in plain words."""

    metric: str
    first: str
    second: str
    difference: Interval
    better: str | None  # the better arm's name, or None when no difference can be told
    sentence: str


@dataclass(frozen=True)
class Costs:
    """What a stage took: wall seconds and peak resident memory of the process so far, in MiB."""

    seconds: float
    peak_mib: float
    facts: dict[str, float] = field(default_factory=dict)
