"""Every option of [train] changes the result, by its closed form where there is one, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captune.families import Family
from captune.recipe import TrainSection
from tests.training import equal, load, train


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load(tmp_path_factory.mktemp("epsilon"))


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load(tmp_path_factory.mktemp("flux"), "flow_matching")


# Options, and what must be set for them to be read: both are trained, the second alone and the two together.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "kind = dora": ({"kind": "dora"}, {}),
    "kind = loha": ({"kind": "loha"}, {}),
    "kind = lokr": ({"kind": "lokr"}, {}),
    "rank": ({"rank": 3}, {}),
    "ranks": ({"ranks": {"attn1": 3}}, {}),
    "alpha": ({"alpha": 4.0}, {}),
    "dropout": ({"dropout": 0.5}, {}),
    "dropout of dora": ({"dropout": 0.5}, {"kind": "dora"}),
    "dropout of text encoders": ({"dropout": 0.5}, {"text_encoder_learning_rate": 0.01}),
    "targets": ({"targets": "all"}, {}),
    "text_encoder_learning_rate": ({"text_encoder_learning_rate": 0.01}, {}),
    "learning_rate": ({"learning_rate": 0.02}, {}),
    "optimizer": ({"optimizer": "adafactor"}, {}),
    "optimizer_options": ({"optimizer_options": {"eps": 0.1}}, {}),
    "lr_scheduler": ({"lr_scheduler": "cosine"}, {}),
    "lr_power": ({"lr_power": 3.0}, {"lr_scheduler": "polynomial"}),
    "lr_scheduler_cycles": ({"lr_scheduler_cycles": 2}, {"lr_scheduler": "cosine_with_restarts"}),
    "lr_warmup_steps": ({"lr_warmup_steps": 2}, {}),
    "batch_size": ({"batch_size": 2}, {}),
    "gradient_accumulation": ({"gradient_accumulation": 3}, {"batch_size": 1}),
    "weight_decay": ({"weight_decay": 0.5}, {}),
    "betas": ({"betas": (0.5, 0.6)}, {}),
    "max_grad_norm": ({"max_grad_norm": 1e-9}, {}),
    "min_snr_gamma": ({"min_snr_gamma": 5.0}, {}),
    "debiased_estimation": ({"debiased_estimation": True}, {}),
    "loss = huber": ({"loss": "huber"}, {}),
    "loss = smooth_l1": ({"loss": "smooth_l1"}, {}),
    "huber_c": ({"huber_c": 0.5}, {"loss": "huber"}),
    "min_timestep": ({"min_timestep": 900}, {}),
    "max_timestep": ({"max_timestep": 100}, {}),
    "ip_noise_gamma": ({"ip_noise_gamma": 0.5}, {}),
    "noise_offset": ({"noise_offset": 0.5}, {}),
    "flip": ({"flip": True}, {}),
    "caption_dropout": ({"caption_dropout": 0.5}, {}),
    "shuffle_caption": ({"shuffle_caption": True}, {}),
    "tag_dropout": ({"tag_dropout": 0.5}, {}),
    "keep_tokens": ({"keep_tokens": 3}, {"shuffle_caption": True}),
    "keep_tokens of tag_dropout": ({"keep_tokens": 3}, {"tag_dropout": 0.5}),
    "caption_chunks": ({"caption_chunks": 2}, {}),
    "clip_skip": ({"clip_skip": 2}, {}),
    "seed": ({"seed": 2}, {}),
    "steps": ({"steps": 2}, {}),
    "epochs": ({"epochs": 1, "steps": None}, {}),
    "ema": ({"ema": 0.5}, {}),
}
# The same for FLUX.
FLUX_CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "timestep_sampling = uniform": ({"timestep_sampling": "uniform"}, {}),
    "timestep_sampling = shift": ({"timestep_sampling": "shift"}, {}),
    "timestep_mean": ({"timestep_mean": 1.0}, {"timestep_sampling": "logit_normal"}),
    "timestep_scale": ({"timestep_scale": 2.0}, {}),
    "timestep_shift": ({"timestep_shift": 9.0}, {"timestep_sampling": "shift"}),
    "min_timestep": ({"min_timestep": 700}, {}),
    "max_timestep": ({"max_timestep": 300}, {}),
    "ip_noise_gamma": ({"ip_noise_gamma": 0.5}, {}),
    "loss = huber": ({"loss": "huber"}, {}),
    "kind = loha": ({"kind": "loha"}, {}),
    "shuffle_caption": ({"shuffle_caption": True}, {}),
}
# Options that need another base, masks or held-out pictures to change the result: the test that shows it.
CHANGES_ELSEWHERE = {
    "zero_terminal_snr": "test_train_noise:test_zero_terminal_snr_trains_on_the_rescaled_schedule",
    "masked_loss": "test_masks:test_a_mask_leaves_out_of_the_loss_what_is_black",
    "stop_after": "test_loop:test_training_stops_when_the_held_out_loss_does_not_improve",
}
# Options that do not shape the LoRA: why, and the test of what they are for.
SHAPES_NOTHING = {
    "gradient_checkpointing": ("memory", "test_execution:test_checkpointing_computes_the_same_losses"),
    "compile": ("speed", "test_execution:test_compiled_blocks_compute_the_same_losses"),
    "save_every_epochs": ("files on the way", "test_train_options:test_files_on_the_way_leave_the_result_as_it_is"),
    "save_every_steps": ("files on the way", "test_train_options:test_files_on_the_way_leave_the_result_as_it_is"),
    "keep_last": ("files on the way", "test_train_options:test_files_on_the_way_leave_the_result_as_it_is"),
    "checkpoint_every_steps": (
        "where a killed run continues",
        "test_loop:test_killed_at_any_step_and_resumed_it_ends_with_the_same_bits",
    ),
}


def test_every_option_of_the_section_is_accounted_for() -> None:
    tested = {option for table in (CHANGES, FLUX_CHANGES) for options, _ in table.values() for option in options}
    assert tested | set(CHANGES_ELSEWHERE) | set(SHAPES_NOTHING) == set(TrainSection.model_fields)
    assert not (tested & set(SHAPES_NOTHING) or set(CHANGES_ELSEWHERE) & set(SHAPES_NOTHING))
    for place in [*CHANGES_ELSEWHERE.values(), *(test for _, test in SHAPES_NOTHING.values())]:
        file, _, name = place.partition(":")
        assert f"def {name}(" in Path(__file__).with_name(f"{file}.py").read_text(encoding="utf-8"), place


@pytest.fixture(scope="module")
def plain(family: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """What is trained without the options, by what they need."""
    needs = {json.dumps(needed): needed for _, needed in CHANGES.values()}
    return {key: train(family, tmp_path_factory.mktemp("plain"), **needed)[1] for key, needed in needs.items()}


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_changes_what_is_learned(
    family: Family, plain: dict[str, dict[str, torch.Tensor]], tmp_path: Path, name: str
) -> None:
    options, needed = CHANGES[name]
    losses, weights = train(family, tmp_path / "once", **{**needed, **options})
    assert np.isfinite(losses).all()
    assert not equal(weights, plain[json.dumps(needed)])
    again, same = train(family, tmp_path / "twice", **needed, **options)
    assert losses == again and equal(weights, same)


@pytest.fixture(scope="module")
def plain_flux(flux: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    needs = {json.dumps(needed): needed for _, needed in FLUX_CHANGES.values()}
    return {key: train(flux, tmp_path_factory.mktemp("plain"), **needed)[1] for key, needed in needs.items()}


@pytest.mark.parametrize("name", FLUX_CHANGES)
def test_an_option_changes_what_flux_learns(
    flux: Family, plain_flux: dict[str, dict[str, torch.Tensor]], tmp_path: Path, name: str
) -> None:
    options, needed = FLUX_CHANGES[name]
    assert not equal(train(flux, tmp_path, **needed, **options)[1], plain_flux[json.dumps(needed)])


def test_files_on_the_way_leave_the_result_as_it_is(
    family: Family, plain: dict[str, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    def files(**options: Any) -> set[str]:
        folder = tmp_path / "-".join(options)
        assert equal(train(family, folder, **options)[1], plain["{}"])
        return {path.stem for path in folder.glob("*.safetensors")} - {"adapter"}

    assert files(save_every_steps=2) == {"step-000002"}
    assert files(save_every_epochs=1) == {"epoch-001", "epoch-002", "epoch-003"}
    assert files(save_every_epochs=1, keep_last=2) == {"epoch-002", "epoch-003"}
