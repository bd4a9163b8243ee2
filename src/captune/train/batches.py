"""Which picture is visited when: the order of a run, known in advance and keyed by (seed, epoch)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from captune import randomness
from captune.types import Example


@dataclass(frozen=True)
class Visit:
    """The `number`-th time that example `index` is looked at; its draws are keyed by (seed, example id, number)."""

    index: int
    number: int


Batch = tuple[Visit, ...]


def epoch_batches(examples: Sequence[Example], epoch: int, batch_size: int, seed: int) -> list[Batch]:
    """The batches of one epoch (counted from 0): shuffled, of one size each, the last of a size possibly short."""
    by_size: dict[tuple[int, int], list[Visit]] = defaultdict(list)
    for index, example in enumerate(examples):
        for repeat in range(example.repeats):
            by_size[example.width, example.height].append(Visit(index, epoch * example.repeats + repeat))
    batches: list[Batch] = []
    for size in sorted(by_size):
        visits = by_size[size]
        order = randomness.permutation(len(visits), seed, "order", epoch, *size)
        shuffled = [visits[i] for i in order]
        batches += [tuple(shuffled[i : i + batch_size]) for i in range(0, len(shuffled), batch_size)]
    order = randomness.permutation(len(batches), seed, "batches", epoch)
    return [batches[i] for i in order]


def epoch_steps(
    examples: Sequence[Example], epoch: int, batch_size: int, accumulation: int, seed: int
) -> list[list[Batch]]:
    """The optimizer steps of one epoch, each a list of up to `accumulation` batches."""
    batches = epoch_batches(examples, epoch, batch_size, seed)
    return [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]


def share_of(step: Sequence[Batch], rank: int, size: int) -> list[Batch]:
    """What one of `size` processes does of a step: the step's visits are dealt in turn, so shares differ by one at most."""
    shares, dealt = [], 0
    for batch in step:
        own = tuple(visit for place, visit in enumerate(batch, dealt) if place % size == rank)
        dealt += len(batch)
        if own:
            shares.append(own)
    return shares
