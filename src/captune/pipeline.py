"""The story in order: pictures, captions, LoRAs, samples, scores, report, files for other tools."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune import captioners, captions, engines, exporters, families, metrics, runs, tuning, weights
from captune.caption import caption_examples, derive_captions, measure_captions
from captune.errors import CaptuneError, ModelError, RecipeError
from captune.families import Family
from captune.parts import unknown
from captune.prepare import hold_out, prepare_images
from captune.progress import Progress
from captune.recipe import ArmSection, BaseSection, Recipe, TrainSection, TuneRecipe, as_toml
from captune.report import Story, write_report
from captune.runs import RunFolder, StageFolder, sha256_of
from captune.tokens import Length, Tokens
from captune.train import optimizers
from captune.types import BASE, Adapter, Caption, CrossLoss, Example, Failure, Sample

if TYPE_CHECKING:
    from captune.metrics.captions import Scored
    from captune.train.cache import Latents
    from captune.train.crew import Crew, Starting
    from captune.train.loop import Watch

STAGES = ("prepare", "caption", "train", "sample", "evaluate", "export", "report")


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
    processes: int | None = None,
) -> Outcome:
    """Run a recipe up to and including a stage (all of them if not given), skipping what is done already.

    `command` is what a person typed, for the report. `processes` train together, to the result of one; not given: as many
    as train fastest.
    """
    if upto is not None and upto not in STAGES:
        raise unknown("stage", upto, STAGES)
    check(recipe)
    before = _manifests(folder)
    runs.write_text(folder.recipe, as_toml(recipe))
    with ExitStack() as running:
        this = _Run(recipe, folder, progress, command, _Gathering(recipe, processes, running))
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
    return export_file(file, form, target, precision, lambda: _fresh_pipeline(section))


def _fresh_pipeline(base: BaseSection) -> Any:
    """The base's pipeline, loaded for being changed: in float32, but FLUX, which would take 48 GB, in bf16."""
    precision = "bf16" if base.family == "flux" else "fp32"
    return families.load(base.model_copy(update={"device": "cpu", "precision": precision})).pipeline


class _Gathering:
    """The crew that trains, gathered when a training first asks for it; under a launcher it is there from the start."""

    def __init__(self, recipe: Recipe, processes: int | None, running: ExitStack) -> None:
        self._recipe, self._asked, self._running = recipe, processes, running
        self._sections = [recipe.train_of(arm, recipe.train.seed) for arm in recipe.arm]
        self._ahead: tuple[int, Starting] | None = None
        self._crew: Crew | None = None
        if "RANK" in os.environ:
            self()

    def start_ahead(self, pictures: int) -> None:
        """Let the others of a crew that nobody asked for start while there is still something else to do."""
        if self._asked is not None or "RANK" in os.environ:
            return
        from captune.train.crew import started, worthwhile

        size = worthwhile(self._recipe.base, self._sections, pictures)
        if size > 1:
            self._ahead = size, self._running.enter_context(started(size))

    def __call__(self) -> Crew:
        from captune.train.crew import gathered

        if self._crew is None:
            size, starting = self._ahead or (self._asked or 1, None)
            crew = gathered(size, self._recipe.base.device, self._sections, starting)
            self._crew = self._running.enter_context(crew)
        return self._crew


