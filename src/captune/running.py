"""A recipe on its way: each stage called with what it needs from the recipe and from the stages before it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune import captions, engines, families, runs, tuning, weights
from captune.caption import caption_examples
from captune.caption_lengths import measure_captions
from captune.checking import trained_as, tuning_of
from captune.derived import derive_captions
from captune.families import Family
from captune.prepare import hold_out, prepare_images
from captune.progress import Progress
from captune.recipe import ArmSection, BaseSection, Recipe
from captune.runs import RunFolder, StageFolder
from captune.tokens import Length, Tokens
from captune.types import BASE, Adapter, Caption, Example, Failure, Sample

if TYPE_CHECKING:
    from captune.train.cache import Latents
    from captune.train.crew import Crew
    from captune.train.loop import Watch


STAGES = ("prepare", "caption", "train", "sample", "evaluate", "export", "report")


@dataclass
class Told:
    """All captions of a run: by arm, for the pictures trained on, held out, and of the class (regularization)."""

    arms: dict[str, list[Caption]]
    held_out: dict[str, list[Caption]]
    lengths: dict[str, dict[str, Length]]


@dataclass
class Made:
    """What the trainings of a run made."""

    adapters: list[Adapter] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def of(self, arm: str) -> list[Adapter]:
        return [adapter for adapter in self.adapters if adapter.arm == arm]


class Gathering:
    """The crew that trains, gathered when a training first asks for it; under a launcher it is there from the start."""

    def __init__(self, recipe: Recipe, processes: int, running: ExitStack) -> None:
        self._recipe, self._processes, self._running = recipe, processes, running
        self._crew: Crew | None = None
        if "RANK" in os.environ:
            self()

    def __call__(self) -> Crew:
        from captune.train.crew import gathered

        if self._crew is None:
            sections = [self._recipe.train_of(arm, self._recipe.train.seed) for arm in self._recipe.arm]
            fewest = min(section.batch_size * section.gradient_accumulation for section in sections)
            crew = gathered(self._processes, self._recipe.base.device, fewest)
            self._crew = self._running.enter_context(crew)
        return self._crew


class Running:
    """A recipe on its way through the stages; the base model is loaded once, when a stage first needs it."""

    def __init__(self, recipe: Recipe, folder: RunFolder, progress: Progress, command: str, crew: Gathering) -> None:
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

    def caption(self, examples: Sequence[Example], held_out: Sequence[Example]) -> Told:
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
        return Told({name: said[name] for name in order}, {name: kept[name] for name in order}, lengths)

    def _captioned(self, arm: ArmSection, examples: Sequence[Example]) -> list[Caption]:
        engine, device = engines.load(), self.recipe.base.device
        stage = self.folder.arm(arm.name, "caption")
        if arm.tune is not None and arm.captioner is not None:
            place = self.folder.arm(arm.name, "tune").path
            tuned = tuning.tune(tuning_of(self.recipe, arm), place, self.progress, self.command)
            self.progress.say(tuned.verdict)
            own = arm.captioner.model_copy(update={"adapter": tuned.adapter})
            arm = arm.model_copy(update={"captioner": own})
        return caption_examples(
            arm, self.recipe.dataset, examples, stage, self.progress, engine, device, self.tokens, self.base
        )

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
        chunks = trained_as(self.recipe, arm).caption_chunks
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
        how = trained_as(self.recipe, arm)
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
            trained_as=trained_as(self.recipe, arm if adapter else BASE),
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
        load = partial(fresh_pipeline, self.recipe.base)  # only `merged` calls it
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


def fresh_pipeline(base: BaseSection) -> Any:
    """The base's pipeline, loaded for being changed: in float32, but FLUX, which would take 48 GB, in bf16."""
    precision = "bf16" if base.family == "flux" else "fp32"
    return families.load(base.model_copy(update={"device": "cpu", "precision": precision})).pipeline


def _weighted(example: Example, weight: float) -> Example:
    return replace(example, id=f"regularization/{example.id}", weight=weight)
