"""The records that stages hand to each other: what is on disk, as frozen dataclasses without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Objective = Literal["epsilon", "v_prediction", "flow_matching"]  # what a base predicts
BASE = "base"  # the arm name of pictures made without any adapter
REAL = "real"  # the arm name, in scores, of the training pictures themselves: the ceiling
BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no detectable difference"
FEWEST_RUNS = 3  # training runs per arm; below, nothing is claimed about captions, only about files
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
    centering: tuple[float, float] = (0.5, 0.5)  # where in the source it was cut, as images.fit has it
    mask: Path | None = None  # of the prepared picture: white = learn; kept out of every loss, asked for or not


@dataclass(frozen=True)
class Caption:
    """One arm's words for one example."""

    example_id: str
    text: str
    captioner: str  # "blip", "sidecar", ...


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture with the captions that a captioner learns from, or is judged by."""

    id: str
    image: Path
    references: list[str]
    sha256: str  # of the picture file's bytes
    split: str  # "train", "validation" or "test"


@dataclass(frozen=True)
class CaptionDifference:
    """One caption metric, the tuned captioner against its base, on the same test pictures with the same decode settings."""

    metric: str
    base: float  # of all captions together, as the literature gives it
    tuned: float
    difference: float  # mean over pictures of tuned - base, each picture's captions scored by themselves
    low: float
    high: float
    pictures: int
    p_adjusted: float  # Holm's, over all metrics but the primary one
    primary: bool
    verdict: str  # BETTER, WORSE (tuned against base) or NO_DIFFERENCE
    sentence: str


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
    of: str = ""  # the example whose caption is the prompt: a training picture asked back; "" for the recipe's prompts

    @property
    def item(self) -> str:
        """What pairs samples across arms: the same prompt (or the same example's caption) and sampling seed."""
        return f"{self.of}-{self.seed}" if self.of else f"{self.prompt_index:03d}-{self.seed}"


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
    epoch: int = 0  # above 0: a picture of the training's progress; arms are compared by their finished adapters


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
    difference: float
    low: float
    high: float
    pairs: int  # scores that were paired
    prompts: int  # clusters: prompts, or training pictures where those are what is judged
    training_runs: int
    primary: bool  # the study's declared metric; all others are secondary
    p_value: float
    p_adjusted: float  # Holm's, over the secondary comparisons; the primary metric's p as it is
    verdict: str  # BETTER, WORSE (first against second) or NO_DIFFERENCE
    minimal_detectable_difference: float  # what this design would have found in 80 % of repetitions
    sentence: str

    @property
    def better(self) -> str | None:
        """The better arm's name, or None when no difference can be told."""
        return {BETTER: self.first, WORSE: self.second}.get(self.verdict)


@dataclass(frozen=True)
class CrossLoss:
    """The denoising loss of one adapter on one arm's caption of one picture, at fixed timesteps and noise."""

    arm: str  # whose adapter; BASE for none
    training_seed: int
    captions: str  # the arm whose caption was read
    example_id: str
    loss: float
    held_out: bool  # whether no adapter was trained on the picture


@dataclass(frozen=True)
class Stability:
    """How much one arm's primary scores vary: over sampling seeds within a prompt, and over training seeds."""

    arm: str
    metric: str
    seed_sd: float | None  # pooled standard deviation within prompt and training run; None with one sampling seed
    retrain_sd: float | None  # standard deviation of the training runs' means; None with one training run


@dataclass(frozen=True)
class EpochChoice:
    """Which epoch of an arm to take, by a declared rule on the pictures of its training's progress."""

    arm: str
    metric: str
    means: tuple[tuple[int, float], ...]  # (epoch, mean score)
    recommended: int
    rule: str


@dataclass(frozen=True)
class Failure:
    """A training run that did not end; the study goes on without it."""

    arm: str
    training_seed: int
    reason: str


@dataclass(frozen=True)
class Costs:
    """What a stage took: wall seconds and peak resident memory of the process so far, in MiB."""

    seconds: float
    peak_mib: float
    facts: dict[str, float] = field(default_factory=dict)
