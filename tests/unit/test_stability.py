"""How much scores vary for no reason but a seed: exact on small cases."""

from __future__ import annotations

import math

import pytest

from captune.evaluate.stability import stability
from captune.types import Score, Stability


def score(
    value: float, prompt: int = 0, seed: int = 0, training_seed: int = 0, arm: str = "human", **others: int
) -> Score:
    return Score("clip_t", arm, f"{prompt:03d}-{seed}", value, "mini", prompt, training_seed, **others)


def test_spread_over_sampling_seeds_is_pooled_within_prompts() -> None:
    """Prompt 0 has 0.1, 0.3 and prompt 1 has 0.6, 0.6, 0.9: (0.02 + 0.06) / (1 + 2), whatever lies between the prompts."""
    scores = [score(v, 0, seed) for seed, v in enumerate((0.1, 0.3))]
    scores += [score(v, 1, seed) for seed, v in enumerate((0.6, 0.6, 0.9))]
    (found,) = stability(scores, "clip_t")
    assert found == Stability("human", "clip_t", pytest.approx(math.sqrt(0.08 / 3)), None)


def test_spread_over_trainings_is_that_of_their_means() -> None:
    scores = [
        score(mean + off, prompt, 0, run) for run, mean in enumerate((0.2, 0.4)) for prompt, off in ((0, 0), (1, 0.1))
    ]
    (found,) = stability(scores, "clip_t")
    assert found.seed_sd is None
    assert found.retrain_sd == pytest.approx(math.sqrt(0.02))


def test_trainings_are_compared_on_the_items_that_all_have() -> None:
    scores = [score(0.2, 0, 0, 0), score(0.9, 1, 0, 0), score(0.2, 0, 0, 1)]
    assert stability(scores, "clip_t")[0].retrain_sd == 0.0


def test_only_finished_adapters_of_arms_count() -> None:
    scores = [
        score(0.2),
        score(0.9, 0, 1, epoch=3),
        score(0.1, arm="base"),
        score(0.3, arm="real"),
        score(0.4, arm="blip"),
    ]
    assert [(s.arm, s.seed_sd, s.retrain_sd) for s in stability(scores, "clip_t")] == [
        ("human", None, None),
        ("blip", None, None),
    ]
    assert stability(scores, "clip_i") == []
