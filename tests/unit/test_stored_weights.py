"""A CPU that computes in bf16 keeps the weights that way: half the memory, and not a bit of the results changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from captune import families
from captune.families.sd import StableDiffusion
from captune.recipe import BaseSection
from tests import tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base.write_tiny_base(tmp_path_factory.mktemp("base"))


def outputs(family: families.Family) -> list[torch.Tensor]:
    channels = family.components["unet"].config.in_channels
    noisy_latents = torch.linspace(-1, 1, 2 * channels * 64).reshape(2, channels, 8, 8)
    conditioning = family.encode_prompts(["a red ball", "a zorblax"])
    with torch.no_grad():
        return [
            family.predict(noisy_latents, torch.tensor([3, 900]), conditioning),
            conditioning.encoder_hidden_states,
        ]


def test_weights_that_autocast_casts_are_kept_cast_and_nothing_else_changes(base: str) -> None:
    stored = families.load(BaseSection(model=base, device="cpu", precision="bf16"))
    pipeline = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    usual = StableDiffusion(pipeline, torch.device("cpu"), torch.bfloat16)
    for mine, theirs in zip(outputs(stored), outputs(usual), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    for module in stored.components["unet"].modules():
        expected = torch.bfloat16 if isinstance(module, nn.Linear | nn.Conv2d) else torch.float32
        assert all(p.dtype == expected for p in module.parameters(recurse=False))


def test_in_fp32_weights_stay_as_they_are(base: str) -> None:
    family = families.load(BaseSection(model=base, device="cpu", precision="fp32"))
    assert all(p.dtype == torch.float32 for p in family.components["unet"].parameters())


def test_pages_that_are_forgotten_are_read_again(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from captune.families import _frozen

    values = torch.arange(1 << 16, dtype=torch.float32)
    save_file({"x": values}, tmp_path / "x.safetensors")
    before = _frozen._mapped()
    mapped = load_file(tmp_path / "x.safetensors")["x"]
    assert torch.equal(mapped, values)
    _frozen._forget(_frozen._mapped() - before)
    assert torch.equal(mapped, values)