def check(recipe: Recipe) -> None:
    """Refuse names that no table has and options that nothing would read: all at once, before anything is loaded."""
    problems = []

    def collect(place: str, test: Callable[[], None]) -> None:
        try:
            test()
        except (RecipeError, ModelError) as error:
            problems.append(f"{place}: {error}")

    collect("base", lambda: families.check(recipe.base))
    problems += _refused(recipe)
    collect("evaluate.metrics", lambda: metrics.check(recipe.judging, recipe.dataset.trigger_word))
    collect("export.formats", lambda: exporters.check(recipe.export.formats))
    for arm in recipe.arm:
        if arm.captioner is not None:
            collect(f"arm {arm.name}", lambda section=arm.captioner: captioners.check(section))  # type: ignore[misc]
        if arm.tune is not None:
            tuned = _tuning(recipe, arm).tune
            collect(f"arm {arm.name}", lambda tuned=tuned: tuning.check(tuned))  # type: ignore[misc]
    for section in dict.fromkeys(["train", *(arm.name for arm in recipe.arm if arm.train)]):
        trained = _trained_as(recipe, section)
        place = section if section == "train" else f"arm {section}"
        collect(place, lambda trained=trained: optimizers.check(trained))  # type: ignore[misc]
        if trained.zero_terminal_snr and families.told_prediction(recipe.base) not in (None, "v_prediction"):
            problems.append(f"{place}: zero_terminal_snr = true: {families.PREDICTS_NOISE}")
        if trained.kind == "dora" and recipe.export.formats:
            problems.append(
                f'{place}: kind = "dora" has no file for other tools, which differ in what DoRA\'s magnitude '
                "scales; set export.formats = []"
            )
    if len(problems) == 1:
        raise RecipeError(problems[0])
    if problems:
        raise RecipeError("\n  ".join([f"the recipe has {len(problems)} problems:", *problems]))


def _tuning(recipe: Recipe, arm: ArmSection) -> TuneRecipe:
    """The tuning of an arm's captioner, as one of its own."""
    assert arm.tune is not None and arm.captioner is not None
    own = {"captioner": arm.captioner, "device": recipe.base.device}
    return TuneRecipe(name=f"{recipe.name}-{arm.name}", tune=arm.tune.model_copy(update=own))


def _trained_as(recipe: Recipe, arm: str) -> TrainSection:
    """How an arm is trained, as its pictures are drawn and judged too; what is no arm's is as [train] says."""
    found = next((a for a in recipe.arm if a.name == arm), None)
    return recipe.train if found is None else recipe.train_of(found, recipe.training_seeds[0])


def _refused(recipe: Recipe) -> list[str]:
    """Options that are set and that the family cannot honour, an arm's own among them."""
    if recipe.base.family not in families.FAMILIES:
        return []
    given = [
        f"{name}.{option}"
        for name in ("train", "sample", "regularization")
        for option in getattr(recipe, name).set_apart
    ]
    own = {arm.name: [f"train.{option}" for option in arm.train] for arm in recipe.arm}
    lines = families.refusals(recipe.base.family, given)
    return lines + [
        f"arm {a}: {line}" for a, told in own.items() for line in families.refusals(recipe.base.family, told)
    ]


@dataclass
class _Told:
    """All captions of a run: by arm, for the pictures trained on, held out, and of the class (regularization)."""

    arms: dict[str, list[Caption]]
    held_out: dict[str, list[Caption]]
    lengths: dict[str, dict[str, Length]]


