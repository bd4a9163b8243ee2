"""The end of a run: scores, comparisons, files for other tools, and the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune import captions, runs
from captune.checking import trained_as
from captune.recipe import Recipe
from captune.report import Story, write_report
from captune.running import STAGES, Made, Running, Told
from captune.runs import RunFolder
from captune.types import BASE, CrossLoss, Example

if TYPE_CHECKING:
    from captune.metrics.captions import Scored
    from captune.train.cache import Latents


def judge(
    this: Running,
    until: int,
    examples: list[Example],
    held_out: list[Example],
    told: Told,
    made: Made,
    latents: Callable[[], Latents],
    repeated: dict[str, bool],
) -> tuple[str, Path | None]:
    """Scores, comparisons, files for other tools, and the report."""
    from captune.evaluate import denoising
    from captune.evaluate.compare import compare, matrix, summarize
    from captune.evaluate.epochs import choose_epochs
    from captune.evaluate.score import read_facts, score_samples
    from captune.evaluate.stability import stability
    from captune.report.verdict import verdict
    from captune.sample import read_progress

    recipe, stage, section = this.recipe, this.folder.stage("evaluate"), this.recipe.judging
    names = [arm.name for arm in recipe.arm]
    steps = [
        s for a in made.adapters for s in read_progress(this.folder.training(a.arm, a.training_seed, "progress").path)
    ]
    samples, device = [*made.samples, *steps], recipe.base.device
    judged = bool(samples and section.measured)
    scores = score_samples(section, recipe.dataset, samples, examples, stage, this.progress, device) if judged else []
    facts = read_facts(stage) if judged else {}
    losses: list[CrossLoss] = []
    if recipe.study.denoising:
        losses = denoising.measure_denoising(
            made.adapters,
            held_out or examples,
            told.held_out if held_out else told.arms,
            latents,
            this.family,
            this.base,
            this.folder.stage("denoising"),
            this.progress,
            held_out=bool(held_out),
            trained_as={name: trained_as(recipe, name) for name in [*names, BASE]},
        )
        scores = [*scores, *denoising.as_scores(losses, recipe.base.model)]
        facts = {**facts, denoising.METRIC: denoising.facts(recipe.base.model, held_out=bool(held_out))}
    direction = {name: fact.higher_is_better for name, fact in facts.items()}
    intervals = summarize(scores, section)
    comparisons = compare(scores, section, direction, recipe.primary)
    text = verdict(intervals, comparisons, recipe.primary).text
    if until == STAGES.index("evaluate"):
        return text, None
    exports: dict[str, list[Path]] = {name: [] for name in names}
    for adapter in made.adapters:
        exports[adapter.arm] += this.export(adapter, examples, told.arms[adapter.arm], made.samples)
    if until == STAGES.index("export"):
        return "exported: " + ", ".join(str(p) for paths in exports.values() for p in paths), None
    story = Story(
        recipe=recipe,
        run=this.folder.path,
        examples=examples,
        held_out=held_out,
        captions={name: [*told.arms[name], *told.held_out[name]] for name in names},
        samples=samples,
        scores=scores,
        intervals=intervals,
        comparisons=comparisons,
        metrics=facts,
        losses={
            name: {a.training_seed: _rows(a.path.with_name("losses.jsonl")) for a in made.of(name)} for name in names
        },
        costs=_costs(this.folder),
        adapters={name: made.of(name) for name in names},
        exports=exports,
        tokens=told.lengths,
        caption_scores=_score_captions(recipe, told),
        matrix=matrix(losses, section),
        matrix_held_out=bool(held_out),
        stability=stability(scores, recipe.primary),
        epochs=choose_epochs(scores, recipe.primary, direction.get(recipe.primary, True)),
        failures=this.failures,
        repeated=repeated,
        known_prompts=captions.known_prompts(recipe.prompts, told.arms),
        prompt_tokens=_prompt_tokens(this),
        command=this.command,
    )
    return text, write_report(story, this.folder.stage("report"), this.progress)


def _score_captions(recipe: Recipe, told: Told) -> dict[str, Scored]:
    """Every other arm's captions against those of the arm that study.caption_references names."""
    from captune.metrics.captions import score

    true = recipe.study.caption_references
    if not true:
        return {}
    references = {c.example_id: [c.text] for c in told.arms[true]}
    return {
        name: score({c.example_id: c.text for c in said}, references)
        for name, said in told.arms.items()
        if name != true
    }


def _prompt_tokens(this: Running) -> list[int]:
    """Tokens of every sampling prompt, kept beside the base's pictures."""
    path = this.folder.stage("base/sample").path / "prompt_tokens.json"
    prompts = this.recipe.prompts
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if known.get("prompts") != prompts:
        known = {"prompts": prompts, "tokens": [this.tokens().measure(prompt).count for prompt in prompts]}
        runs.write_json(path, known)
    return [int(n) for n in known["tokens"]]


def _costs(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """The manifests of all stages before the report, by their place in the run."""
    found = {p.parent.relative_to(folder.path).as_posix(): p for p in sorted(folder.path.rglob("manifest.json"))}
    return {place: json.loads(path.read_text()) for place, path in found.items() if place != "report"}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
