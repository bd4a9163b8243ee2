"""The story in order: pictures, captions, LoRAs, samples, scores, report, files for other tools."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune import lint, runs
from captune.checking import check
from captune.errors import CaptuneError, RecipeError
from captune.judging import judge
from captune.parts import unknown
from captune.progress import Progress
from captune.recipe import BaseSection, Recipe, as_toml
from captune.running import STAGES, Gathering, Made, Running, fresh_pipeline
from captune.runs import RunFolder, sha256_of
from captune.types import BASE, Caption, Example, Failure

if TYPE_CHECKING:
    from captune.train.cache import Latents
    from captune.train.loop import Watch


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    verdict: str
    report: Path | None
    already_done: bool
    summary: dict[str, Any] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()


def run(
    recipe: Recipe,
    folder: RunFolder,
    progress: Progress,
    *,
    upto: str | None = None,
    command: str = "",
    processes: int = 1,
) -> Outcome:
    """Run a recipe up to and including a stage (all of them if not given), skipping what is done already.

    `command` is what a person typed, for the report. `processes` train together, to the result of one.
    """
    if upto is not None and upto not in STAGES:
        raise unknown("stage", upto, STAGES)
    check(recipe)
    runs.sweep(folder.path)
    before = _manifests(folder)
    runs.write_text(folder.recipe, as_toml(recipe))
    with ExitStack() as running:
        this = Running(recipe, folder, progress, command, Gathering(recipe, processes, running))
        verdict, report = _run_stages(this, upto or STAGES[-1])
    done = bool(before) and _manifests(folder) == before and not this.failures
    return Outcome(verdict, report, done, _summary(folder, upto), tuple(this.failures))


def convert(
    file: Path, form: str, target: Path | None, precision: str, model: str, family: str
) -> tuple[Path, list[str]]:
    """Write a LoRA file of any tool in another format; the path, and what tools will leave out of it.

    `model` and `family` name the base that `merged` puts the LoRA into.
    """
    from captune.export import export_file

    if form == "merged" and not model:
        raise RecipeError("--format merged needs --base, the model that the LoRA is merged into")
    if precision not in ("fp32", "fp16", "bf16"):
        raise unknown("precision", precision, ("fp32", "fp16", "bf16"))
    section = BaseSection(family=family, model=model or "mini", device="cpu")
    return export_file(file, form, target, precision, lambda: fresh_pipeline(section))


def _run_stages(this: Running, upto: str) -> tuple[str, Path | None]:
    """All stages in order; returns the verdict and the report's path."""
    until, path = STAGES.index(upto), this.folder.path
    examples, held_out = this.prepare()
    if until == STAGES.index("prepare"):
        return f"{len(examples) + len(held_out)} pictures are prepared in {path / 'prepare'}", None
    told = this.caption(examples, held_out)
    if until == STAGES.index("caption"):
        return f"{len(examples)} pictures are captioned by {len(told.arms)} arms in {path / 'arms'}", None
    for line in lint.before_training(this.recipe, {a: {c.example_id: c.text for c in s} for a, s in told.arms.items()}):
        this.progress.say(line)
    others, words = this.regularization()
    latents = this.latents([*examples, *others, *held_out])
    made = Made()
    if until > STAGES.index("train"):
        made.samples += this.sample(BASE, None)
        for name, said in told.arms.items():
            made.samples += this.reproduce(name, said, None)
    for arm, seed in this.each_training():
        with _others_go_on(this, arm.name, seed):
            watch = this.watch(arm, seed, held_out, told.held_out[arm.name], latents)
            adapter = this.train(arm, seed, [*examples, *others], [*told.arms[arm.name], *words], latents, watch=watch)
            if until > STAGES.index("train"):
                drawn = this.sample(arm.name, adapter) + this.reproduce(arm.name, told.arms[arm.name], adapter)
                made.samples += drawn
            made.adapters.append(adapter)
    if until == STAGES.index("train"):
        return "trained: " + ", ".join(str(a.path) for a in made.adapters), None
    if until == STAGES.index("sample"):
        return f"{len(made.samples)} pictures are drawn in {path}", None
    arm = this.recipe.arm[0]
    watch = this.watch(arm, this.recipe.training_seeds[0], held_out, told.held_out[arm.name], latents)
    repeated = _repeat(this, [*examples, *others], [*told.arms[arm.name], *words], latents, made, watch)
    return judge(this, until, examples, held_out, told, made, latents, repeated)


@contextmanager
def _others_go_on(this: Running, arm: str, seed: int) -> Iterator[None]:
    """A training that fails is noted by name, and the others go on; if none is left, its error is raised."""
    try:
        yield
    except Exception as error:
        if len(this.failures) + 1 == len(this.recipe.arm) * len(this.recipe.training_seeds):
            raise
        reason = str(error).strip() if isinstance(error, CaptuneError) else f"{type(error).__name__}: {error}"
        this.failures.append(Failure(arm, seed, reason))
        this.progress.say(f"the training of {arm} with seed {seed} failed, the others go on: {reason}")
        log = this.folder.training(arm, seed, "train").path.parent / "error.log"
        runs.write_text(log, "".join(traceback.format_exception(error)))


def _repeat(
    this: Running,
    examples: Sequence[Example],
    said: Sequence[Caption],
    latents: Callable[[], Latents],
    made: Made,
    watch: Watch | None,
) -> dict[str, bool]:
    """Train and draw the first arm's first seed again, if the recipe asks for it; what is equal byte by byte."""
    arm, seed = this.recipe.arm[0], this.recipe.training_seeds[0]
    first = next((a for a in made.of(arm.name) if a.training_seed == seed), None)
    if not this.recipe.study.repeat or first is None:
        return {}
    again = this.train(arm, seed, examples, said, latents, this.folder.stage("repeat/train"), watch)
    drawn = this.sample(arm.name, again, this.folder.stage("repeat/sample"))
    before = {s.item: s.path for s in made.samples if (s.arm, s.training_seed, s.of) == (arm.name, seed, "")}
    equal = all(sha256_of(s.path) == sha256_of(before[s.item]) for s in drawn)
    return {"LoRA file": again.sha256 == first.sha256, **({f"{len(drawn)} pictures": equal} if drawn else {})}


def _manifests(folder: RunFolder) -> dict[str, str]:
    return {str(p): sha256_of(p) for p in sorted(folder.path.rglob("manifest.json"))}


def _summary(folder: RunFolder, upto: str | None) -> dict[str, Any]:
    path = folder.stage("report").path / "summary.json"
    if upto not in (None, "report") or not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
