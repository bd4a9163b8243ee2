"""What is wrong with a data set's captions and files before any training time is spent on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from captune import captions, rules, weights
from captune.errors import CaptuneError, ModelError
from captune.lint import files, texts
from captune.lint.finding import Finding, in_few_lines, ordered
from captune.lint.told import Told
from captune.prepare.scan import Picture, list_pictures, scan
from captune.recipe import ArmSection, BaseSection, Recipe, TrainSection
from captune.tokens import Tokens

__all__ = ["Finding", "before_training", "in_few_lines", "lint_folder", "lint_recipe", "of_plan"]

# What planning and the stages say themselves, in words of their own.
_PLAN_SAYS = frozenset(
    {"missing_caption", "empty_caption", "unreadable_caption", "orphan_caption", "broken_picture"}
    | {"cut_caption", "side_while_flipped", "near_duplicate"}
)
_STAGES_SAY = _PLAN_SAYS | {"trigger_missing", "small_picture", "uneven_repeats"}


def lint_folder(
    folder: Path,
    *,
    extension: str = ".txt",
    trigger_word: str = "",
    class_word: str = "",
    resolution: int | None = None,
    base: BaseSection | None = None,
    train: TrainSection | None = None,
) -> list[Finding]:
    """What is wrong with a folder of pictures and caption files. Raises DataError where there are no pictures,
    ModelError where the base is not on this machine.

    Kohya's folders `10_word class` name their trigger words; captions are measured by the base's tokens if one is given.
    `train` says how they will be trained on: flipped, shuffled.
    """
    root = folder.expanduser().absolute()
    found = scan(folder, 1)
    extension = captions.dotted(extension)
    findings = [_broken(skipped.file, skipped.reason) for skipped in found.skipped if _is_picture(skipped.reason)]
    gathered = files.gather(found.pictures, root, extension)
    findings += [*gathered.findings, *files.orphans(list_pictures(folder, 1).pictures, root, [extension])]
    findings += [*files.sizes(found.pictures, root, resolution), *files.imbalance(found.pictures, root)]
    findings += files.near_duplicates(found.pictures, root)
    train = train or TrainSection()
    tokens = _tokens(base, train.caption_chunks) if base is not None else None
    if base is not None and tokens is None:
        raise ModelError(
            f"no tokenizer of the base {base.model!r} is on this machine, and lint downloads nothing; give a folder"
        )
    of_folders = files.names_of_folders(found.pictures, root)
    given = trigger_word, class_word or files.class_of(of_folders, trigger_word)
    named = {} if trigger_word else of_folders
    for word, kind in sorted({named.get(name, given) for name in gathered.texts}):
        own = {name: text for name, text in gathered.texts.items() if named.get(name, given) == (word, kind)}
        others = frozenset(folder_word for folder_word, _ in of_folders.values()) - {word.lower()}
        told = Told(
            own,
            gathered.files,
            word,
            f"{kind} {class_word}" if kind != class_word else kind,
            {name: others for name in own},
            train,
            tokens,
        )
        findings += texts.examine(told)
    return ordered(findings)


def lint_recipe(recipe: Recipe) -> list[Finding]:
    """What is wrong with a recipe's pictures, and with the captions of its arms that are written already."""
    dataset = recipe.dataset
    root = dataset.path.expanduser().absolute()
    found = scan(dataset.path, dataset.repeats)
    findings = [_broken(skipped.file, skipped.reason) for skipped in found.skipped if _is_picture(skipped.reason)]
    sidecars = [arm for arm in recipe.arm if arm.captioner is not None and arm.captioner.name == "sidecar"]
    read = [captions.dotted(arm.captioner.extension) for arm in sidecars if arm.captioner is not None]
    findings += files.orphans(list_pictures(dataset.path, 1).pictures, root, read)
    findings += [*files.sizes(found.pictures, root, dataset.resolution), *files.imbalance(found.pictures, root)]
    findings += files.near_duplicates(found.pictures, root, recipe.prepare.duplicate_distance)
    for arm in sidecars:
        findings += _arm(recipe, arm, found.pictures, root)
    return ordered(findings)


