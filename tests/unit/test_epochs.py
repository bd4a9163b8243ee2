"""The recommended epoch follows its declared rule: exact on small cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from captune.evaluate.epochs import choose_epochs
from captune.types import EpochChoice, Score


def progress(of_epochs: Mapping[int, Sequence[float]], arm: str = "human", training_seed: int = 0) -> list[Score]:
    """A score per prompt for every epoch."""
    return [
        Score("clip_i", arm, f"{prompt:03d}-0", value, "mini", prompt, training_seed, epoch)
        for epoch, values in of_epochs.items()
        for prompt, value in enumerate(values)
    ]


def chosen(scores: Sequence[Score], higher_is_better: bool = True) -> EpochChoice:
    (found,) = choose_epochs(scores, "clip_i", higher_is_better)
    return found


def test_the_earliest_epoch_within_one_standard_error_of_the_best_is_taken() -> None:
    # Against epoch 4, epoch 2 lacks 0.3, -0.2, 0.2: mean 0.1, error 0.153; epoch 1 lacks 0.3, 0.4, 0.5: error 0.058.
    found = chosen(progress({1: (0.2, 0.1, 0.0), 2: (0.2, 0.7, 0.3), 4: (0.5, 0.5, 0.5)}))
    assert found.recommended == 2
    assert [(epoch, pytest.approx(mean)) for epoch, mean in found.means] == [(1, 0.1), (2, 0.4), (4, 0.5)]
    assert "one standard error" in found.rule and "Breiman" in found.rule


def test_a_later_epoch_is_never_taken_for_being_as_good() -> None:
    assert chosen(progress({1: (0.5, 0.6), 2: (0.5, 0.6), 3: (0.4, 0.7)})).recommended == 1


def test_a_steady_lead_is_not_given_up() -> None:
    assert chosen(progress({1: (0.1, 0.2, 0.3), 2: (0.2, 0.3, 0.4)})).recommended == 2


def test_where_lower_is_better_the_lowest_is_best() -> None:
    scores = progress({1: (0.1, 0.2, 0.3), 2: (0.3, 0.4, 0.5), 3: (0.2, 0.35, 0.45)})
    assert chosen(scores, higher_is_better=False).recommended == 1
    assert chosen(scores).recommended == 2


def test_prompts_are_what_is_paired_over_all_training_seeds() -> None:
    first = progress({1: (0.1, 0.2), 2: (0.3, 0.4)}, training_seed=0)
    second = progress({1: (0.5, 0.6), 2: (0.3, 0.4)}, training_seed=1)
    assert chosen(first).recommended == 2
    assert chosen(first + second).recommended == 1  # the two trainings cancel in every prompt: no lead at all


def test_one_prompt_has_no_error_and_gives_the_best() -> None:
    assert chosen(progress({1: (0.1,), 2: (0.3,), 3: (0.2,)})).recommended == 2


def test_every_arm_with_pictures_of_its_progress_has_a_choice() -> None:
    scores = [
        *progress({1: (0.1, 0.2)}, "human"),
        *progress({2: (0.1, 0.2)}, "blip"),
        *progress({0: (0.1, 0.2)}, "plain"),
    ]
    assert [(c.arm, c.recommended) for c in choose_epochs(scores, "clip_i", True)] == [("human", 1), ("blip", 2)]
    assert choose_epochs(scores, "clip_t", True) == []
    assert choose_epochs(list(reversed(scores)), "clip_i", True)[-1].arm == "human"
