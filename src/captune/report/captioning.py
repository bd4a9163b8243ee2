"""How near every arm's captions are to the true ones, beside how good the LoRA is that was trained on them."""

from __future__ import annotations

from dataclasses import dataclass

from captune.report.story import Story
from captune.report.wording import Column, columns_of, plural, span, title_of, value

METRICS = ("Bleu_4", "ROUGE_L", "CIDEr")


@dataclass(frozen=True)
class Row:
    """One arm: its caption scores in the order of `METRICS`, and its LoRA's primary score."""

    column: Column
    scores: list[str]
    lora: str
    interval: str


@dataclass(frozen=True)
class CaptionTable:
    """All arms whose captions were scored, and the arm whose captions are the truth."""

    metrics: tuple[str, ...]
    primary: str
    true: Column
    rows: list[Row]
    grounds: str
    warnings: list[str]


def caption_table(story: Story) -> CaptionTable | None:
    """The table; None where no arm was named as the truth."""
    if not story.caption_scores:
        return None
    columns = {column.name: column for column in columns_of(story)}
    primary, true = story.recipe.primary, story.recipe.study.caption_references
    rows = []
    for arm in story.arms:
        interval = story.intervals.get(arm, {}).get(primary)
        lora = (value(primary, interval.mean), span(primary, interval)) if interval else ("", "")
        scored = story.caption_scores.get(arm)
        if scored is not None or arm == true:
            scores = [f"{scored.corpus[name]:.3f}" if scored else "true" for name in METRICS]
            rows.append(Row(columns[arm], scores, *lora))
    any_scored = next(iter(story.caption_scores.values()))
    facts = any_scored.facts
    grounds = (
        f"{plural(int(str(facts['captions'])), 'caption')} an arm, one reference each, tokenizer {facts['tokenizer']}"
    )
    warnings = [f"{arm}: {line}" for arm, of in story.caption_scores.items() for line in of.warnings]
    title = title_of(story, primary) if primary else ""
    return CaptionTable(METRICS, title, columns[true], rows, grounds, warnings)
