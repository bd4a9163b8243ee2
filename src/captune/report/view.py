"""The page in its order: plain values for the templates, each part told by its own module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from captune import captioners, recipe, rules
from captune.report import captioning, costs, curves, differences, grids, matrix, pictures, provenance, scores, texts
from captune.report.story import Story
from captune.report.verdict import Verdict, caveat, verdict
from captune.report.wording import (
    Column,
    columns_of,
    duration,
    plural,
    settings,
    title_of,
    warnings_of,
)

SHEET_SIDE = 1200  # pixels of a contact sheet's longer side, so that its names can be read


@dataclass(frozen=True)
class Arm:
    """One arm in words: whose captions, what of [train] is its own, and how many of its trainings ended."""

    column: Column
    source: str
    settings: str
    trained: str


def verdict_of(story: Story) -> Verdict:
    """The story's verdict."""
    return verdict(story.intervals, story.comparisons, story.recipe.primary)


def caveat_of(story: Story) -> str:
    """What so many trainings per arm allow to be said."""
    return caveat(story.trainings) if story.scores else ""


def page(story: Story) -> dict[str, Any]:
    """Everything the templates show; a part that is empty is left out of the page."""
    columns = columns_of(story)
    parts: dict[str, Any] = {
        "title": story.recipe.name,
        "run": story.run.name,
        "verdict": verdict_of(story),
        "caveat": caveat_of(story),
        "facts": _facts(story),
        "failures": story.failures,
        "lead": grids.lead(story),
        "arms": _arms(story),
        "columns": columns,
        "color": {column.name: column.color for column in columns},
        "confidence": f"{100 * story.recipe.judging.confidence:g}%",
        "resamples": f"{story.recipe.judging.resamples:,}",
        "primary": title_of(story, story.recipe.primary),
        "several": story.trainings > 1,
        "scores": scores.score_table(story),
        "caption_scores": captioning.caption_table(story),
        "score_notes": [warning for facts in story.metrics.values() for warning in facts.warnings],
        "forests": differences.forests(story),
        "groups": grids.groups(story),
        "grid_side": grids.shown_side(story),
        "training_row": grids.training_row(story),
        "token_limit": max((t.limit for of in story.tokens.values() for t in of.values()), default=0),
        "progress": grids.progress(story),
        "matrix": matrix.heat_table(story),
        "reproduced": grids.reproduced(story),
        "figures": matrix.figures(story),
        "repeated": story.repeated,
        "effort": costs.effort(story),
        "seconds": costs.stage_seconds(story),
        "prompt_tokens": _prompt_tokens(story),
        "captioned": texts.captioned(story),
        "preparation": _preparation(story),
        "contact_sheets": _contact_sheets(story),
        "losses": curves.plot(story.losses),
        "exports": provenance.exports(story),
        "uses": provenance.uses(story),
        "file_notes": _file_notes(story),
        "command": story.command,
        "made": provenance.how_made(story),
        "versions": provenance.versions_of(story),
        "hashes": provenance.hashes_of(story),
        "recipe_text": recipe.as_toml(story.recipe),
        "longest_side": grids.side_of(story),
        "small": pictures.SMALL,
    }
    return {**parts, "contents": _contents(parts)}


CONTENTS = (
    ("scores", "Scores"),
    ("caption-scores", "Captions and LoRAs"),
    ("forests", "Differences"),
    ("groups", "Samples"),
    ("progress", "Epochs"),
    ("matrix", "Cross-arm matrix"),
    ("reproduced", "Reproducibility"),
    ("effort", "Effort and gain"),
    ("captioned", "Captions"),
    ("losses", "Losses"),
    ("exports", "Files"),
    ("hashes", "Provenance"),
)


