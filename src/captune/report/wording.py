"""How the page names arms and says amounts: the same words and digits in every section."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captune import metrics
from captune.report.story import Story
from captune.types import BASE, REAL, Interval

COLORS = 6  # arms beyond take the colours again
MINUS = "\N{MINUS SIGN}"
Pieces = list[tuple[str, bool]]  # a text in pieces, each with whether it is the trigger word


@dataclass(frozen=True)
class Column:
    """Who is shown: the base, an arm or the training pictures, and the colour it has on the whole page (0: none)."""

    name: str
    label: str
    color: int


WITHOUT = Column(BASE, "without LoRA", 0)
PICTURES = Column(REAL, "training pictures", -1)


def columns_of(story: Story) -> list[Column]:
    """The base, then the arms in the recipe's order."""
    return [WITHOUT, *(Column(arm, arm, 1 + index % COLORS) for index, arm in enumerate(story.arms))]


def marked(text: str, word: str) -> Pieces:
    """The text in pieces, each with whether it is the word to mark."""
    word = word.strip()
    if not word:
        return [(text, False)]
    pieces = re.split(rf"((?<!\w){re.escape(word)}(?!\w))", text, flags=re.IGNORECASE)
    return [(piece, bool(index % 2)) for index, piece in enumerate(pieces) if piece]


def asks(story: Story, prompt: str) -> bool:
    """Whether the prompt asks for the subject; without a trigger word every prompt does."""
    word = story.recipe.dataset.trigger_word
    return not word.strip() or any(is_word for _, is_word in marked(prompt, word))


def title_of(story: Story, metric: str) -> str:
    """The metric's name in words."""
    return story.metrics[metric].title if metric in story.metrics else metric


def value(metric: str, number: float) -> str:
    """A score with the digits that its metric has: 91% or 0.812."""
    return f"{100 * number:.0f}%" if metrics.words(metric).share else _minus(f"{number:.{_digits(metric)}f}")


def span(metric: str, interval: Interval) -> str:
    """The interval as "75 to 98%" or "0.790 to 0.834"."""
    return f"{value(metric, interval.low).removesuffix('%')} to {value(metric, interval.high)}"


def change(metric: str, number: float, *, signed: bool = True) -> str:
    """A difference of scores: "+12 points" or "+0.021"."""
    share = metrics.words(metric).share
    text = f"{100 * abs(number):.0f}" if share else f"{abs(number):.{_digits(metric)}f}"
    sign = "" if not signed or float(text) == 0 else MINUS if number < 0 else "+"
    return f"{sign}{text}{' points' if share else ''}"


def tick(metric: str, number: float) -> str:
    """A number at an axis."""
    if metrics.words(metric).share:
        return _minus(f"{100 * number:.0f}%")
    return _minus(f"{number:.{_digits(metric)}f}".rstrip("0").rstrip("."))


def probability(p: float) -> str:
    """A p-value as statisticians print it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: int) -> str:
    """Bytes as people say them."""
    for unit, step in (("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} bytes"


def warnings_of(story: Story, stage: str) -> list[str]:
    """What a stage warned of."""
    return [str(warning) for warning in story.costs.get(stage, {}).get("warnings", [])]


def settings(values: Mapping[str, Any]) -> str:
    """Changed settings as one would write them in a recipe."""
    return ", ".join(f"{key} = {text}" for key, text in values.items())


def _digits(metric: str) -> int:
    """Denoising losses are small numbers that differ by little."""
    return 4 if metric == "denoising_loss" else 3


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
