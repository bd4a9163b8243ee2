"""The order of a run: every picture as often as it must, sizes apart, and the announced step count is the true one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captune.train.batches import epoch_batches, epoch_steps
from captune.train.plan import count_steps
from captune.types import Example

SIZES = [(64, 64), (64, 96), (96, 64)]


def example(index: int, size: tuple[int, int], repeats: int) -> Example:
    path = Path(f"{index}.png")
    return Example(f"e{index}", path, path, *size, *size, repeats, "0" * 64)


examples = st.lists(st.tuples(st.sampled_from(SIZES), st.integers(1, 5)), min_size=1, max_size=12).map(
    lambda rows: [example(i, size, repeats) for i, (size, repeats) in enumerate(rows)]
)


@given(examples, st.integers(1, 7), st.integers(0, 3))
def test_an_epoch_visits_every_picture_repeats_times_with_fresh_numbers(
    pictures: list[Example], batch_size: int, epoch: int
) -> None:
    visits = [v for batch in epoch_batches(pictures, epoch, batch_size, seed=1) for v in batch]
    assert Counter(v.index for v in visits) == {i: e.repeats for i, e in enumerate(pictures)}
    for index, e in enumerate(pictures):
        numbers = sorted(v.number for v in visits if v.index == index)
        assert numbers == list(range(epoch * e.repeats, (epoch + 1) * e.repeats))


@given(examples, st.integers(1, 7))
def test_a_batch_never_mixes_sizes(pictures: list[Example], batch_size: int) -> None:
    for batch in epoch_batches(pictures, 0, batch_size, seed=1):
        assert len({(pictures[v.index].width, pictures[v.index].height) for v in batch}) == 1
        assert 1 <= len(batch) <= batch_size


@given(examples, st.integers(1, 7), st.integers(1, 4), st.integers(1, 3))
def test_the_announced_steps_are_the_true_ones(
    pictures: list[Example], batch_size: int, accumulation: int, epochs: int
) -> None:
    visits: Counter[tuple[int, int]] = Counter()
    for e in pictures:
        visits[e.width, e.height] += e.repeats
    told = count_steps(visits, batch_size, accumulation, epochs=epochs, steps=None)
    true = [len(epoch_steps(pictures, epoch, batch_size, accumulation, seed=3)) for epoch in range(epochs)]
    assert told.total_steps == sum(true)
    assert set(true) == {told.steps_per_epoch}


@pytest.mark.parametrize(
    ("visits", "steps"),
    # 20 pictures x 10 repeats, batch 4, 10 epochs, as worked out for kohya's sd-scripts; then split 11/9 over buckets
    [({(64, 64): 200}, 500), ({(64, 64): 110, (64, 96): 90}, 510)],
)
def test_steps_are_counted_as_in_kohya(visits: dict[tuple[int, int], int], steps: int) -> None:
    assert count_steps(visits, 4, 1, epochs=10, steps=None).total_steps == steps


def test_steps_given_make_as_many_epochs_as_they_need() -> None:
    told = count_steps({(64, 64): 11}, 4, 1, epochs=None, steps=7)
    assert (told.steps_per_epoch, told.epochs, told.total_steps) == (3, 3, 7)
    assert "ceil(11 / 4) = 3 batches per epoch; 7 steps are 3 epochs" in told.arithmetic


def test_epochs_are_shuffled_differently_and_repeatably() -> None:
    pictures = [example(i, (64, 64), 1) for i in range(12)]
    first, again, second = (epoch_batches(pictures, epoch, 4, seed=5) for epoch in (0, 0, 1))
    assert first == again
    assert [v.index for b in first for v in b] != [v.index for b in second for v in b]
