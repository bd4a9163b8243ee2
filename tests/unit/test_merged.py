"""Facts about the whole model with a LoRA in its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file

from captune import exporters
from captune.errors import ModelError, RecipeError
from captune.exporters import LoraFile
from captune.exporters.merged import Merged
from captune.exporters.peft import Peft
from tests import tiny_base, tiny_families, tiny_flux, tiny_sd, tiny_sdxl

QUIET = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base.write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def load(folder: str | Path) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, **QUIET)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def trained(base: str) -> LoraFile:
    pipe = load(base)
    return tiny_sd.lora({"unet": pipe.unet, "text_encoder": pipe.text_encoder})


def picture(pipe: Any, side: int = 16) -> np.ndarray[Any, Any]:
    seed = torch.Generator().manual_seed(1)
    made = pipe("a ball", num_inference_steps=3, width=side, height=side, output_type="np", generator=seed)
    return np.asarray(made.images[0])


def test_merged_model_draws_what_the_base_draws_with_the_lora(base: str, tmp_path: Path) -> None:
    lora = trained(base)
    Merged(lambda: load(base)).write(lora, tmp_path / "model", "fp32")
    Peft().write(lora, tmp_path / "lora.diffusers.safetensors", "fp32")
    with_lora = load(base)
    with_lora.load_lora_weights(tmp_path, weight_name="lora.diffusers.safetensors")
    expected, plain = picture(with_lora), picture(load(base))
    assert np.abs(expected - plain).max() > 0.01
    np.testing.assert_allclose(picture(load(tmp_path / "model")), expected, atol=1e-4)


@pytest.mark.parametrize(("tiny", "kind"), [(tiny_sdxl, StableDiffusionXLPipeline), (tiny_flux, FluxPipeline)])
def test_the_other_families_are_merged_too(tiny: Any, kind: Any, tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "base")

    def drawn(place: str | Path, lora: str = "") -> np.ndarray[Any, Any]:
        pipe = kind.from_pretrained(place, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        if lora:
            pipe.load_lora_weights(tmp_path, weight_name=lora)
        return picture(pipe, 32)

    torch.manual_seed(0)
    parts = tiny_families.components(kind.from_pretrained(folder, local_files_only=True))
    modules = [
        tiny_sd.random_module(component, name, module, 2, 1.0)
        for component, root in parts.items()
        for name, module in tiny_families.targets(component, root)
        if "attn" in name and not (component == "text_encoder_2" and kind is FluxPipeline)
    ]
    lora = LoraFile("flux" if kind is FluxPipeline else "sdxl", tuple(modules), tiny_sd.FACTS)
    Merged(lambda: kind.from_pretrained(folder, local_files_only=True)).write(lora, tmp_path / "model", "fp32")
    Peft().write(lora, tmp_path / "lora.safetensors", "fp32")
    expected = drawn(folder, "lora.safetensors")
    assert np.abs(expected - drawn(folder)).max() > 1e-3
    np.testing.assert_allclose(drawn(tmp_path / "model"), expected, atol=1e-4)


def test_merged_folder_is_one_that_older_transformers_read_too(base: str, tmp_path: Path) -> None:
    Merged(lambda: load(base)).write(trained(base), tmp_path / "model", "fp16")
    root = tmp_path / "model"
    weights = load_file(root / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in weights)
    assert {value.dtype for value in load_file(root / "unet" / "diffusion_pytorch_model.safetensors").values()} == {
        torch.float16
    }
    assert {value.dtype for value in load_file(root / "vae" / "diffusion_pytorch_model.safetensors").values()} == {
        torch.float32
    }
    told = json.loads((root / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert json.loads((root / "tokenizer" / "vocab.json").read_text()) == told
    assert (root / "tokenizer" / "merges.txt").read_text().startswith("#version")
    written = "".join(p.read_text() for p in root.rglob("*.json"))
    assert str(tmp_path) not in written and base not in written


def test_merged_folder_takes_the_place_of_an_older_one_as_a_whole(base: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "left.txt").write_text("from before")
    Merged(lambda: load(base)).write(trained(base), tmp_path / "model", "fp16")
    assert not (tmp_path / "model" / "left.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_lora_of_another_base_is_refused_by_module(base: str, tmp_path: Path) -> None:
    lora = trained(base)
    stray = exporters.LoraModule("unet", "down_blocks.7.conv", torch.ones(1, 3), torch.ones(3, 1), 1.0)
    narrow = exporters.LoraModule("unet", "conv_in", torch.ones(1, 3, 3, 3), torch.ones(8, 1, 1, 1), 1.0)
    for module, words in ((stray, "has no unet.down_blocks.7.conv"), (narrow, "trained on another base")):
        with pytest.raises(ModelError, match=words):
            Merged(lambda: load(base)).write(LoraFile("sd", (module,), lora.facts), tmp_path / "model", "fp32")
    assert list(tmp_path.iterdir()) == []


def test_merged_asks_for_its_base() -> None:
    with pytest.raises(RecipeError, match="holds the whole base model"):
        exporters.load("merged")
