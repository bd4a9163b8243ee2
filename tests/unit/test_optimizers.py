"""The learning rate's curve by its closed form, and optimizers: chosen by name, refused by name, resumed exactly."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from captune.errors import RecipeError
from captune.recipe import TrainSection
from captune.train import optimizers
from captune.train.optimizers import OPTIMIZERS, build_optimizer, check, lr_factor, set_learning_rate


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


def test_polynomial_is_a_power_of_what_remains() -> None:
    curve = factors(4, lr_scheduler="polynomial", lr_power=2.0)
    assert curve == pytest.approx([1, 0.75**2, 0.5**2, 0.25**2])
    assert factors(4, lr_scheduler="polynomial") == factors(4, lr_scheduler="linear")


# What each needs beside its name to be taken.
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adafactor": {},
    "prodigy": {"learning_rate": 1.0},
    "lion": {},
    "schedule_free_adamw": {},
    "torch.optim:NAdam": {},
}


def section(name: str, **values: Any) -> TrainSection:
    return TrainSection(**{"steps": 1, "optimizer": name, "learning_rate": 0.01, **SETTINGS.get(name, {}), **values})


def installed(name: str) -> bool:
    place = OPTIMIZERS[name].place if name in OPTIMIZERS else name
    return importlib.util.find_spec(place.partition(":")[0].partition(".")[0]) is not None


def steps(optimizer: torch.optim.Optimizer, weight: nn.Parameter, numbers: range) -> None:
    for number in numbers:
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
        optimizer.step()


@pytest.mark.parametrize("name", SETTINGS)
def test_an_optimizer_goes_on_from_its_state_as_if_nothing_had_been(name: str) -> None:
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    weight, again = (nn.Parameter(torch.ones(4, 3)) for _ in range(2))
    optimizer = build_optimizer(section(name), {"unet.a": weight})
    steps(optimizer, weight, range(3))
    state, middle = copy.deepcopy(optimizer.state_dict()), weight.detach().clone()
    steps(optimizer, weight, range(3, 6))
    resumed = build_optimizer(section(name), {"unet.a": again})
    with torch.no_grad():
        again.copy_(middle)
    resumed.load_state_dict(state)
    steps(resumed, again, range(3, 6))
    assert not torch.equal(weight, torch.ones(4, 3))
    assert torch.equal(weight, again)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_result_is_lent_and_the_weights_to_train_on_come_back(name: str) -> None:
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    weight, other = (nn.Parameter(torch.ones(4, 3)) for _ in range(2))
    optimizer = build_optimizer(section(name), {"unet.a": weight})
    plain = build_optimizer(section(name), {"unet.a": other})
    for number in range(4):
        steps(optimizer, weight, range(number, number + 1))
        steps(plain, other, range(number, number + 1))
        before = weight.detach().clone()
        with optimizers.result(optimizer):
            assert torch.equal(weight, before) == (name != "schedule_free_adamw" or number == 0)
        assert torch.equal(weight, before)
    assert torch.equal(weight, other)


def test_a_schedule_free_result_is_the_average_of_its_steps() -> None:
    """With betas (0, ...) its gradient is taken at z, and x is the mean of all z (Defazio et al. 2024, eq. 3-5)."""
    if not installed("schedule_free_adamw"):
        pytest.skip("schedulefree is not installed")
    weight = nn.Parameter(torch.zeros(3))
    optimizer = build_optimizer(section("schedule_free_adamw", weight_decay=0.0), {"unet.a": weight})
    visited = []
    for number in range(4):
        steps(optimizer, weight, range(number, number + 1))
        visited.append(optimizer.state[weight]["z"].clone())
    with optimizers.result(optimizer):
        torch.testing.assert_close(weight.data, torch.stack(visited).mean(0))


def test_lion_steps_by_the_sign() -> None:
    if not installed("lion"):
        pytest.skip("lion-pytorch is not installed")
    weight = nn.Parameter(torch.zeros(3))
    optimizer = build_optimizer(section("lion", weight_decay=0.0), {"unet.a": weight})
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    weight.grad = torch.tensor([0.1, -5.0, 0.0])
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([-0.01, 0.01, 0.0]))


def test_adafactor_keeps_to_the_recipes_rate() -> None:
    weight = nn.Parameter(torch.zeros(3, 2))
    optimizer = build_optimizer(section("adafactor", weight_decay=0.0), {"unet.a": weight})
    assert set_learning_rate(optimizer, 0.0) == 0
    steps(optimizer, weight, range(2))
    assert not weight.any()


def test_settings_and_options_reach_the_class() -> None:
    made = build_optimizer(
        section("adamw", betas=(0.5, 0.6), weight_decay=0.3, optimizer_options={"eps": 1e-3}),
        {"unet.a": nn.Parameter()},
    )
    group = made.param_groups[0]
    assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.5, 0.6), 0.3, 1e-3)
    usual = build_optimizer(section("adamw"), {"unet.a": nn.Parameter()}).param_groups[0]
    assert (usual["betas"], usual["weight_decay"]) == ((0.9, 0.999), 0.01)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("adamv", {}, r"unknown train.optimizer 'adamv'; did you mean 'adamw'"),
    ("nowhere:Class", {}, "'nowhere:Class' cannot be loaded"),
    ("torch.optim:Nothing", {}, "'torch.optim:Nothing' cannot be loaded"),
    ("adamw", {"optimizer_options": {"lr": 1.0}}, "optimizer_options.lr: give train.learning_rate instead"),
    (
        "adamw",
        {"optimizer_options": {"d_coef": 2.0}},
        r"optimizer_options.d_coef: adamw has no such option \(known: .*eps",
    ),
    ("adafactor", {"betas": (0.9, 0.99)}, r"train.betas = \(0.9, 0.99\) does nothing with the optimizer adafactor"),
    (
        "torch.optim:Rprop",
        {},
        "train.weight_decay = 0.01 does nothing with the optimizer torch.optim:Rprop: set it to 0",
    ),
    ("prodigy", {"learning_rate": 1e-4}, "train.learning_rate = 0.0001: prodigy finds the rate itself"),
    ("prodigy", {"text_encoder_learning_rate": 0.5}, "train.text_encoder_learning_rate = 0.5: prodigy has one rate"),
    ("schedule_free_adamw", {"lr_scheduler": "cosine"}, 'train.lr_scheduler = "cosine": schedule_free_adamw averages'),
    ("schedule_free_adamw", {"ema": 0.99}, "train.ema = 0.99: schedule_free_adamw's result is an average already"),
]


@pytest.mark.parametrize(("name", "values", "sentence"), REFUSED)
def test_what_an_optimizer_would_not_read_is_refused(name: str, values: dict[str, Any], sentence: str) -> None:
    if name in OPTIMIZERS and not installed(name):
        pytest.skip(f"{name} is not installed")
    with pytest.raises(RecipeError, match=sentence):
        check(section(name, **values))


@pytest.mark.parametrize("name", [name for name, choice in OPTIMIZERS.items() if choice.extra])
def test_a_missing_extra_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(RecipeError, match=rf"pip install 'captune\[{OPTIMIZERS[name].extra}\]'"):
        check(section(name))


def test_eight_bits_need_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class AdamW8bit(torch.optim.AdamW):
        def __init__(self, params: Any, lr: float = 1e-3, betas: Any = (0.9, 0.999), weight_decay: float = 0.0) -> None:
            super().__init__(params, lr, betas, weight_decay=weight_decay)
            made.append(self)

    package = types.ModuleType("bitsandbytes.optim")
    package.AdamW8bit = AdamW8bit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", package)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="'adamw8bit' needs a CUDA GPU, and this machine has none"):
        check(section("adamw8bit"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check(section("adamw8bit"))
    with pytest.raises(RecipeError, match="needs a CUDA GPU, and this training is on cpu"):
        build_optimizer(section("adamw8bit"), {"unet.a": nn.Parameter(torch.ones(2))})
    assert not made
