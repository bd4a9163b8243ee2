"""Timesteps and noise of a visit: schedules, ranges, perturbation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from captune import checking, recipe
from captune.errors import RecipeError
from captune.families import Family
from captune.objective import NoiseSchedule
from captune.train import noise
from tests.training import LATENT, WHO, equal, load, section, train


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load(tmp_path_factory.mktemp("epsilon"))


@pytest.mark.parametrize(("kind", "refused"), [("epsilon", True), ("v_prediction", False), (None, False)])
def test_a_folder_that_says_so_is_refused_before_it_is_loaded(kind: str | None, refused: bool, tmp_path: Path) -> None:
    model = "someone/some-model"  # whose scheduler is not on this machine
    if kind is not None:
        model = str(tmp_path)
        (tmp_path / "scheduler").mkdir()
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": kind}))
    arm = {"name": "a", "captioner": {"name": "sidecar"}}
    values = {
        "dataset": {"path": "photos"}, "base": {"model": model}, "arm": [arm], "evaluate": {"metrics": []},
        "train": {"steps": 1, "zero_terminal_snr": True},
    }  # fmt: skip
    if refused:
        with pytest.raises(RecipeError, match="train: zero_terminal_snr = true: this base predicts the noise"):
            checking.check(recipe.from_values(values))
    else:
        checking.check(recipe.from_values(values))


@pytest.fixture(scope="module")
def predicts_v(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load(tmp_path_factory.mktemp("v"), "v_prediction")


def test_zero_terminal_snr_trains_on_the_rescaled_schedule(predicts_v: Family, tmp_path: Path) -> None:
    schedule = noise.schedule_of(section(zero_terminal_snr=True), predicts_v)
    assert schedule.alphas_cumprod is not None and schedule.alphas_cumprod[-1] == 0
    last = torch.tensor([schedule.length - 1])
    pure = torch.randn(1, 4, 2, 2)
    assert torch.equal(schedule.add_noise(torch.randn(1, 4, 2, 2), pure, last), pure)
    losses, rescaled = train(predicts_v, tmp_path / "a", zero_terminal_snr=True, min_snr_gamma=5, min_timestep=998)
    _, plain = train(predicts_v, tmp_path / "b", min_snr_gamma=5, min_timestep=998)
    assert np.isfinite(losses).all() and not equal(rescaled, plain)


def test_zero_terminal_snr_is_refused_where_noise_is_predicted(family: Family, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.zero_terminal_snr = true: this base predicts the noise"):
        train(family, tmp_path, zero_terminal_snr=True)


def test_pictures_are_drawn_with_the_schedule_that_was_trained_on(predicts_v: Family) -> None:
    how = {"steps": 3, "guidance_scale": 1.0, "negative_prompt": "", "width": 16, "height": 16}
    usual, rescaled = (
        np.asarray(predicts_v.generate(["a ball"], [0], **how, zero_terminal_snr=on)[0]) for on in (False, True)
    )
    assert (usual != rescaled).any()


def test_timesteps_keep_to_their_range() -> None:
    schedule = NoiseSchedule("epsilon", torch.linspace(0.99, 0.01, 1000))
    some = section(min_timestep=100, max_timestep=103)
    drawn = {int(noise.timestep_of(some, schedule, LATENT, (0, "a", n))) for n in range(60)}
    assert drawn == {100, 101, 102}


@pytest.mark.parametrize("how", ["uniform", "sigmoid", "logit_normal", "shift"])
def test_a_flows_timesteps_are_cut_from_their_distribution(how: str) -> None:
    """Within the range they are as frequent as without it: a draw at quantile q is the cut distribution's quantile q."""
    schedule = NoiseSchedule("flow_matching")
    cut = section(timestep_sampling=how, min_timestep=200, max_timestep=600)
    found = sorted(float(noise.timestep_of(cut, schedule, LATENT, (0, "a", n))) for n in range(400))
    every = [
        float(noise.timestep_of(section(timestep_sampling=how), schedule, LATENT, (0, "a", n))) for n in range(2000)
    ]
    inside = sorted(t for t in every if 200 <= t < 600)
    assert found[0] >= 200 and found[-1] < 600
    assert np.quantile(found, [0.25, 0.5, 0.75]) == pytest.approx(np.quantile(inside, [0.25, 0.5, 0.75]), abs=25)


def test_an_input_perturbation_is_not_in_the_target() -> None:
    drawn = noise.noise_of(section(), LATENT, WHO)
    moved = noise.perturbed(section(ip_noise_gamma=0.1), drawn, WHO)
    other = (moved - drawn) / 0.1
    assert abs(float((other * drawn).mean())) < 0.3 and other.std() == pytest.approx(1, abs=0.2)
    assert torch.equal(noise.perturbed(section(), drawn, WHO), drawn)
    assert torch.equal(noise.noise_of(section(ip_noise_gamma=0.1), LATENT, WHO), drawn)
