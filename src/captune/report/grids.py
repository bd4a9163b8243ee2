"""The pictures side by side: one row per prompt, one column per arm, the same prompt and seed throughout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from captune.report import pictures
from captune.report.pictures import Picture
from captune.report.story import Story
from captune.report.wording import Column, Pieces, asks, columns_of, listed, marked, title_of, value
from captune.types import BASE, EpochChoice, Example, Sample

LEAD = 640  # longest side in the row at the top
FINISHED = 0  # the column after the last epoch


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
    prompt: Pieces
    drawn: list[tuple[Column, Shown]]
    seed: int


@dataclass(frozen=True)
class PromptRow:
    """One prompt's pictures, a list per column; `known` names the arms whose captions hold the prompt."""

    prompt: Pieces
    cells: list[list[Shown]]
    known: str = ""
    tokens: int = 0


@dataclass(frozen=True)
class Sheet:
    """One training seed's pictures; None where no training was drawn."""

    training_seed: int
    columns: list[Column]
    rows: list[PromptRow]


@dataclass(frozen=True)
class Group:
    """Prompts of one kind: the sheet to be seen, and those of the other training seeds."""

    title: str
    sheet: Sheet
    others: list[Sheet]


@dataclass(frozen=True)
class EpochCell:
    """One epoch of an arm: its mean score, or its picture; `chosen` where the rule recommends it."""

    label: str
    text: str = ""
    shown: Shown | None = None
    chosen: bool = False


@dataclass(frozen=True)
class Strip:
    """One arm's row over the epochs: of mean scores where it has no prompt."""

    column: Column
    prompt: Pieces
    cells: list[EpochCell]


@dataclass(frozen=True)
class Progress:
    """The epochs, the mean scores per arm, the strips, and those of other training seeds."""

    labels: list[str]
    measure: str
    means: list[Strip]
    strips: list[Strip]
    others: list[tuple[int, list[Strip]]]
    said: list[tuple[Column, str]]
    rules: list[str]


@dataclass(frozen=True)
class Reproduced:
    """A training picture, and per arm its picture without and with the LoRA, asked for by the arm's own caption."""

    training: Shown
    name: str
    cells: list[tuple[Column, list[Shown]]]


def finished(story: Story) -> list[Sample]:
    """The pictures of the recipe's prompts by the finished LoRAs and the base."""
    return [sample for sample in story.samples if sample.epoch == 0 and not sample.of]


def seeds_of(samples: Iterable[Sample]) -> list[int]:
    """The arms' training seeds, the one that most arms have first."""
    arms: dict[int, set[str]] = {}
    for sample in samples:
        if sample.arm != BASE:
            arms.setdefault(sample.training_seed, set()).add(sample.arm)
    return sorted(arms, key=lambda seed: (-len(arms[seed]), seed))


def side_of(story: Story) -> int:
    """The longest side of the page's scaled pictures, so that all of them fit."""
    return pictures.longest_side(len(story.samples) + 2 * len(story.examples))


def example_shown(example: Example, longest: int) -> Shown:
    return Shown(pictures.embed(example.image, longest), f"training picture {example.id}")


def drawn_columns(story: Story) -> list[Column]:
    """The columns that have finished pictures."""
    arms = {sample.arm for sample in finished(story)}
    return [column for column in columns_of(story) if column.name in arms]


