"""How a step is computed: checkpointing and compiling change no loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from captune.errors import RecipeError
from captune.families import Family
from captune.train import execution, memory
from tests.training import load, section, train


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load(tmp_path_factory.mktemp("epsilon"))


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load(tmp_path_factory.mktemp("flux"), "flow_matching")


@pytest.mark.parametrize("kind", ["epsilon", "flow_matching"])
def test_checkpointing_computes_the_same_losses(family: Family, flux: Family, tmp_path: Path, kind: str) -> None:
    base = {"epsilon": family, "flow_matching": flux}[kind]
    options = {"text_encoder_learning_rate": 0.01, "dropout": 0.2, "targets": "all"}
    calls = []
    counted = memory.checkpointed

    def counting(denoiser: Any) -> Any:
        calls.append(denoiser)
        return counted(denoiser)

    plain = train(base, tmp_path / "a", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "checkpointed", counting)
        saved = train(base, tmp_path / "b", gradient_checkpointing=True, **options)
    assert saved[0] == pytest.approx(plain[0], rel=1e-5) and calls
    for name, weight in plain[1].items():
        torch.testing.assert_close(saved[1][name], weight, rtol=1e-3, atol=1e-5)
    assert not calls[0].is_gradient_checkpointing


def test_checkpointing_recomputes_the_text_encoders_layers_too(family: Family) -> None:
    encoder: Any = family.components["text_encoder"]
    some = section(gradient_checkpointing=True, text_encoder_learning_rate=0.1)
    with execution.executed(some, family):
        layers = [m for m in encoder.modules() if isinstance(m, memory.GradientCheckpointingLayer)]
        assert layers and all(layer.gradient_checkpointing and layer.training for layer in layers)
        assert not encoder.training
    assert not any(layer.gradient_checkpointing or layer.training for layer in layers)


def test_a_machine_without_a_compiler_is_told(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    sentence = (
        r"train.compile = true: torch cannot compile for cpu here, which needs a C\+\+ compiler .*No working C\+\+"
    )
    with pytest.raises(RecipeError, match=sentence), execution.executed(section(compile=True), family):
        pass


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_losses(family: Family, tmp_path: Path) -> None:
    try:
        with execution.executed(section(compile=True), family):
            pass
    except RecipeError as error:
        pytest.skip(str(error))
    plain = train(family, tmp_path / "a")
    compiled = train(family, tmp_path / "b", compile=True)
    assert compiled[0] == pytest.approx(plain[0], rel=1e-4)
    assert all(module._compiled_call_impl is None for module in family.components["unet"].modules())
