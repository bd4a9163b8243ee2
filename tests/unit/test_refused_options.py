"""What cannot be honoured is refused by name, before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from captune import checking, recipe
from captune.errors import CaptuneError, RecipeError
from captune.families import FACTS

RECIPE = {
    "dataset": {"path": "photos"},
    "base": {"model": "somewhere/else"},
    "arm": [{"name": "a", "captioner": {"name": "sidecar"}}],
    "evaluate": {"metrics": []},
}
# A value that sets each option apart from its default, and what the recipe needs to take it.
REFUSED: dict[str, dict[str, Any]] = {
    "min_snr_gamma": {"min_snr_gamma": 5.0},
    "debiased_estimation": {"debiased_estimation": True},
    "noise_offset": {"noise_offset": 0.1},
    "zero_terminal_snr": {"zero_terminal_snr": True},
    "clip_skip": {"clip_skip": 2},
    "caption_chunks": {"caption_chunks": 2},
    "timestep_sampling": {"timestep_sampling": "sigmoid"},
    "timestep_mean": {"timestep_sampling": "logit_normal", "timestep_mean": 1.0},
    "timestep_scale": {"timestep_scale": 2.0},
    "timestep_shift": {"timestep_sampling": "shift", "timestep_shift": 3.0},
}


@pytest.mark.parametrize(
    ("family_name", "option"),
    [(name, option) for name, facts in FACTS.items() for option in facts.cannot if option.startswith("train.")],
)
def test_what_a_family_cannot_honour_is_refused_before_anything_loads(family_name: str, option: str) -> None:
    base = {"model": "somewhere/else", "family": family_name}
    train = {"steps": 1, **REFUSED[option.removeprefix("train.")]}
    with pytest.raises(RecipeError, match=f"{option} does nothing in the family {family_name}"):
        checking.check(recipe.from_values({**RECIPE, "base": base, "train": train}))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr_power": 2.0}, 'lr_power is only read by lr_scheduler = "polynomial"'),
        ({"lr_scheduler_cycles": 2}, 'lr_scheduler_cycles is only read by lr_scheduler = "cosine_with_restarts"'),
        ({"huber_c": 0.2}, "huber_c is only read by loss = huber and smooth_l1"),
        ({"keep_tokens": 1}, "keep_tokens is only read by shuffle_caption and tag_dropout"),
        ({"kind": "loha", "dropout": 0.1}, "dropout is only read by kind = lora and dora"),
        ({"timestep_shift": 3.0}, 'timestep_shift is only read by timestep_sampling = "shift"'),
        ({"timestep_mean": 1.0}, 'timestep_mean is only read by timestep_sampling = "logit_normal"'),
        ({"timestep_sampling": "uniform", "timestep_scale": 2.0}, "timestep_scale is only read by"),
        ({"min_timestep": 500, "max_timestep": 500}, "min_timestep = 500 must be below max_timestep = 500"),
        ({"ranks": {"(": 4}}, r"'\(' is no regular expression"),
    ],
    ids=str,
)
def test_an_option_that_another_leaves_without_effect_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CaptuneError, match=sentence):
        recipe.from_values({**RECIPE, "train": {"steps": 1, **options}})
