"""The story in order: pictures, captions, LoRAs, samples, scores, report, files for other tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from captune import captioners, captions, engines, exporters, families, metrics, runs, weights
from captune.caption import caption_examples
from captune.errors import RecipeError
from captune.families import Family
from captune.parts import unknown
from captune.prepare import prepare_images
from captune.progress import Progress
from captune.recipe import ArmSection, Recipe, as_toml
from captune.report import Story, write_report
from captune.runs import RunFolder, sha256_of
from captune.types import BASE, Adapter, Caption, Example, Sample

STAGES = ("prepare", "caption", "train", "sample", "evaluate", "export", "report")


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    verdict: str
    report: Path | None
    already_done: bool
    summary: dict[str, Any] = field(default_factory=dict)


def run(recipe: Recipe, folder: RunFolder, progress: Progress, *, upto: str | None = None) -> Outcome:
    """Run a recipe up to and including a stage (all of them if not given), skipping what is done already."""
    if upto is not None and upto not in STAGES:
        raise unknown("stage", upto, STAGES)
    check(recipe)
    before = _manifests(folder)
    runs.write_text(folder.recipe, as_toml(recipe))
    told = _run_stages(_Run(recipe, folder, progress), upto or STAGES[-1])
    return Outcome(*told, already_done=bool(before) and _manifests(folder) == before, summary=_summary(folder, upto))


def check(recipe: Recipe) -> None:
    """Refuse names that no table has and options that nothing would read: all at once, before anything is loaded."""
    problems = []

    def collect(place: str, test: Callable[[], None]) -> None:
        try:
            test()
        except RecipeError as error:
            problems.append(f"{place}: {error}")

    collect("base.family", lambda: families.check(recipe.base))
    collect("evaluate.metrics", lambda: metrics.check(recipe.evaluate.metrics, recipe.dataset.trigger_word))
    collect("export.formats", lambda: exporters.check(recipe.export.formats))
    for arm in recipe.arm:
        collect(f"arm {arm.name}", lambda arm=arm: captioners.check(arm.captioner))  # type: ignore[misc]
    if len(problems) == 1:
        raise RecipeError(problems[0])
    if problems:
        raise RecipeError("\n  ".join([f"the recipe has {len(problems)} problems:", *problems]))


class _Run:
    """A recipe on its way through the stages; the base model is loaded once, when a stage first needs it."""

    def __init__(self, recipe: Recipe, folder: RunFolder, progress: Progress) -> None:
        self.recipe, self.folder, self.progress = recipe, folder, progress
        base = recipe.base
        identity = weights.identity(base.model, base.family, base.revision)
        # number format and device shape every weight and picture: a change of them makes those stages anew
        self.base = runs.fingerprint([identity, base.family, base.variant, base.precision, base.device])
        self.family: Callable[[], Family] = cache(self._load_family)
        self.tokens: dict[str, dict[str, tuple[int, int]]] = {}

    def _load_family(self) -> Family:
        self.progress.say(f"loading {self.recipe.base.model}")
        return families.load(self.recipe.base)

    def prepare(self) -> list[Example]:
        stage = self.folder.stage("prepare")
        return prepare_images(self.recipe.dataset, self.recipe.prepare, 8, stage, self.progress)

    def caption(self, arm: ArmSection, examples: Sequence[Example]) -> list[Caption]:
        engine, device = engines.load(), self.recipe.base.device
        stage = self.folder.arm(arm.name, "caption")
        return caption_examples(arm, self.recipe.dataset, examples, stage, self.progress, engine, device)

    def regularization(self) -> tuple[list[Example], list[Caption]]:
        from captune.sample import draw_regularization

        section, dataset = self.recipe.regularization, self.recipe.dataset
        stage = self.folder.stage("regularization")
        if section.path is not None:
            of_class = dataset.model_copy(update={"path": section.path, "repeats": section.repeats})
            found = prepare_images(of_class, self.recipe.prepare, 8, stage, self.progress)
            examples = [_weighted(e, section.weight) for e in found]
            told = [captions.read_sidecar(e.source, ".txt") or dataset.class_word for e in examples]
            return examples, [Caption(e.id, text, "sidecar") for e, text in zip(examples, told, strict=True)]
        if not section.count:
            return [], []
        return draw_regularization(
            self.recipe.sample,
            section.prompts or [dataset.class_word],
            section.count,
            dataset.resolution,
            section.repeats,
            section.weight,
            self.base,
            self.family,
            stage,
            self.progress,
        )

    def train(self, arm: str, examples: Sequence[Example], said: Sequence[Caption]) -> Adapter:
        from captune.sample import draw_progress
        from captune.train.cache import Latents, cache_latents
        from captune.train.diffusion import train_lora

        section, sampling = self.recipe.train, self.recipe.sample

        def latents() -> Latents:
            stage = self.folder.stage("latents")
            return cache_latents(examples, self.base, section.flip, self.family, stage, self.progress)

        def after_epoch(adapter: Adapter) -> None:
            pictures = self.folder.path / "arms" / arm / "progress"
            draw_progress(sampling, self.recipe.prompts, adapter, self.family(), pictures)

        return train_lora(
            section,
            arm,
            self.base,
            examples,
            said,
            latents,
            self.family,
            self.folder.arm(arm, "train"),
            self.progress,
            snapshot_every=sampling.every_epochs,
            after_epoch=after_epoch,
        )

    def sample(self, arm: str, adapter: Adapter | None) -> list[Sample]:
        from captune.sample import sample_arm

        stage = self.folder.arm(arm, "sample") if adapter else self.folder.stage("base/sample")
        section, prompts = self.recipe.sample, self.recipe.prompts
        return sample_arm(section, prompts, arm, self.base, adapter, self.family, stage, self.progress)

    def export(self, adapter: Adapter, examples: Sequence[Example], said: Sequence[Caption]) -> list[Path]:
        from captune.export import export_adapter, lora_file
        from captune.exporters.facts import of_pictures

        name = f"{self.recipe.name}-{adapter.arm}"
        side = self.recipe.dataset.resolution
        facts = {
            "output_name": name,
            "base_model": self.recipe.base.model,
            "resolution": f"{side}x{side}",
            "rank": str(adapter.rank),
            "alpha": str(adapter.alpha),
            **({"trigger_word": self.recipe.dataset.trigger_word} if self.recipe.dataset.trigger_word else {}),
            **of_pictures(examples, said),
        }
        stage = self.folder.arm(adapter.arm, "export")
        return export_adapter(self.recipe.export, lora_file(adapter.path, facts), stage, self.progress)


def _run_stages(this: _Run, upto: str) -> tuple[str, Path | None]:
    """All stages in order; returns the verdict and the report's path."""
    recipe = this.recipe
    until = STAGES.index(upto)
    names = [arm.name for arm in recipe.arm]
    examples = this.prepare()
    if until == STAGES.index("prepare"):
        return f"{len(examples)} pictures are prepared in {this.folder.path / 'prepare'}", None
    said = {arm.name: this.caption(arm, examples) for arm in recipe.arm}
    if until == STAGES.index("caption"):
        return f"{len(examples)} pictures are captioned by {len(names)} arms in {this.folder.path / 'arms'}", None
    others, told = this.regularization()
    adapters = {name: this.train(name, [*examples, *others], [*said[name], *told]) for name in names}
    if until == STAGES.index("train"):
        return "trained: " + ", ".join(str(a.path) for a in adapters.values()), None
    samples = this.sample(BASE, None) if recipe.prompts else []
    for name in names if recipe.prompts else []:
        samples += this.sample(name, adapters[name])
    if until == STAGES.index("sample"):
        return f"{len(samples)} pictures are drawn in {this.folder.path}", None
    return _judge(this, until, examples, said, adapters, samples)