def of_plan(recipe: Recipe, pictures: Sequence[Picture], said: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What a plan does not say itself of pictures and of the captions that arms have already, by arm and picture's id."""
    root = recipe.dataset.path.expanduser().absolute()
    findings = [*files.sizes(pictures, root, recipe.dataset.resolution), *files.imbalance(pictures, root)]
    lines = in_few_lines(findings)
    for arm in recipe.arm:
        lines += _lines_of(recipe, arm, said.get(arm.name, {}), _PLAN_SAYS)
    return list(dict.fromkeys(lines))


def before_training(recipe: Recipe, said: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What the stages have not said of the captions that will be trained on, by arm and picture's id."""
    lines = [line for arm in recipe.arm for line in _lines_of(recipe, arm, said.get(arm.name, {}), _STAGES_SAY)]
    return list(dict.fromkeys(lines))


def _lines_of(recipe: Recipe, arm: ArmSection, said: Mapping[str, str], elsewhere: frozenset[str]) -> list[str]:
    """One line a kind of finding; captions made of another arm's are faulty on purpose and not looked at."""
    if arm.captioner is None or not said:
        return []
    findings = [f for f in texts.examine(_told(recipe, arm, said, {})) if f.code not in elsewhere]
    about_word = in_few_lines(f for f in findings if f.code in ("trigger_known", "trigger_long"))
    rest = in_few_lines(f for f in findings if f.code not in ("trigger_known", "trigger_long"))
    return [*about_word, *(f"arm {arm.name}: {line}" for line in rest)]


def _arm(recipe: Recipe, arm: ArmSection, pictures: Sequence[Picture], root: Path) -> Iterator[Finding]:
    """The findings about one arm's caption files, as they will be trained on."""
    section = arm.captioner
    if section is None:
        return
    folder = section.folder.expanduser().absolute() if section.folder is not None else None
    gathered = files.gather(pictures, root, captions.dotted(section.extension), folder)
    yield from gathered.findings
    dataset, subject = (
        recipe.dataset,
        rules.Words(recipe.dataset.trigger_word, recipe.dataset.class_word, section.trigger),
    )
    said = dict(gathered.texts)
    if arm.text is not None and said:
        chunks = recipe.train_of(arm, 0).caption_chunks
        done = rules.apply(arm.text, list(said.values()), subject, lambda: Tokens.load(recipe.base, chunks)).texts
        said = dict(zip(said, done, strict=True))
    elif arm.text is None:
        words = dataset.trigger_word, dataset.class_word, section.trigger
        said = {name: captions.with_trigger_word(text, *words) for name, text in said.items()}
    yield from texts.examine(_told(recipe, arm, said, gathered.files, pictures, root))


def _told(
    recipe: Recipe,
    arm: ArmSection,
    said: Mapping[str, str],
    named: Mapping[str, str],
    pictures: Sequence[Picture] = (),
    root: Path = Path(),
) -> Told:
    dataset, train = recipe.dataset, recipe.train_of(arm, 0)
    own = dataset.trigger_word.lower()
    of_folders = files.names_of_folders(pictures, root)
    others = frozenset(word for word, _ in of_folders.values()) - {own}
    return Told(
        said,
        named,
        dataset.trigger_word,
        dataset.class_word or files.class_of(of_folders, own),
        {name: others for name in said},
        train,
        _tokens(recipe.base, train.caption_chunks),
        by_a_person=arm.captioner is not None and arm.captioner.name == "sidecar",
    )


@lru_cache(maxsize=4)  # every arm asks for the same
def _tokens(base: BaseSection, chunks: int) -> Tokens | None:
    """The base's tokenizer, if it is on this machine: lint downloads nothing."""
    try:
        if not Path(weights.locate(base.model, base.family)).is_dir():
            return None
        return Tokens.load(base, chunks)
    except CaptuneError:
        return None  # what is wrong with the base is told by the plan, and by the run


def _broken(file: str, reason: str) -> Finding:
    return Finding("broken_picture", "error", file, reason, "mend it, or take it out")


def _is_picture(reason: str) -> bool:
    """Whether what was left out was meant to be a picture, and not a hidden file or another program's."""
    return not reason.startswith(("hidden", "no picture format", "a link", "the folder of a run"))