def _contents(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The sections that this page has: their anchors and titles."""
    there = {
        **parts,
        "caption-scores": parts["caption_scores"],
        "reproduced": parts["reproduced"] or parts["figures"],
        "effort": parts["effort"] or parts["seconds"],
    }
    return [(name, title) for name, title in CONTENTS if there[name]]


def _facts(story: Story) -> list[tuple[str, str]]:
    done = grids.finished(story)
    prompts, seeds = {sample.prompt_index for sample in done}, {sample.seed for sample in done}
    adapters = [adapter for found in story.adapters.values() for adapter in found]
    steps = sorted({adapter.step for adapter in adapters})
    total = sum(float(m.get("seconds", 0)) for m in story.costs.values())
    model = story.recipe.base.model
    held_out = f" and {len(story.held_out)} held out" if story.held_out else ""
    facts = [
        ("Training pictures", f"{len(story.examples)}{held_out}"),
        ("Arms", ", ".join(story.arms)),
        ("Base", model if model != "mini" else "mini (embedded)"),
        ("Trainings", f"{plural(len(adapters), 'LoRA')} of {plural(steps[-1], 'step')}" if steps else ""),
        ("Samples", f"{plural(len(prompts), 'prompt')} × {plural(len(seeds), 'seed')} per LoRA" if prompts else ""),
        ("Time", duration(total) if total else ""),
    ]
    return [(name, text) for name, text in facts if text]


def _arms(story: Story) -> list[Arm]:
    found = []
    colors = {column.name: column for column in columns_of(story)}
    seeds = story.recipe.training_seeds
    for section in story.recipe.arm:
        captioner = section.captioner
        source = section.source
        if captioner is not None and captioner.name == "sidecar":
            place = f" in {captioner.folder}" if captioner.folder else " beside the pictures"
            source = f"{captioner.extension} files{place}"
        elif captioner is not None:
            model = f", {captioner.model}" if "model" in captioners.OPTIONS[captioner.name] else ""
            said = captioner.prompt or captioner.text
            source = f"{captioner.name}{model}" + (f", “{said}”" if said else "")
            if section.tune is not None:
                source += f", tuned on {section.tune.dataset or section.tune.path}"
        if section.text is not None:
            source += f"; then {settings(section.text.model_dump(exclude_defaults=True))}"
        ended = len(story.adapters.get(section.name, []))
        trained = f"{ended} of {len(seeds)}" if story.adapters else ""
        found.append(Arm(colors[section.name], source, settings(section.train), trained))
    return found


def _prompt_tokens(story: Story) -> str:
    """How long the sampling prompts are: "12.4 tokens in the mean, 19 the longest"."""
    counts = list(story.prompt_tokens)
    if not counts:
        return ""
    return f"{sum(counts) / len(counts):.1f} tokens in the mean, {max(counts)} the longest"


def _preparation(story: Story) -> list[str]:
    manifest = story.costs.get("prepare", {})
    skipped = [
        f"Left out: {row.get('file', '')} ({row.get('reason', '')})" if isinstance(row, Mapping) else f"Left out: {row}"
        for row in manifest.get("skipped", [])
    ]
    said = [f"{arm}: {line}" for arm in story.arms for line in warnings_of(story, f"arms/{arm}/caption")]
    return [*skipped, *warnings_of(story, "prepare"), *said, *_ruled(story)]


def _ruled(story: Story) -> list[str]:
    """What text rules left to the trigger word, by arm."""
    done = {arm.name: story.costs.get(f"arms/{arm.name}/caption", {}).get("text") for arm in story.recipe.arm}
    arms = [arm for arm in story.recipe.arm if arm.text is not None and done[arm.name]]
    return [f"{arm.name}: {line}" for arm in arms if arm.text for line in rules.told(arm.text, done[arm.name] or {})]


def _contact_sheets(story: Story) -> list[pictures.Picture]:
    """The first contact sheet, and the one of near-duplicates, as prepare has drawn them."""
    names = [str(name) for name in story.costs.get("prepare", {}).get("contact_sheets", [])]
    chosen = [*names[:1], *(name for name in names[1:] if name.startswith("near"))]
    paths = [story.run / "prepare" / name for name in chosen]
    return [pictures.embed(path, SHEET_SIDE) for path in paths if path.is_file()]


def _file_notes(story: Story) -> list[str]:
    """What the exports warned of, said once for all trainings of an arm."""
    lines = [
        f"{arm}: {line}"
        for arm in story.arms
        for manifest in costs.manifests(story, arm, "export")
        for line in manifest.get("warnings", [])
    ]
    return list(dict.fromkeys(lines))
