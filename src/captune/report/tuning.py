"""A captioner's tuning as one self-contained page: before and after, what gained and what lost, and what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captune.report import TEMPLATES, pictures
from captune.report.wording import Column, duration
from captune.runs import StageFolder, fingerprint, plain, sha256_of, write_json, write_text
from captune.types import CaptionDifference, CaptionedPicture

SHOWN = 6  # examples that gained most, and as many that lost most
BEFORE, AFTER, TRUE = Column("base", "before", 0), Column("tuned", "after", 1), Column("real", "references", -1)


@dataclass(frozen=True)
class Before:
    """What a captioner, base or tuned, said of one test picture."""

    text: str
    ended: bool
    score: float  # by the primary metric; of this picture alone


@dataclass(frozen=True)
class TuningStory:
    """Everything of a tuning that the page and the model card tell."""

    name: str
    captioner: Mapping[str, Any]
    settings: Mapping[str, Any]
    differences: Sequence[CaptionDifference]
    beside: Mapping[str, tuple[float, float]]
    """Columns without better or worse, before and after."""
    primary: str
    pictures: Sequence[CaptionedPicture]  # the test pictures
    base: Mapping[str, Before]
    tuned: Mapping[str, Before]
    warnings: Sequence[str]
    facts: Mapping[str, Any]  # reference count, tokenizer, IDF corpus, decode settings
    data: Mapping[str, Any]  # how the pictures were split
    training: Mapping[str, Any]
    progress: Sequence[Mapping[str, Any]]  # captions of every epoch: epoch, id, text
    command: str = ""

    @property
    def verdict(self) -> str:
        """What is said of the primary metric; a plain sentence where nothing was tested."""
        said = [d.sentence for d in self.differences if d.primary]
        return said[0] if said else "Tuned; no test pictures were kept apart, so before and after were not compared."

    @property
    def ended(self) -> dict[str, float]:
        """Share of the captions that ended by themselves, before and after."""
        return {
            name: sum(b.ended for b in of.values()) / len(of) if of else 0.0
            for name, of in (("base", self.base), ("tuned", self.tuned))
        }


def write_tuning_page(story: TuningStory, folder: StageFolder) -> Path:
    """Write index.html, which loads nothing from anywhere, and summary.json; return the page's path."""
    page, numbers = folder.path / "index.html", folder.path / "summary.json"
    inputs = {
        "story": fingerprint(
            {name: plain(getattr(story, name)) for name in story.__dataclass_fields__ if name != "command"}
        ),
        "look": fingerprint([sha256_of(path) for path in sorted(TEMPLATES.iterdir())]),
    }
    if folder.done(inputs):
        return page
    folder.begin(inputs)
    write_json(numbers, summarized(story))
    write_text(page, render(story))
    folder.finish(inputs, [page, numbers])
    return page


def summarized(story: TuningStory) -> dict[str, Any]:
    """The same as the page, for programs."""
    return {
        "name": story.name,
        "verdict": story.verdict,
        "captioner": story.captioner,
        "differences": list(story.differences),
        "beside": story.beside,
        "ended": story.ended,
        "facts": story.facts,
        "warnings": list(story.warnings),
        "data": story.data,
        "training": story.training,
        "settings": story.settings,
        "captions": [
            {
                "id": p.id,
                "references": p.references,
                "base": story.base[p.id],
                "tuned": story.tuned[p.id],
                "change": story.tuned[p.id].score - story.base[p.id].score,
            }
            for p in story.pictures
        ],
    }


def render(story: TuningStory) -> str:
    """The page as HTML text; everything that comes from outside is escaped."""
    from markupsafe import Markup

    from captune.report import _environment

    gained, lost = _changed(story)
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    training = story.training
    text: str = (
        _environment()
        .get_template("tuning.html.j2")
        .render(
            style=style,
            title=story.name,
            verdict=story.verdict,
            facts=[
                ("Captioner", f"{story.captioner['name']}, {story.captioner['model']}"),
                ("Pictures", ", ".join(f"{n} {side}" for side, n in story.data.get("split", {}).items())),
                (
                    "Training",
                    f"{training.get('steps_done', 0)} steps in {duration(training.get('training_seconds', 0.0))}",
                ),
                ("LoRA", f"rank {story.settings['rank']}, {training.get('trainable_parameters', 0):,} weights"),
            ],
            differences=story.differences,
            beside=[(name.replace("_", " "), *map(_figure, of)) for name, of in story.beside.items()],
            rest=[d.sentence for d in story.differences if not d.primary],
            ended={name: f"{100 * share:.0f}%" for name, share in story.ended.items()} if story.base else {},
            warnings=[*story.warnings, *training.get("warnings", []), *story.data.get("warnings", [])],
            grounds=[(name.replace("_", " "), _in_words(value)) for name, value in story.facts.items()],
            primary=story.primary,
            groups=[("Gained most", gained), ("Lost most", lost)],
            epochs=_epochs(story),
            watched=training.get("watched", ""),
            settings=[(name, _in_words(value)) for name, value in story.settings.items()],
            before=BEFORE,
            after=AFTER,
            truth=TRUE,
            command=story.command,
        )
    )
    return text


def _changed(story: TuningStory) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The pictures whose score rose most, and those whose score fell most; none twice."""
    change = {p.id: story.tuned[p.id].score - story.base[p.id].score for p in story.pictures}
    order = sorted(story.pictures, key=lambda p: (-change[p.id], p.id))
    gained = [_example(story, p) for p in order if change[p.id] > 0][:SHOWN]
    lost = [_example(story, p) for p in reversed(order) if change[p.id] < 0][:SHOWN]
    return gained, lost


def _example(story: TuningStory, picture: CaptionedPicture) -> dict[str, Any]:
    longest = pictures.longest_side(4 * SHOWN)
    return {
        "name": picture.id,
        "shown": {"picture": pictures.embed(picture.image, longest), "alt": picture.references[0], "note": ""},
        "references": picture.references,
        "base": story.base[picture.id],
        "tuned": story.tuned[picture.id],
    }


def _epochs(story: TuningStory) -> list[dict[str, Any]]:
    """What was seen after every epoch: the validation's value, and captions of the same pictures."""
    values = list(story.training.get("validation", []))
    epochs = sorted({int(row["epoch"]) for row in story.progress} | set(range(1, len(values) + 1)))
    return [
        {
            "epoch": epoch,
            "value": f"{values[epoch - 1]:.4f}" if epoch <= len(values) else "",
            "best": epoch == story.training.get("best_epoch"),
            "captions": [row for row in story.progress if row["epoch"] == epoch],
        }
        for epoch in epochs
    ]


def _figure(value: float) -> str:
    """Shares with three digits, counts with one."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_in_words(content)}" for name, content in value.items())
    return "-" if value in (None, "") else str(value)
