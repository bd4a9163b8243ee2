"""Metrics: each judges one item at a time; statistics over items live in captune.evaluate.compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from captune import parts
from captune.errors import RecipeError
from captune.recipe import EvaluateSection

METRICS: dict[str, str] = {
    "clip_t": "captune.metrics.clip_t:ClipT",
    "clip_i": "captune.metrics.clip_i:ClipI",
    "clip_i_best": "captune.metrics.clip_i_best:ClipIBest",
    "dino": "captune.metrics.dino:Dino",
    "dino_best": "captune.metrics.dino_best:DinoBest",
    "memorization": "captune.metrics.memorization:Memorization",
    "diversity": "captune.metrics.diversity:Diversity",
    "leak_change": "captune.metrics.leak_change:LeakChange",
    "leak_subject": "captune.metrics.leak_subject:LeakSubject",
    "reproduction": "captune.metrics.reproduction:Reproduction",
    "oracle_subject": "captune.metrics.oracle_subject:OracleSubject",
    "oracle_leak": "captune.metrics.oracle_leak:OracleLeak",
    "oracle_background": "captune.metrics.oracle_background:OracleBackground",
    "oracle_prompt": "captune.metrics.oracle_prompt:OraclePrompt",
}
OF_MINI_SUBJECTS = ("oracle_subject", "oracle_leak")  # these must know which subject the trigger word calls
BY_DINO = ("dino", "dino_best")  # these need evaluate.dino_encoder, which the mini family has none of


@dataclass(frozen=True)
class Words:
    """How a metric's results are said: "human {better} than blip", "no detectable difference in {quality}"."""

    better: str
    quality: str
    share: bool = False  # a share of pictures, said in per cent and points
    over: str = "prompt"  # what is judged again and again: prompts, or training pictures


# Here and not in the metrics' modules: sentences are made long after the models are gone, without loading them.
WORDS: dict[str, Words] = {
    "clip_t": Words("follows the prompts better", "prompt following"),
    "clip_i": Words("draws the subject more like the training pictures", "likeness to the training pictures"),
    "clip_i_best": Words(
        "draws the subject more like the nearest training picture", "likeness to the nearest training picture"
    ),
    "dino": Words(
        "draws the subject more like the training pictures to DINO", "likeness to the training pictures by DINO"
    ),
    "dino_best": Words(
        "draws the subject more like the nearest training picture to DINO",
        "likeness to the nearest training picture by DINO",
    ),
    "memorization": Words("copies the training pictures less", "how closely the training pictures are copied"),
    "diversity": Words("draws more varied pictures of one prompt", "variety within a prompt"),
    "leak_change": Words("changes ordinary pictures less", "how much ordinary pictures change"),
    "leak_subject": Words(
        "lets less of the subject into ordinary pictures", "how much of the subject is in ordinary pictures"
    ),
    "reproduction": Words(
        "brings the training pictures back more closely by their captions",
        "how closely training pictures come back",
        over="picture",
    ),
    "denoising_loss": Words("expects the pictures better from its captions", "the denoising loss", over="picture"),
    "oracle_subject": Words("draws the subject more often", "how often the subject is drawn", share=True),
    "oracle_leak": Words(
        "lets the subject leak into ordinary pictures less often", "how often the subject leaks", share=True
    ),
    "oracle_background": Words(
        "draws the background asked for more often", "how often the background is right", share=True
    ),
    "oracle_prompt": Words("draws ordinary prompts as asked more often", "how ordinary prompts are drawn", share=True),
}


@dataclass(frozen=True)
class MetricFacts:
    """What the report says about a metric, kept in evaluate's manifest so that nothing is loaded to say it."""

    name: str
    title: str
    meaning: str
    higher_is_better: bool
    judges: str
    encoder: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """What a metric may look at: one picture, its prompt, and the pictures that it may be measured against."""

    image: Path
    prompt: str
    prompt_without_trigger: str  # the class word in the trigger word's place
    asks_for_subject: bool  # whether the trigger word stands in the prompt
    references: tuple[Path, ...]  # the prepared training pictures; never includes `image` itself
    base_image: Path | None = None  # the base's picture of the same prompt and seed; None for the base itself
    siblings: tuple[Path, ...] = ()  # the same adapter's pictures of the same prompt with other sampling seeds
    own_image: Path | None = None  # the training picture asked back, if the prompt is a training picture's caption


