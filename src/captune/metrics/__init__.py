"""Metrics: each judges one item at a time; statistics over items live in captune.evaluate.compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from captune import parts
from captune.errors import RecipeError

METRICS: dict[str, str] = {
    "clip_t": "captune.metrics.clip_t:ClipT",
    "clip_i": "captune.metrics.clip_i:ClipI",
    "oracle_subject": "captune.metrics.oracle_subject:OracleSubject",
    "oracle_leak": "captune.metrics.oracle_leak:OracleLeak",
    "oracle_background": "captune.metrics.oracle_background:OracleBackground",
    "oracle_prompt": "captune.metrics.oracle_prompt:OraclePrompt",
}
OF_MINI_SUBJECTS = ("oracle_subject", "oracle_leak")  # these must know which subject the trigger word calls


@dataclass(frozen=True)
class Words:
    """How a metric's results are said: "human {better} than blip", "no detectable difference in {quality}"."""

    better: str
    quality: str
    share: bool = False  # a share of pictures, said in per cent and points


# Here and not in the metrics' modules: sentences are made long after the models are gone, without loading them.
WORDS: dict[str, Words] = {
    "clip_t": Words("follows the prompts better", "prompt following"),
    "clip_i": Words("draws the subject more like the training pictures", "likeness to the training pictures"),
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
    """What a metric may look at: one picture, its prompt, and the real pictures of the subject."""

    image: Path
    prompt: str
    prompt_without_trigger: str  # the class word in the trigger word's place
    asks_for_subject: bool  # whether the trigger word stands in the prompt
    references: tuple[Path, ...]  # the prepared training pictures; never includes `image` itself


@dataclass(frozen=True)
class Context:
    """What all metrics of one evaluation share."""

    encoder: str  # the recipe's evaluate.encoder
    trigger_word: str
    batch_size: int
    device: str


class Metric(Protocol):
    """Judges pictures. `judges` says of which prompts; None scores are left out."""

    name: str
    title: str  # a few words for tables
    meaning: str  # one sentence for the report: what it measures, its range, what is better
    higher_is_better: bool
    judges: str  # "subject" (prompts with the trigger word), "ordinary" (those without), or "all"
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


def check(names: Sequence[str], trigger_word: str | None = None) -> None:
    """Raise a RecipeError for an unknown metric, or one that cannot know the trigger word, before anything is loaded."""
    for name in names:
        if name not in METRICS:
            raise parts.unknown("metric", name, METRICS)
        if name in OF_MINI_SUBJECTS and trigger_word is not None:
            mini_subject(trigger_word, name)


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
