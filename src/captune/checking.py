"""What a recipe asks for that cannot be: all of it told at once, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from captune import captioners, exporters, families, metrics, prepare, tuning
from captune.errors import ModelError, RecipeError
from captune.recipe import ArmSection, Recipe, TrainSection, TuneRecipe
from captune.train import optimizers

if TYPE_CHECKING:
    pass


def check(recipe: Recipe) -> None:
    """Refuse names that no table has and options that nothing would read: all at once, before anything is loaded."""
    problems = []

    def collect(place: str, test: Callable[[], object]) -> None:
        try:
            test()
        except (RecipeError, ModelError) as error:
            told = str(error)
            problems.append(told if told.startswith(f"{place}.") else f"{place}: {told}")

    collect("base", lambda: families.check(recipe.base))
    collect("prepare", lambda: prepare.check(recipe.prepare))
    problems += _refused(recipe)
    collect("evaluate.metrics", lambda: metrics.check(recipe.judging, recipe.dataset.trigger_word))
    collect("export.formats", lambda: exporters.check(recipe.export.formats))
    for arm in recipe.arm:
        if arm.captioner is not None:
            collect(f"arm {arm.name}", lambda section=arm.captioner: captioners.check(section))  # type: ignore[misc]
        if arm.tune is not None:
            tuned = tuning_of(recipe, arm).tune
            collect(f"arm {arm.name}", lambda tuned=tuned: tuning.check(tuned))  # type: ignore[misc]
    for section in dict.fromkeys(["train", *(arm.name for arm in recipe.arm if arm.train)]):
        trained = trained_as(recipe, section)
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


def tuning_of(recipe: Recipe, arm: ArmSection) -> TuneRecipe:
    """The tuning of an arm's captioner, as one of its own."""
    assert arm.tune is not None and arm.captioner is not None
    dataset = recipe.dataset
    captioner = captioners.filled(arm.captioner, dataset.trigger_word, dataset.class_word)
    own = {"captioner": captioner, "device": recipe.base.device}
    return TuneRecipe(name=f"{recipe.name}-{arm.name}", tune=arm.tune.model_copy(update=own))


def trained_as(recipe: Recipe, arm: str) -> TrainSection:
    """How an arm is trained, as its pictures are drawn and judged too; what is no arm's is as [train] says."""
    found = next((a for a in recipe.arm if a.name == arm), None)
    return recipe.train if found is None else recipe.train_of(found, recipe.training_seeds[0])
