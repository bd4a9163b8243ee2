"""The learning rate's curve, by its closed form."""

from __future__ import annotations

import math

import pytest
from torch import nn

from captune.recipe import TrainSection
from captune.train.optimizers import build_optimizer, lr_factor, set_learning_rate


def factors(total: int = 12, **values: object) -> list[float]:
    section = TrainSection(steps=total, **values)  # type: ignore[arg-type]
    return [lr_factor(section, step, total) for step in range(total)]


def test_constant_is_constant() -> None:
    assert factors() == [1.0] * 12


def test_linear_falls_to_nothing() -> None:
    assert factors(4, lr_scheduler="linear") == pytest.approx([1, 0.75, 0.5, 0.25])


def test_cosine_is_half_a_wave() -> None:
    assert factors(4, lr_scheduler="cosine") == pytest.approx([(1 + math.cos(math.pi * p / 4)) / 2 for p in range(4)])


def test_restarts_jump_back_to_the_full_rate() -> None:
    curve = factors(12, lr_scheduler="cosine_with_restarts", lr_scheduler_cycles=3)
    assert curve[0] == curve[4] == curve[8] == 1.0
    assert curve[3] < curve[2] < curve[1] < 1.0


def test_warm_up_rises_from_nothing() -> None:
    assert factors(8, lr_warmup_steps=4)[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_components_have_rates_of_their_own() -> None:
    parameters = {"unet.a": nn.Parameter(), "text_encoder.b": nn.Parameter()}
    section = TrainSection(steps=1, learning_rate=1e-3, text_encoder_learning_rate=1e-4)
    optimizer = build_optimizer(section, parameters)
    set_learning_rate(optimizer, 0.5)
    assert {g["component"]: g["lr"] for g in optimizer.param_groups} == {"unet": 5e-4, "text_encoder": 5e-5}
