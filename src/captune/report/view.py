"""The story in the order and the words of the page: plain values for the template, no markup."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from captune import metrics, recipe, runs
from captune.report import curves, pictures
from captune.report.pictures import Picture
from captune.report.story import Story
from captune.report.verdict import Verdict, caveat, verdict
from captune.types import BASE, REAL, Caption, Example, Interval, Sample

GRID = 384  # longest side in the grid of samples; the originals stay in the run folder
LEAD = 640  # longest side in the row at the top
COLORS = 6  # arms beyond take the colours again
STAGES = {
    "prepare": "Prepare pictures",
    "regularization": "Regularization images",
    "latents": "Encode pictures",
    "caption": "Write captions",
    "train": "Train the LoRA",
    "sample": "Draw samples",
    "evaluate": "Evaluate",
    "export": "Export",
}


@dataclass(frozen=True)
class Column:
    """Who drew: the base or an arm, and the colour it has on the whole page (0: none)."""

    name: str
    label: str
    color: int


@dataclass(frozen=True)
class Shown:
    """A picture on the page with its words."""

    picture: Picture
    alt: str
    note: str = ""


@dataclass(frozen=True)
class Lead:
    """The row at the top: training pictures, then one prompt without and with each LoRA."""

    training: list[Shown]
    prompt: list[tuple[str, bool]]
    drawn: list[tuple[Column, Shown]]
    seed: int


@dataclass(frozen=True)
class Bar:
    """One arm's score: its words, and where mean and interval lie in per cent of the axis."""

    column: Column
    value: str
    interval: str
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Scored:
    """One metric's scores."""

    facts: metrics.MetricFacts
    direction: str
    bars: list[Bar]
    floor: float | None
    ceiling: float | None
    axis: list[curves.Tick]
    judged: str
    judge: str


@dataclass(frozen=True)
class PromptRow:
    """One prompt's pictures, a list per column."""

    prompt: list[tuple[str, bool]]
    cells: list[list[Shown]]


@dataclass(frozen=True)
class Steps:
    """One arm's pictures of one prompt over the training."""

    column: Column
    prompt: list[tuple[str, bool]]
    pictures: list[tuple[str, Shown | None]]


@dataclass(frozen=True)
class Captioned:
    """One training picture with every arm's caption."""

    shown: Shown
    name: str
    captions: list[tuple[Column, list[tuple[str, bool]], str]]


@dataclass(frozen=True)
class CostRow:
    """One line of the costs: a cell per column."""

    label: str
    cells: list[str]


@dataclass(frozen=True)
class Exported:
    """A file for other tools."""

    column: Column
    name: str
    size: str
    sha256: str
    tools: str


@dataclass(frozen=True)
class Use:
    """How one tool loads the files."""

    tool: str
    how: str
    code: str = ""


def page(story: Story) -> dict[str, Any]:
    """Everything the template shows."""
    columns = columns_of(story)
    drawn = [column for column in columns if any(s.arm == column.name and s.epoch == 0 for s in story.samples)]
    said = verdict_of(story)
    order = list(story.metrics)
    compared = sorted(story.comparisons, key=lambda c: order.index(c.metric) if c.metric in order else len(order))
    return {
        "title": story.recipe.name,
        "run": story.run.name,
        "verdict": said,
        "caveat": caveat(training_runs(story)) if story.scores else "",
        "facts": _facts(story),
        "columns": columns,
        "drawn": drawn,
        "lead": _lead(story, drawn),
        "scored": _scored(story, columns),
        "between": [c for c in compared if c.second != BASE],
        "against_base": [c for c in compared if c.second == BASE],
        "color": {column.name: column.color for column in columns},
        "confidence": f"{100 * story.recipe.evaluate.confidence:g}%",
        "confidence_share": story.recipe.evaluate.confidence,
        "resamples": story.recipe.evaluate.resamples,
        "score_notes": [warning for facts in story.metrics.values() for warning in facts.warnings],
        "grid": _grid(story, drawn),
        "grid_side": _side(story, len(drawn)),
        "progress": _progress(story, columns),
        "captioned": _captioned(story, columns),
        "preparation": _preparation(story),
        "file_notes": [f"{arm}: {line}" for arm in story.arms for line in _warnings(story, f"arms/{arm}/export")],
        "losses": curves.plot(story.losses),
        "costs": _costs(story, columns),
        "exports": _exports(story, columns),
        "uses": _uses(story),
        "versions": versions_of(story),
        "hashes": hashes_of(story),
        "recipe_text": recipe.as_toml(story.recipe),
        "steps": {arm: adapter.step for arm, adapter in story.adapters.items()},
        "longest_side": GRID,
    }