def _judge(
    this: _Run,
    until: int,
    examples: list[Example],
    said: dict[str, list[Caption]],
    adapters: dict[str, Adapter],
    samples: list[Sample],
) -> tuple[str, Path | None]:
    """Scores, comparisons, files for other tools, and the report."""
    from captune.evaluate.compare import compare, summarize
    from captune.evaluate.score import read_facts, score_samples
    from captune.report.verdict import verdict
    from captune.sample import read_progress

    recipe, stage = this.recipe, this.folder.stage("evaluate")
    device = recipe.base.device
    judged = samples and recipe.evaluate.metrics
    scores = (
        score_samples(recipe.evaluate, recipe.dataset, samples, examples, stage, this.progress, device)
        if judged
        else []
    )
    facts = read_facts(stage) if judged else {}
    intervals = summarize(scores, recipe.evaluate)
    comparisons = compare(scores, recipe.evaluate, {name: f.higher_is_better for name, f in facts.items()})
    text = verdict(intervals, comparisons).text
    if until == STAGES.index("evaluate"):
        return text, None
    exports = {name: this.export(adapters[name], examples, said[name]) for name in adapters}
    if until == STAGES.index("export"):
        return "exported: " + ", ".join(str(p) for paths in exports.values() for p in paths), None
    arm_folders = {name: this.folder.path / "arms" / name for name in adapters}
    story = Story(
        recipe=recipe,
        run=this.folder.path,
        examples=examples,
        captions=said,
        samples=[*samples, *(s for path in arm_folders.values() for s in read_progress(path / "progress"))],
        scores=scores,
        intervals=intervals,
        comparisons=comparisons,
        metrics=facts,
        losses={name: _rows(path / "train" / "losses.jsonl") for name, path in arm_folders.items()},
        costs=_costs(this.folder),
        adapters=adapters,
        exports=exports,
        tokens={name: _tokens(path / "train" / "tokens.json", examples) for name, path in arm_folders.items()},
    )
    return text, write_report(story, this.folder.stage("report"), this.progress)


def _weighted(example: Example, weight: float) -> Example:
    return replace(example, id=f"regularization/{example.id}", weight=weight)


def _manifests(folder: RunFolder) -> dict[str, str]:
    return {str(p): sha256_of(p) for p in sorted(folder.path.rglob("manifest.json"))}


def _costs(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """The manifests of all stages before the report, by their place in the run."""
    found = {p.parent.relative_to(folder.path).as_posix(): p for p in sorted(folder.path.rglob("manifest.json"))}
    return {place: json.loads(path.read_text()) for place, path in found.items() if place != "report"}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _tokens(path: Path, examples: Sequence[Example]) -> dict[str, tuple[int, int]]:
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    return {e.id: (n, content["limit"]) for e, n in zip(examples, content["per_caption"], strict=False)}


def _summary(folder: RunFolder, upto: str | None) -> dict[str, Any]:
    path = folder.stage("report").path / "summary.json"
    if upto not in (None, "report") or not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
