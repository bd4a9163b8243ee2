"""A whole recipe: its sections, and whether they fit together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationError, model_validator

from captune.recipe.arms import ArmSection, TextSection, TuneSection
from captune.recipe.pictures import BaseSection, DatasetSection, PrepareSection
from captune.recipe.problems import sentences
from captune.recipe.results import MEASURED, EvaluateSection, ExportSection, SampleSection, StudySection
from captune.recipe.section import Name, Section
from captune.recipe.training import RegularizationSection, TrainSection


def _with_changes(section: TrainSection, changes: Mapping[str, Any]) -> TrainSection:
    values = section.model_dump()
    if "epochs" in changes or "steps" in changes:  # an arm that has its own length has only that
        values |= {"epochs": None, "steps": None}
    return TrainSection(**{**values, **changes})


def _text_problems(place: str, text: TextSection, trigger_word: str, class_word: str) -> list[str]:
    """Rules that would take the trigger word out, or that need a word that the data set does not name."""
    problems = []
    word = " ".join(trigger_word.split()).lower()
    if text.absorb is not None and not word:
        problems.append(f"{place}.absorb leaves words to the trigger word; give dataset.trigger_word")
    if text.add_class_word and not (word and class_word.strip()):
        problems.append(f"{place}.add_class_word needs dataset.trigger_word and dataset.class_word")
    for option, phrases in (("ban", text.ban), ("replace", list(text.replace))):
        taken = [
            p for p in phrases if word and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", " ".join(p.split()).lower())
        ]
        problems += [f"{place}.{option}: {phrase!r} would take the trigger word out" for phrase in taken]
    return problems


def _arm_problems(arms: Sequence[ArmSection], train: TrainSection, trigger_word: str, class_word: str) -> list[str]:
    """What is wrong with the arms beside each one's own fields: settings of [train], and arms made of others."""
    problems = []
    by_name = {arm.name: arm for arm in arms}
    for index, arm in enumerate(arms):
        place = f"arm[{index}]"
        if arm.text is not None:
            problems += _text_problems(f"{place}.text", arm.text, trigger_word, class_word)
        if "seed" in arm.train:
            problems.append(f"{place}.train.seed: all arms are trained with the same seeds; set study.training_seeds")
        try:
            _with_changes(train, arm.train)
        except ValidationError as error:
            problems += [f"{place}.train.{line}" for line in sentences(error, TrainSection)]
        for other in arm.derived_from:
            if other not in by_name or other == arm.name:
                known = ", ".join(name for name in by_name if name != arm.name)
                problems.append(f"{place}: there is no other arm {other!r} to take captions from (known: {known})")
            elif by_name[other].derived_from:
                problems.append(f"{place}: {other!r} is made of another arm's captions itself; name the original")
        if arm.trigger_only and not trigger_word.strip():
            problems.append(f"{place}: trigger_only needs dataset.trigger_word")
    return problems


class Recipe(Section):
    """A whole run."""

    name: Name = "run"
    """Name of the run; the file's name if not given."""
    dataset: DatasetSection
    prepare: PrepareSection = PrepareSection()
    base: BaseSection = BaseSection()
    train: TrainSection = TrainSection()
    regularization: RegularizationSection = RegularizationSection()
    arm: list[ArmSection] = Field(min_length=1)
    study: StudySection = StudySection()
    sample: SampleSection = SampleSection()
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        problems = []
        names = [arm.name for arm in self.arm]
        for name in sorted({n for n in names if names.count(n) > 1}):
            problems.append(f"arm: two arms are named {name!r}; names must differ")
        if self.study.caption_references and self.study.caption_references not in names:
            named, arms = self.study.caption_references, ", ".join(names)
            problems.append(f"study.caption_references = {named!r}: no such arm (known: {arms})")
        if self.train.epochs is None and self.train.steps is None:
            problems.append("train: give epochs or steps")
        problems += _arm_problems(self.arm, self.train, self.dataset.trigger_word, self.dataset.class_word)
        if (self.train.stop_after or any(arm.train.get("stop_after") for arm in self.arm)) and not self.study.held_out:
            problems.append("train.stop_after needs study.held_out, such as 2")
        if "reproduction" in self.evaluate.measured and not self.study.reproduction_seeds:
            problems.append("evaluate.metrics: reproduction needs study.reproduction_seeds, such as [0]")
        measured = self.judging.measured
        if self.study.primary and self.study.primary not in measured:
            problems.append(f"study.primary = {self.study.primary!r} is not measured; known: {', '.join(measured)}")
        if self.regularization.count and not (self.regularization.prompts or self.dataset.class_word):
            problems.append("regularization: count needs prompts, or dataset.class_word to draw")
        known = {"trigger_word", "class_word"}
        for index, prompt in enumerate(self.sample.prompts):
            for word in re.findall(r"{(\w*)}", prompt):
                if word not in known:
                    problems.append(
                        f"sample.prompts[{index}]: unknown {{{word}}} (known: {{trigger_word}}, {{class_word}})"
                    )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def training_seeds(self) -> list[int]:
        """The seeds that every arm is trained with."""
        return list(self.study.training_seeds) or [self.train.seed]

    def train_of(self, arm: ArmSection, seed: int) -> TrainSection:
        """The training settings of one run of an arm."""
        return _with_changes(self.train, {**arm.train, "seed": seed})

    @property
    def judging(self) -> EvaluateSection:
        """The evaluate section with metrics and encoders named."""
        section, mini = self.evaluate, self.base.model == "mini"
        encoder = section.encoder
        if encoder == "auto":
            encoder = "mini" if mini else "openai/clip-vit-large-patch14"
        dino = section.dino_encoder
        if dino == "auto":
            dino = "" if mini else "facebook/dinov2-base"
        left_out = {*([] if dino else ["dino"]), *([] if self.study.reproduction_seeds else ["reproduction"])}
        measured = section.metrics
        if measured is None:
            measured = [name for name in MEASURED if name not in left_out]
        return section.model_copy(update={"encoder": encoder, "dino_encoder": dino, "metrics": list(measured)})

    @property
    def primary(self) -> str:
        """The metric that decides."""
        return self.study.primary or next(iter(self.judging.measured), "")

    @property
    def prompts(self) -> list[str]:
        """The sampling prompts with their words filled in."""
        words = {"{trigger_word}": self.dataset.trigger_word, "{class_word}": self.dataset.class_word}
        filled = []
        for prompt in self.sample.prompts:
            for mark, word in words.items():
                prompt = prompt.replace(mark, word)
            filled.append(" ".join(prompt.split()))
        return filled


class TuneRecipe(Section):
    """A captioner's tuning without a study: what `captune tune-captioner` reads."""

    name: Name = "tune"
    """Name of the run; the file's name if not given."""
    tune: TuneSection