class _Run:
    """A recipe on its way through the stages; the base model is loaded once, when a stage first needs it."""

    def __init__(self, recipe: Recipe, folder: RunFolder, progress: Progress, command: str, crew: _Gathering) -> None:
        self.recipe, self.folder, self.progress, self.command = recipe, folder, progress, command
        self.crew = crew
        base = recipe.base
        identity = weights.identity(base.model, base.family, base.revision)
        # number format and device shape every weight and picture: a change of them makes those stages anew
        self.base = runs.fingerprint([identity, base.family, base.variant, base.precision, base.device])
        self.family: Callable[[], Family] = cache(self._load_family)
        self.tokens: Callable[[], Tokens] = cache(lambda: Tokens.load(base, recipe.train.caption_chunks))
        self.multiple = families.FACTS[base.family].multiple
        self.failures: list[Failure] = []

    def _load_family(self) -> Family:
        self.progress.say(f"loading {self.recipe.base.model}")
        return families.load(self.recipe.base)

    def prepare(self) -> tuple[list[Example], list[Example]]:
        """The pictures to train on, and those that no arm is trained on."""
        stage = self.folder.stage("prepare")
        found = prepare_images(self.recipe.dataset, self.recipe.prepare, self.multiple, stage, self.progress)
        return hold_out(found, self.recipe.study.held_out)

    def caption(self, examples: Sequence[Example], held_out: Sequence[Example]) -> _Told:
        """Every arm's captions; arms made of others come after those."""
        arms = sorted(self.recipe.arm, key=lambda arm: bool(arm.derived_from))
        said: dict[str, list[Caption]] = {}
        kept: dict[str, list[Caption]] = {}
        for arm in arms:
            if arm.captioner is not None:
                every = self._captioned(arm, [*examples, *held_out])
                said[arm.name], kept[arm.name] = every[: len(examples)], every[len(examples) :]
            else:
                said[arm.name] = self._derived(arm, examples, said, "caption")
                wrong = said[arm.shuffled] if arm.shuffled is not None else ()
                kept[arm.name] = self._derived(arm, held_out, kept, "caption-held-out", wrong) if held_out else []
        order = [arm.name for arm in self.recipe.arm]
        lengths = {name: self._measured(name, said[name]) for name in order}
        return _Told({name: said[name] for name in order}, {name: kept[name] for name in order}, lengths)

    def _captioned(self, arm: ArmSection, examples: Sequence[Example]) -> list[Caption]:
        engine, device = engines.load(), self.recipe.base.device
        stage = self.folder.arm(arm.name, "caption")
        if arm.tune is not None and arm.captioner is not None:
            place = self.folder.arm(arm.name, "tune").path
            tuned = tuning.tune(_tuning(self.recipe, arm), place, self.progress, self.command)
            own = arm.captioner.model_copy(update={"adapter": tuned.adapter})
            arm = arm.model_copy(update={"captioner": own})
        return caption_examples(arm, self.recipe.dataset, examples, stage, self.progress, engine, device)

    def _derived(
        self,
        arm: ArmSection,
        examples: Sequence[Example],
        said: Mapping[str, Sequence[Caption]],
        stage: str,
        wrong: Sequence[Caption] = (),
    ) -> list[Caption]:
        """`wrong`: where a held-out picture's shuffled caption comes from; it may be alone, with none to deal with."""
        folder, dataset = self.folder.arm(arm.name, stage), self.recipe.dataset
        return derive_captions(arm, dataset, examples, said, self.tokens, self.base, folder, wrong=wrong)

    def _measured(self, arm: str, said: Sequence[Caption]) -> dict[str, Length]:
        stage = self.folder.arm(arm, "tokens")
        chunks = _trained_as(self.recipe, arm).caption_chunks
        base = self.base if chunks == 1 else runs.fingerprint([self.base, chunks])
        return measure_captions(arm, said, lambda: Tokens.load(self.recipe.base, chunks), base, stage, self.progress)

    def regularization(self) -> tuple[list[Example], list[Caption]]:
        from captune.sample import draw_regularization

        section, dataset = self.recipe.regularization, self.recipe.dataset
        stage = self.folder.stage("regularization")
        if section.path is not None:
            of_class = dataset.model_copy(update={"path": section.path, "repeats": section.repeats})
            found = prepare_images(of_class, self.recipe.prepare, self.multiple, stage, self.progress)
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
            self.recipe.train,
        )

    def pictures_to_train(self, examples: Sequence[Example]) -> int:
        """How often the trainings that are not done yet look at a picture, those of regularization left out."""
        visits, an_epoch = 0, sum(e.repeats for e in examples)
        for arm, seed in self.each_training():
            if not self.folder.training(arm.name, seed, "train").manifest_path.exists():
                section = self.recipe.train_of(arm, seed)
                a_step = section.batch_size * section.gradient_accumulation
                visits += section.steps * a_step if section.steps else (section.epochs or 0) * an_epoch
        return visits

    def latents(self, examples: Sequence[Example]) -> Callable[[], Latents]:
        """Encodes all pictures of the run once, when a training first needs them."""
        from captune.train.cache import cache_latents

        stage, flip = (
            self.folder.stage("latents"),
            self.recipe.train.flip or any(a.train.get("flip") for a in self.recipe.arm),
        )
        return cache(lambda: cache_latents(examples, self.base, flip, self.family, stage, self.progress))

    def train(
        self,
        arm: ArmSection,
        seed: int,
        examples: Sequence[Example],
        said: Sequence[Caption],
        latents: Callable[[], Latents],
        stage: StageFolder | None = None,
        watch: Watch | None = None,
    ) -> Adapter:
        from captune.sample import draw_progress
        from captune.train.diffusion import train_lora

        sampling, section = self.recipe.sample, self.recipe.train_of(arm, seed)
        pictures = self.folder.training(arm.name, seed, "progress").path

        def after_epoch(adapter: Adapter) -> None:
            draw_progress(sampling, self.recipe.prompts, adapter, self.family(), pictures, section)

        return train_lora(
            section,
            arm.name,
            self.base,
            examples,
            said,
            latents,
            self.family,
            stage or self.folder.training(arm.name, seed, "train"),
            self.progress,
            title=f"train {self._called(arm.name, seed)}",
            snapshot_every=sampling.every_epochs if stage is None else None,
            after_epoch=after_epoch,
            watch=watch,
            crew=self.crew,
            base_section=self.recipe.base,
        )

    def watch(
        self,
        arm: ArmSection,
        seed: int,
        held_out: Sequence[Example],
        said: Sequence[Caption],
        latents: Callable[[], Latents],
    ) -> Watch | None:
        """What train.stop_after looks at: the denoising loss of the pictures held out."""
        from captune.evaluate.denoising import loss_now
        from captune.train.loop import Watch

        section = self.recipe.train_of(arm, seed)
        if section.stop_after is None:
            return None
        made_of = [[e.id, e.sha256, c.text] for e, c in zip(held_out, said, strict=True)]
        return Watch(lambda: loss_now(held_out, said, latents(), self.family(), section), made_of)

    def sample(self, arm: str, adapter: Adapter | None, stage: StageFolder | None = None) -> list[Sample]:
        """The recipe's prompts, drawn with an adapter or without any."""
        from captune.sample import sample_arm

        if not self.recipe.prompts:
            return []
        title = f"sample {self._called(arm, adapter.training_seed if adapter else None)}"
        where = stage or (self._of(adapter, "sample") if adapter else self.folder.stage("base/sample"))
        section, prompts = self.recipe.sample, self.recipe.prompts
        how = _trained_as(self.recipe, arm)
        return sample_arm(
            section, prompts, arm, self.base, adapter, self.family, where, self.progress, title=title, trained_as=how
        )

    def reproduce(self, arm: str, said: Sequence[Caption], adapter: Adapter | None) -> list[Sample]:
        """Every training picture asked back by its own caption, with the arm's adapter or without any."""
        from captune.sample import sample_arm

        seeds = self.recipe.study.reproduction_seeds
        if "reproduction" not in self.recipe.judging.measured or not seeds:
            return []
        who = self._called(arm, adapter.training_seed) if adapter else f"{BASE}, captions of {arm}"
        return sample_arm(
            self.recipe.sample.model_copy(update={"seeds": seeds}),
            [caption.text for caption in said],
            arm if adapter else BASE,
            self.base,
            adapter,
            self.family,
            self._of(adapter, "reproduction") if adapter else self.folder.stage(f"base/reproduction/{arm}"),
            self.progress,
            title=f"ask back {who}",
            of=[caption.example_id for caption in said],
            trained_as=_trained_as(self.recipe, arm if adapter else BASE),
        )

    def export(
        self, adapter: Adapter, examples: Sequence[Example], said: Sequence[Caption], samples: Sequence[Sample]
    ) -> list[Path]:
        """The adapter's files for other tools, with the first picture that it drew as their cover."""
        from captune.export import export_adapter, lora_file
        from captune.exporters.facts import cover, of_pictures, of_training

        name = f"{self.recipe.name}-{adapter.arm}"
        if len(self.recipe.training_seeds) > 1:
            name += f"-seed{adapter.training_seed}"
        side, prior = self.recipe.dataset.resolution, self.recipe.regularization
        arm = next(a for a in self.recipe.arm if a.name == adapter.arm)
        section = self.recipe.train_of(arm, adapter.training_seed)
        facts = {
            "output_name": self.recipe.name,  # not the arm's: arms with equal captions make equal files
            "base_model": self.recipe.base.model,
            "resolution": f"{side}x{side}",
            "rank": str(adapter.rank),
            "alpha": str(adapter.alpha),
            **({"trigger_word": self.recipe.dataset.trigger_word} if self.recipe.dataset.trigger_word else {}),
            **of_pictures(examples, said),
            **of_training(section, adapter, families.FACTS[self.recipe.base.family].cannot),
            **({"regularization_weight": f"{prior.weight:g}"} if prior.wanted else {}),
        }
        stage = self._of(adapter, "export")
        own = (s.path for s in samples if (s.arm, s.training_seed) == (adapter.arm, adapter.training_seed))
        first = next(own, None)
        lora = lora_file(adapter.path, facts, cover(first) if first else None)
        load = lambda: _fresh_pipeline(self.recipe.base)  # noqa: E731 (only `merged` calls it)
        return export_adapter(self.recipe.export, lora, name, stage, self.progress, load)

    def _of(self, adapter: Adapter, stage: str) -> StageFolder:
        return self.folder.training(adapter.arm, adapter.training_seed, stage)

    def _called(self, arm: str, seed: int | None) -> str:
        """The arm, with the seed where it is trained with several."""
        return arm if seed is None or len(self.recipe.training_seeds) == 1 else f"{arm}, seed {seed}"

    def each_training(self) -> Iterator[tuple[ArmSection, int]]:
        """Every arm with the first seed, then with the next: a study that is cut short has whole pairs."""
        for seed in self.recipe.training_seeds:
            for arm in self.recipe.arm:
                yield arm, seed