def lead(story: Story) -> Lead | None:
    """The recipe's first prompt that asks for the subject and its first seed: not chosen by looks."""
    done = finished(story)
    asking = [s for s in done if asks(story, s.prompt)] or done
    if not asking or not story.examples:
        return None
    first = min(s.prompt_index for s in asking)
    order = list(story.recipe.sample.seeds)
    training = seeds_of(asking)[:1]
    of_prompt = [s for s in asking if s.prompt_index == first and (s.arm == BASE or s.training_seed in training)]
    seed = min((s.seed for s in of_prompt), key=lambda seed: order.index(seed) if seed in order else seed)
    chosen = {s.arm: s for s in of_prompt if s.seed == seed}
    prompt = of_prompt[0].prompt
    return Lead(
        training=[example_shown(example, LEAD // 2) for example in list(story.examples)[:4]],
        prompt=marked(prompt, story.recipe.dataset.trigger_word),
        drawn=[
            (column, Shown(pictures.embed(chosen[column.name].path, LEAD), f"{prompt} ({column.label})"))
            for column in drawn_columns(story)
            if column.name in chosen
        ],
        seed=seed,
    )


def training_row(story: Story) -> list[Shown]:
    """Training pictures to look at above the grid."""
    return [example_shown(example, side_of(story)) for example in list(story.examples)[:12]]


def groups(story: Story) -> list[Group]:
    """The prompts that ask for the subject, then the ordinary ones; a cell has one picture per seed."""
    done = finished(story)
    first, *rest = seeds_of(done) or [0]
    columns = drawn_columns(story)
    arms = [column for column in columns if column.name != BASE]
    if not story.recipe.dataset.trigger_word.strip():
        titles = {True: "All prompts", False: ""}
    else:
        titles = {True: "Prompts with the trigger word", False: "Ordinary prompts: what else changed"}
    found = []
    for kind, title in titles.items():
        of_kind = [sample for sample in done if asks(story, sample.prompt) == kind]
        if of_kind:
            sheet = _sheet(story, of_kind, columns, first)
            found.append(Group(title, sheet, [_sheet(story, of_kind, arms, seed) for seed in rest]))
    return found


def _sheet(story: Story, samples: Sequence[Sample], columns: list[Column], training_seed: int) -> Sheet:
    rows = []
    longest, several = side_of(story), story.trainings > 1
    for index in sorted({sample.prompt_index for sample in samples}):
        of_prompt = [sample for sample in samples if sample.prompt_index == index]
        cells = []
        for column in columns:
            own = [s for s in of_prompt if s.arm == column.name and (s.arm == BASE or s.training_seed == training_seed)]
            cells.append([_cell(s, column, longest, several) for s in sorted(own, key=lambda s: s.seed)])
        tokens = story.prompt_tokens[index] if index < len(story.prompt_tokens) else 0
        known = listed(list(story.known_prompts[index])) if story.known_prompts.get(index) else ""
        prompt = marked(of_prompt[0].prompt, story.recipe.dataset.trigger_word)
        rows.append(PromptRow(prompt, cells, known, tokens))
    return Sheet(training_seed, columns, rows)


def _cell(sample: Sample, column: Column, longest: int, several: bool) -> Shown:
    training = f", training seed {sample.training_seed}" if several and sample.arm != BASE else ""
    words = f"{sample.prompt} ({column.label}, seed {sample.seed}{training})"
    return Shown(pictures.embed(sample.path, longest), words, f"seed {sample.seed}{training}")


def shown_side(story: Story) -> int:
    """The side in CSS pixels at which a row of the grid fills a wide page; multiples of 32 keep small pictures even."""
    seeds = max(1, len({sample.seed for sample in finished(story)}))
    return max(64, min(192, (860 // max(1, len(drawn_columns(story)) * seeds) - 8) // 32 * 32))


def progress(story: Story) -> Progress | None:
    """Per arm and prompt the pictures of every epoch that was drawn, and the finished one."""
    early = [sample for sample in story.samples if sample.epoch > 0]
    if not early:
        return None
    epochs = sorted({sample.epoch for sample in early})
    chosen = {choice.arm: choice for choice in story.epochs}
    columns = [column for column in columns_of(story) if any(s.arm == column.name for s in early)]
    first, *rest = seeds_of(early)
    means = [_means(chosen[c.name], c, epochs) for c in columns if c.name in chosen]
    said = [(c, _recommended(story, chosen[c.name])) for c in columns if c.name in chosen]
    return Progress(
        [_epoch(epoch) for epoch in (*epochs, FINISHED)],
        next((title_of(story, choice.metric).lower() for choice in story.epochs), ""),
        means,
        _strips(story, columns, epochs, first, chosen),
        [(seed, _strips(story, columns, epochs, seed, chosen)) for seed in rest],
        said,
        list(dict.fromkeys(choice.rule for choice in story.epochs)),
    )


def _at(choice: EpochChoice | None, epochs: Sequence[int]) -> int | None:
    """The column of the recommended epoch; what was not drawn on the way is the finished one."""
    if choice is None:
        return None
    return choice.recommended if choice.recommended in epochs else FINISHED


def _means(choice: EpochChoice, column: Column, epochs: Sequence[int]) -> Strip:
    scores = {epoch if epoch in epochs else FINISHED: mean for epoch, mean in choice.means}
    where = _at(choice, epochs)
    cells = [
        EpochCell(_epoch(e), value(choice.metric, scores[e]) if e in scores else "", chosen=e == where)
        for e in (*epochs, FINISHED)
    ]
    return Strip(column, [], cells)


def _recommended(story: Story, choice: EpochChoice) -> str:
    found = dict(choice.means).get(choice.recommended)
    score = f", {title_of(story, choice.metric).lower()} {value(choice.metric, found)}" if found is not None else ""
    last = max((epoch for epoch, _ in choice.means), default=choice.recommended)
    return f"epoch {choice.recommended}{', the last that was drawn' if choice.recommended == last else ''}{score}"


def _epoch(epoch: int) -> str:
    return f"epoch {epoch}" if epoch else "finished"


def _strips(
    story: Story,
    columns: Sequence[Column],
    epochs: Sequence[int],
    training_seed: int,
    chosen: dict[str, EpochChoice],
) -> list[Strip]:
    own = [s for s in story.samples if s.arm != BASE and not s.of and s.training_seed == training_seed]
    by_place = {(s.arm, s.prompt_index, s.seed, s.epoch): s for s in own}
    rows = dict.fromkeys((s.prompt_index, s.seed) for s in own if s.epoch > 0)
    longest, found = side_of(story), []
    for index, seed in sorted(rows):
        for column in columns:
            cells, prompt = [], ""
            for epoch in (*epochs, FINISHED):
                sample = by_place.get((column.name, index, seed, epoch))
                shown = None
                if sample is not None:
                    prompt = sample.prompt
                    alt = f"{prompt} ({column.label}, {_epoch(epoch)})"
                    shown = Shown(pictures.embed(sample.path, longest), alt)
                cells.append(EpochCell(_epoch(epoch), "", shown, epoch == _at(chosen.get(column.name), epochs)))
            if prompt:
                found.append(Strip(column, marked(prompt, story.recipe.dataset.trigger_word), cells))
    return found


def reproduced(story: Story) -> tuple[list[Reproduced], list[tuple[int, list[Reproduced]]]] | None:
    """Every training picture beside what its own captions bring back; the other training seeds apart."""
    asked = [sample for sample in story.samples if sample.of]
    if not asked:
        return None
    first, *rest = seeds_of(asked) or [0]
    others = [(seed, _reproduced(story, asked, seed, with_base=False)) for seed in rest]
    shown = _reproduced(story, asked, first, with_base=True)
    return (shown, others) if shown else None


def _reproduced(story: Story, asked: Sequence[Sample], training_seed: int, *, with_base: bool) -> list[Reproduced]:
    longest, found = side_of(story), []
    for example in [*story.examples, *story.held_out]:
        of_example = [sample for sample in asked if sample.of == example.id]
        cells = []
        for column in columns_of(story):
            own = [s for s in of_example if s.arm == column.name and s.training_seed == training_seed]
            if column.name == BASE or not own:
                continue
            seed = min(s.seed for s in own)
            sample = next(s for s in own if s.seed == seed)
            # The base was asked with every arm's caption: beside a LoRA's picture stands the base's of the same words.
            base = [s for s in of_example if (s.arm, s.prompt, s.seed) == (BASE, sample.prompt, seed)][:1]
            shown = [*(base if with_base else []), sample]
            labels = ["without LoRA", column.label][-len(shown) :]
            pair = [
                Shown(pictures.embed(s.path, longest), f"{s.prompt} ({label})")
                for s, label in zip(shown, labels, strict=True)
            ]
            cells.append((column, pair))
        if cells:
            found.append(Reproduced(example_shown(example, longest), example.id, cells))
    return found
