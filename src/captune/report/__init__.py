"""Stage: a run's story -> one self-contained HTML page, and the same numbers as summary.json."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import captune
from captune.progress import Progress
from captune.report.story import Story
from captune.runs import StageFolder, fingerprint, plain, sha256_of, write_json, write_text

__all__ = ["Story", "render", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"


def write_report(story: Story, folder: StageFolder, progress: Progress) -> Path:
    """Write index.html, which loads nothing from anywhere, and summary.json into the folder; return the page's path."""
    from captune.report import summary

    page = folder.path / "index.html"
    inputs = _inputs(story)
    if folder.done(inputs):
        return page
    folder.begin(inputs)
    with progress.track("report", 2) as bar:
        write_json(folder.path / "summary.json", summary.summarized(story))
        bar.advance(note="summary.json")
        write_text(page, render(story))
        bar.advance(note="index.html")
    folder.finish(inputs, outputs=[page, folder.path / "summary.json"])
    return page


def render(story: Story) -> str:
    """The page as HTML text; everything that comes from outside is escaped."""
    from markupsafe import Markup

    from captune.report import view

    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))  # ours, and CSS has no use for escapes
    text: str = _environment().get_template("report.html.j2").render(style=style, **view.page(story))
    return text


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