@dataclass
class _Made:
    """What the trainings of a run made."""

    adapters: list[Adapter] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def of(self, arm: str) -> list[Adapter]:
        return [adapter for adapter in self.adapters if adapter.arm == arm]


def _run_stages(this: _Run, upto: str) -> tuple[str, Path | None]:
    """All stages in order; returns the verdict and the report's path."""
    until, path = STAGES.index(upto), this.folder.path
    examples, held_out = this.prepare()
    if until == STAGES.index("prepare"):
        return f"{len(examples) + len(held_out)} pictures are prepared in {path / 'prepare'}", None
    if until >= STAGES.index("train"):
        this.crew.start_ahead(this.pictures_to_train(examples))
    told = this.caption(examples, held_out)
    if until == STAGES.index("caption"):
        return f"{len(examples)} pictures are captioned by {len(told.arms)} arms in {path / 'arms'}", None
    others, words = this.regularization()
    latents = this.latents([*examples, *others, *held_out])
    made = _Made()
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
    return _judge(this, until, examples, held_out, told, made, latents, repeated)


@contextmanager
def _others_go_on(this: _Run, arm: str, seed: int) -> Iterator[None]:
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
    this: _Run,
    examples: Sequence[Example],
    said: Sequence[Caption],
    latents: Callable[[], Latents],
    made: _Made,
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


def _judge(
    this: _Run,
    until: int,
    examples: list[Example],
    held_out: list[Example],
    told: _Told,
    made: _Made,
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
            trained_as={name: _trained_as(recipe, name) for name in [*names, BASE]},
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


def _score_captions(recipe: Recipe, told: _Told) -> dict[str, Scored]:
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


def _prompt_tokens(this: _Run) -> list[int]:
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


def _summary(folder: RunFolder, upto: str | None) -> dict[str, Any]:
    path = folder.stage("report").path / "summary.json"
    if upto not in (None, "report") or not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