def verdict_of(story: Story) -> Verdict:
    """The story's verdict."""
    return verdict(story.intervals, story.comparisons)


def training_runs(story: Story) -> int:
    """The fewest training seeds that any arm was scored with."""
    seeds: dict[str, set[int]] = {}
    for score in story.scores:
        if score.arm not in (BASE, REAL):
            seeds.setdefault(score.arm, set()).add(score.training_seed)
    return min((len(found) for found in seeds.values()), default=0)


def columns_of(story: Story) -> list[Column]:
    """The base, then the arms in the recipe's order."""
    arms = [Column(arm, arm, 1 + index % COLORS) for index, arm in enumerate(story.arms)]
    return [Column(BASE, "without LoRA", 0), *arms]


def marked(text: str, word: str) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether it is the word to mark."""
    word = word.strip()
    if not word:
        return [(text, False)]
    pieces = re.split(rf"((?<!\w){re.escape(word)}(?!\w))", text, flags=re.IGNORECASE)
    return [(piece, bool(index % 2)) for index, piece in enumerate(pieces) if piece]


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


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


def _asks(story: Story, prompt: str) -> bool:
    word = story.recipe.dataset.trigger_word
    return not word.strip() or any(is_word for _, is_word in marked(prompt, word))


def _finished(story: Story) -> list[Sample]:
    return [sample for sample in story.samples if sample.epoch == 0]


def _facts(story: Story) -> list[tuple[str, str]]:
    prompts = {sample.prompt_index for sample in _finished(story)}
    seeds = {sample.seed for sample in _finished(story)}
    steps = {adapter.step for adapter in story.adapters.values()}
    total = sum(float(m.get("seconds", 0)) for m in story.costs.values())
    section = story.recipe.base
    facts = [
        ("Pictures", f"{len(story.examples)}"),
        ("Arms", ", ".join(story.arms)),
        ("Base", section.model if section.model != "mini" else "mini (embedded)"),
        ("Training", f"{plural(min(steps), 'step')}, rank {story.recipe.train.rank}" if steps else ""),
        ("Samples", f"{plural(len(prompts), 'prompt')} × {plural(len(seeds), 'seed')}" if prompts else ""),
        ("Time", duration(total) if total else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _lead(story: Story, drawn: Sequence[Column]) -> Lead | None:
    """The recipe's first prompt that asks for the subject and its first seed: not chosen by looks."""
    finished = _finished(story)
    asking = [s for s in finished if _asks(story, s.prompt)] or finished
    if not asking or not story.examples:
        return None
    first = min(s.prompt_index for s in asking)
    order = list(story.recipe.sample.seeds)
    of_prompt = [s for s in asking if s.prompt_index == first]
    seed = min((s.seed for s in of_prompt), key=lambda seed: order.index(seed) if seed in order else seed)
    chosen = {s.arm: s for s in of_prompt if s.seed == seed}
    prompt = of_prompt[0].prompt
    return Lead(
        training=[_example_shown(example, LEAD // 2) for example in list(story.examples)[:4]],
        prompt=marked(prompt, story.recipe.dataset.trigger_word),
        drawn=[
            (column, Shown(pictures.embed(chosen[column.name].path, LEAD), f"{prompt} ({column.label})"))
            for column in drawn
            if column.name in chosen
        ],
        seed=seed,
    )


def _example_shown(example: Example, longest: int) -> Shown:
    return Shown(pictures.embed(example.image, longest), f"training picture {example.id}")


def _value(metric: str, value: float) -> str:
    return f"{100 * value:.0f}%" if metrics.words(metric).share else f"{value:.3f}"


def _span(metric: str, interval: Interval) -> str:
    low, high = _value(metric, interval.low), _value(metric, interval.high)
    return f"{low.removesuffix('%')} to {high}"


def _scored(story: Story, columns: Sequence[Column]) -> list[Scored]:
    found = []
    shown = [*columns, Column(REAL, "training pictures", -1)]
    for name, facts in story.metrics.items():
        of = {c: story.intervals[c.name][name] for c in shown if name in story.intervals.get(c.name, {})}
        if not of:
            continue
        low, high = _axis(name, list(of.values()))
        scale = 100 / (high - low)
        bars = [
            Bar(
                column,
                _value(name, i.mean),
                _span(name, i),
                *(min(100.0, max(0.0, (v - low) * scale)) for v in (i.mean, i.low, i.high)),
            )
            for column, i in of.items()
        ]
        at = {bar.column.name: bar.at for bar in bars}
        most = max((i for c, i in of.items() if c.name != REAL), key=lambda i: i.n, default=next(iter(of.values())))
        found.append(
            Scored(
                facts,
                "higher is better" if facts.higher_is_better else "lower is better",
                bars,
                at.get(BASE),
                at.get(REAL),
                [curves.Tick((t - low) * scale, _tick(name, t)) for t in curves.ticks(low, high, 4)],
                f"{plural(most.n, 'picture')} of {plural(most.clusters, 'prompt')} per arm",
                f"CLIP {facts.encoder}" if name.startswith("clip_") else facts.encoder,
            )
        )
    return found


def _axis(metric: str, intervals: Sequence[Interval]) -> tuple[float, float]:
    if metrics.words(metric).share:
        return 0.0, 1.0
    low, high = min(i.low for i in intervals), max(i.high for i in intervals)
    margin = 0.08 * (high - low) or 0.05
    return low - margin, high + margin


def _tick(metric: str, value: float) -> str:
    return f"{100 * value:.0f}%" if metrics.words(metric).share else f"{value:.3f}".rstrip("0").rstrip(".")


def _grid(story: Story, drawn: Sequence[Column]) -> list[tuple[str, list[PromptRow]]]:
    """The prompts that ask for the subject, then the ordinary ones; a cell has one picture per seed."""
    finished = _finished(story)
    groups: dict[bool, list[PromptRow]] = {True: [], False: []}
    for index in sorted({sample.prompt_index for sample in finished}):
        of_prompt = [sample for sample in finished if sample.prompt_index == index]
        prompt = of_prompt[0].prompt
        cells = []
        for column in drawn:
            own = [s for s in of_prompt if s.arm == column.name]
            cells.append(
                [
                    Shown(pictures.embed(s.path, GRID), f"{s.prompt} ({column.label}, seed {s.seed})", f"seed {s.seed}")
                    for s in sorted(own, key=lambda s: (s.training_seed, s.seed))
                ]
            )
        row = PromptRow(marked(prompt, story.recipe.dataset.trigger_word), cells)
        groups[_asks(story, prompt)].append(row)
    if not story.recipe.dataset.trigger_word.strip():
        titles = {True: "All prompts", False: ""}
    else:
        titles = {True: "Prompts with the trigger word", False: "Ordinary prompts: what else changed"}
    return [(titles[asks], rows) for asks, rows in groups.items() if rows]


def _side(story: Story, columns: int) -> int:
    """The side in CSS pixels at which a row of the grid fills a wide page; multiples of 32 keep small pictures even."""
    seeds = max(1, len({sample.seed for sample in _finished(story)}))
    return max(64, min(192, (860 // max(1, columns * seeds) - 8) // 32 * 32))


def _progress(story: Story, columns: Sequence[Column]) -> tuple[list[str], list[Steps]] | None:
    """Per arm and prompt the pictures of every epoch that was drawn, and the finished one."""
    early = [sample for sample in story.samples if sample.epoch > 0]
    if not early:
        return None
    epochs = sorted({sample.epoch for sample in early})
    rows = []
    for index in sorted({sample.prompt_index for sample in early}):
        for column in columns:
            seeds = {s.seed for s in early if s.arm == column.name and s.prompt_index == index}
            for seed in sorted(seeds):
                own = {
                    s.epoch: s
                    for s in story.samples
                    if s.arm == column.name and s.prompt_index == index and s.seed == seed
                }
                prompt = next(iter(own.values())).prompt
                cells: list[tuple[str, Shown | None]] = []
                for epoch in [*epochs, 0]:
                    label = f"epoch {epoch}" if epoch else "finished"
                    alt = f"{prompt} ({column.label}, {label})"
                    shown = Shown(pictures.embed(own[epoch].path, GRID), alt) if epoch in own else None
                    cells.append((label, shown))
                rows.append(Steps(column, marked(prompt, story.recipe.dataset.trigger_word), cells))
    return [*(f"epoch {epoch}" for epoch in epochs), "finished"], rows


def _captioned(story: Story, columns: Sequence[Column]) -> list[Captioned]:
    word = story.recipe.dataset.trigger_word
    by_id: dict[str, dict[str, Caption]] = {
        arm: {caption.example_id: caption for caption in captions} for arm, captions in story.captions.items()
    }
    found = []
    for example in story.examples:
        captions = []
        for column in columns:
            caption = by_id.get(column.name, {}).get(example.id)
            if caption is not None:
                captions.append((column, marked(caption.text, word), _cut(story, column.name, example.id)))
        shown = replace(_example_shown(example, GRID), note="")
        found.append(Captioned(shown, example.id, captions))
    return found


def _cut(story: Story, arm: str, example_id: str) -> str:
    tokens, read = story.tokens.get(arm, {}).get(example_id, (0, 0))
    return f"{tokens} tokens, the last {tokens - read} are not read" if tokens > read else ""


def _preparation(story: Story) -> list[str]:
    manifest = story.costs.get("prepare", {})
    skipped = [
        f"Left out: {row.get('file', '')} ({row.get('reason', '')})" if isinstance(row, Mapping) else f"Left out: {row}"
        for row in manifest.get("skipped", [])
    ]
    said = [f"{arm}: {line}" for arm in story.arms for line in _warnings(story, f"arms/{arm}/caption")]
    return [*skipped, *_warnings(story, "prepare"), *said]


def _warnings(story: Story, stage: str) -> list[str]:
    return [str(warning) for warning in story.costs.get(stage, {}).get("warnings", [])]


def _place(stage: str) -> tuple[str, str]:
    """A stage's folder as (column, stage): arms/human/train is human's train; prepare belongs to the whole run."""
    parts = stage.strip("/").split("/")
    if parts[0] == "arms" and len(parts) > 2:
        return parts[1], parts[-1]
    return ("", parts[0]) if len(parts) == 1 else (parts[0], parts[-1])


def _costs(story: Story, columns: Sequence[Column]) -> tuple[list[Column], list[CostRow]] | None:
    if not story.costs:
        return None
    placed = {_place(stage): manifest for stage, manifest in story.costs.items()}
    owners = {owner for owner, _ in placed}
    whole = Column("", "whole run", 0)
    shown = [column for column in (whole, *columns) if column.name in owners]
    order = [stage for stage in STAGES if any(stage == s for _, s in placed)]
    order += sorted({stage for _, stage in placed} - set(order))
    rows = []
    for stage in order:
        cells = [duration(float(placed[c.name, stage]["seconds"])) if (c.name, stage) in placed else "" for c in shown]
        rows.append(CostRow(STAGES.get(stage, stage.capitalize()), cells))
    seconds = [sum(float(m.get("seconds", 0)) for (o, _), m in placed.items() if o == c.name) for c in shown]
    rows.append(CostRow("All", [duration(value) for value in seconds]))
    for label, stage, read in _MEASURED:
        cells = [read(placed[c.name, stage]) if (c.name, stage) in placed else "" for c in shown]
        if any(cells):
            rows.append(CostRow(label, cells))
    return shown, rows


def _number(manifest: Mapping[str, Any], *keys: str, digits: int = 0, unit: str = "") -> str:
    value: Any = manifest
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return f"{value:,.{digits}f}{unit}" if isinstance(value, int | float) else ""


_MEASURED: tuple[tuple[str, str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("Training steps", "train", lambda m: _number(m, "total_steps")),
    ("Pictures per second, training", "train", lambda m: _number(m, "pictures_per_second", digits=1)),
    ("Tokens per caption, mean", "train", lambda m: _number(m, "caption_tokens", "mean", digits=1)),
    ("Tokens per caption, longest", "train", lambda m: _number(m, "caption_tokens", "longest")),
    ("Captions cut by the tokenizer", "train", lambda m: _number(m, "caption_tokens", "cut")),
    ("Peak memory, training", "train", lambda m: _number(m, "peak_mib", unit=" MiB")),
)


def _exports(story: Story, columns: Sequence[Column]) -> list[Exported]:
    found = []
    for column in columns:
        for path in story.exports.get(column.name, []):
            diffusers_only = ".peft." in path.name
            found.append(
                Exported(
                    column,
                    relative(story, path),
                    size(path.stat().st_size),
                    runs.sha256_of(path)[:12],
                    "diffusers" if diffusers_only else "ComfyUI, AUTOMATIC1111, Forge, diffusers",
                )
            )
    return found


def _uses(story: Story) -> list[Use]:
    files = [path for paths in story.exports.values() for path in paths]
    if not files:
        return []
    kohya = next((path for path in files if ".peft." not in path.name), None)
    uses = []
    if kohya is not None:
        uses += [
            Use("ComfyUI", "Put the file into models/loras and pick it in the node “Load LoRA”."),
            Use(
                "AUTOMATIC1111, Forge",
                "Put the file into models/Lora and write in the prompt:",
                f"<lora:{kohya.stem}:1>",
            ),
        ]
    path = kohya or files[0]
    run = story.run.name if story.run.is_absolute() else story.run.as_posix()
    folder = f"{run}/{relative(story, path.parent)}"
    uses.append(
        Use("diffusers", "Load it into the pipeline:", f'pipe.load_lora_weights("{folder}", weight_name="{path.name}")')
    )
    return uses


def relative(story: Story, path: Path) -> str:
    """The path within the run folder."""
    try:
        return path.absolute().relative_to(story.run.absolute()).as_posix()
    except ValueError:
        return path.as_posix()


def versions_of(story: Story) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for manifest in story.costs.values():
        found.update(manifest.get("versions", {}))
    return list((found or runs.versions()).items())


def hashes_of(story: Story) -> list[tuple[str, str]]:
    rows = [(f"LoRA of {arm}", adapter.sha256) for arm, adapter in story.adapters.items()]
    rows.append(("Recipe", runs.fingerprint(story.recipe.model_dump(mode="json"))))
    rows.append(("Training pictures", runs.fingerprint([[e.id, e.sha256] for e in story.examples])))
    bases = {str(m["inputs"]["base"]) for m in story.costs.values() if "base" in m.get("inputs", {})}
    return [*rows, *(("Base", value) for value in sorted(bases))]
