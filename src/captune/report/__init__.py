"""Stage: a run's story -> one self-contained HTML page, and the same numbers for programs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import captune
from captune.progress import Progress
from captune.report.story import Story
from captune.runs import StageFolder, fingerprint, plain, sha256_of, write_json, write_records, write_text

__all__ = ["Story", "render", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"
COUNTED = "\ue000"  # where the footer tells the page's own size; a character that no text has


def write_report(story: Story, folder: StageFolder, progress: Progress) -> Path:
    """Write index.html, which loads nothing from anywhere, summary.json, scores.jsonl and comparison.csv into the
    folder; return the page's path."""
    from captune.report import summary

    page, numbers = folder.path / "index.html", folder.path / "summary.json"
    scores, comparison = folder.path / "scores.jsonl", folder.path / "comparison.csv"
    inputs = _inputs(story)
    if folder.done(inputs):
        return page
    folder.begin(inputs)
    with progress.track("report", 2) as bar:
        write_json(numbers, summary.summarized(story))
        write_records(scores, story.scores)
        write_text(comparison, summary.comparison_csv(story))
        bar.advance(note="summary.json")
        write_text(page, render(story))
        bar.advance(note="index.html")
    folder.finish(inputs, outputs=[page, numbers, scores, comparison])
    return page


def render(story: Story) -> str:
    """The page as HTML text; everything that comes from outside is escaped."""
    from markupsafe import Markup

    from captune.report import view

    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))  # ours, and CSS has no use for escapes
    template = _environment().get_template("report.html.j2")
    text: str = template.render(style=style, pictures_told=COUNTED, **view.page(story))
    before, _, after = text.rpartition(COUNTED)  # the footer's; how much the page weighs is known when it is written
    return f"{before}{text.count('<img '):,} pictures, {len(text) / 1e6:.1f} MB{after}"


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _inputs(story: Story) -> dict[str, Any]:
    """Everything the page shows, the bytes of its pictures and files, and what it looks like."""
    values = {name: getattr(story, name) for name in story.__dataclass_fields__ if name != "recipe"}
    files = [*(s.path for s in story.samples), *(path for paths in story.exports.values() for path in paths)]
    return {
        "story": fingerprint({**plain(values), "recipe": story.recipe.model_dump(mode="json")}),
        "files": fingerprint([sha256_of(path) for path in files if path.is_file()]),
        "look": fingerprint([sha256_of(path) for path in sorted(TEMPLATES.iterdir())]),
        "captune": captune.__version__,
    }