@dataclass(frozen=True)
class Context:
    """What all metrics of one evaluation share."""

    encoder: str  # the recipe's evaluate.encoder
    trigger_word: str
    batch_size: int
    device: str
    dino_encoder: str = ""  # the recipe's evaluate.dino_encoder; "" for none


class Metric(Protocol):
    """Judges pictures: `judges` says of which prompts. None scores are left out, the base's too: a metric that
    measures against the base has no floor, for its floor is 0 by definition."""

    name: str
    title: str  # a few words for tables
    meaning: str  # one sentence for the report: what it measures, its range, what is better
    higher_is_better: bool
    judges: str  # "subject" (prompts with the trigger word), "ordinary" (those without), "all" of these, or
    # "reproduction" (training pictures asked back by their captions)
    ceiling: bool  # whether the training pictures, each against the others, show what can be reached at best
    encoder: str  # the name of the model that judges, named beside every score
    warnings: list[str]  # what a reader of the scores must know, such as prompts that the encoder cut

    def score(self, items: Sequence[Item]) -> list[float | None]:
        """One value per item, None where the metric has nothing to say."""


def words(name: str) -> Words:
    """How results of the metric are said; a metric without words of its own is called by its name."""
    return WORDS.get(name, Words(f"scores better in {name}", name))


def facts_of(metric: Metric) -> MetricFacts:
    """The metric's facts, without the metric."""
    return MetricFacts(
        name=metric.name,
        title=metric.title,
        meaning=metric.meaning,
        higher_is_better=metric.higher_is_better,
        judges=metric.judges,
        encoder=metric.encoder,
        warnings=tuple(metric.warnings),
    )


def check(section: EvaluateSection, trigger_word: str | None = None) -> None:
    """Raise a RecipeError before anything is loaded: for an unknown metric, one that needs an encoder that the section
    does not name, or one that cannot know the trigger word (None: not looked at)."""
    for name in section.measured:
        if name not in METRICS:
            raise parts.unknown("metric", name, METRICS)
        if name in BY_DINO:
            dino_model(section.dino_encoder, name)
        if name in OF_MINI_SUBJECTS and trigger_word is not None:
            mini_subject(trigger_word, name)


def dino_model(dino_encoder: str, metric: str) -> str:
    """The DINOv2 model that the recipe names; a RecipeError where it names none."""
    if dino_encoder in ("", "mini"):
        raise RecipeError(
            f"evaluate.dino_encoder = {dino_encoder!r}: {metric} needs a DINOv2 model, and the mini family has none; "
            f"name a folder or a hub name such as facebook/dinov2-base, or leave {metric} out of evaluate.metrics"
        )
    return dino_encoder


def mini_subject(trigger_word: str, metric: str) -> str:
    """The mini world's subject behind a trigger word; a RecipeError where there is none."""
    from captune.mini.subjects import SUBJECTS

    for subject in SUBJECTS.values():
        if subject.trigger_word.lower() == trigger_word.strip().lower():
            return subject.name
    known = ", ".join(subject.trigger_word for subject in SUBJECTS.values())
    raise RecipeError(
        f"evaluate.metrics: {metric} only knows the mini world's subjects ({known}), and dataset.trigger_word is "
        f"{trigger_word!r}; leave {metric} out for other pictures"
    )


def load(names: Sequence[str], context: Context) -> Mapping[str, Metric]:
    """The metrics named, in that order; those with the same encoder share one copy of it."""
    return {n: cast(Metric, cast(Any, parts.load("metric", METRICS, n))(context)) for n in names}
