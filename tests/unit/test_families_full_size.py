"""The real architectures, without their weights: what a LoRA changes in them, and what their checkpoint files are called."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from captune import adapters
from captune.families import LoraTargets, _single_file
from captune.families.flux import Flux
from captune.families.sd import StableDiffusion
from captune.families.sdxl import StableDiffusionXL
from tests import tiny_flux, tiny_sd

FAMILIES = {"sd1": StableDiffusion, "sd2": StableDiffusion, "sdxl": StableDiffusionXL, "flux": Flux}
DIFFUSERS = {"unet": UNet2DConditionModel, "transformer": FluxTransformer2DModel, "vae": AutoencoderKL}
TEXT = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}


@cache
def part(version: str, name: str) -> nn.Module:
    """One part of a base in its true size, on the meta device."""
    folder = str(_single_file.CONFIGS / version / name)
    with torch.device("meta"):
        if name in DIFFUSERS:
            return DIFFUSERS[name].from_config(DIFFUSERS[name].load_config(folder))
        if version == "flux" and name == "text_encoder_2":
            return T5EncoderModel(T5Config.from_pretrained(folder))
        return TEXT[name](CLIPTextConfig.from_pretrained(folder))


def weights(version: str, name: str) -> int:
    return sum(p.numel() for p in part(version, name).parameters())


def targets(version: str, component: str) -> LoraTargets:
    return FAMILIES[version].targets[component]


def hit(version: str, component: str, preset: str) -> dict[str, nn.Module]:
    """The modules of a component that a LoRA of this preset changes, by name."""
    root = part(version, component)
    pattern = targets(version, component).presets[preset]
    adapters.inject({component: root}, adapters.LoraSpec(1, 1.0, {component: pattern}), seed=0)
    try:
        return {name: layer.get_base_layer() for name, layer in adapters.lora_layers(root).items()}
    finally:
        adapters.remove({component: root})


@pytest.mark.parametrize(
    ("version", "name", "millions"),
    # as the model cards and papers say: SD 1.5 860M, SDXL 2.6B and 817M of text encoders, FLUX 12B and T5-XXL's encoder 4.7B
    [
        ("sd1", "unet", 860), ("sd1", "text_encoder", 123), ("sd1", "vae", 84),
        ("sd2", "unet", 866), ("sd2", "text_encoder", 340),
        ("sdxl", "unet", 2567), ("sdxl", "text_encoder", 123), ("sdxl", "text_encoder_2", 695),
        ("flux", "transformer", 11901), ("flux", "text_encoder_2", 4762), ("flux", "vae", 84),
    ],
)  # fmt: skip
def test_the_sizes_of_the_originals_are_those_published(version: str, name: str, millions: int) -> None:
    assert round(weights(version, name) / 1e6) == millions


@pytest.mark.parametrize(
    ("version", "component", "preset", "count"),
    [
        ("sd1", "unet", "attention", 128),  # 8 in each of 16 transformer blocks
        ("sd1", "unet", "attention+feed_forward", 192),  # kohya's: 2 feed forward and 2 projections more in each
        ("sd1", "text_encoder", "all", 72),  # 12 layers of 6
        ("sd2", "unet", "attention+feed_forward", 192),
        ("sd2", "text_encoder", "all", 138),  # 23 layers
        ("sdxl", "unet", "attention", 560),  # 8 in each of 70
        ("sdxl", "unet", "attention+feed_forward", 722),  # kohya's: 10 in each of 70, 2 projections of 11 attentions
        ("sdxl", "text_encoder", "all", 72),
        ("sdxl", "text_encoder_2", "all", 192),  # 32 layers
        ("flux", "transformer", "attention", 19 * 8 + 38 * 3),
        ("flux", "transformer", "attention+feed_forward", 19 * 14 + 38 * 6),  # 304 in kohya's files: below
        ("flux", "text_encoder", "all", 72),
    ],
)
def test_presets_hit_the_published_numbers_of_modules(version: str, component: str, preset: str, count: int) -> None:
    assert len(hit(version, component, preset)) == count


def test_projections_are_convolutions_in_sd1_and_linear_later() -> None:
    kinds = {
        version: Counter(type(module).__name__ for module in hit(version, "unet", "attention+feed_forward").values())
        for version in ("sd1", "sd2", "sdxl")
    }
    assert kinds == {"sd1": {"Linear": 160, "Conv2d": 32}, "sd2": {"Linear": 192}, "sdxl": {"Linear": 722}}


def test_fluxs_modules_are_kohyas_304_in_the_original_layout() -> None:
    """Every fused weight of the 19 double and 38 single blocks is covered in full, and nothing else is."""
    root = part("flux", "transformer")
    assert isinstance(root, FluxTransformer2DModel)
    marked = {f"{name}.weight" for name in hit("flux", "transformer", "attention+feed_forward")}
    # rows that a LoRA changes are ones; the layout's own conversion then says where they lie in the fused weights
    state = {
        n: torch.full((v.shape[0], 1), float(n in marked)) if v.ndim == 2 else v for n, v in root.state_dict().items()
    }
    original = tiny_flux.original(state, root.config)
    blocks = {n: v for n, v in original.items() if re.match(r"(double|single)_blocks\.", n) and n.endswith(".weight")}
    assert len(blocks) == 304
    assert all(value.all() for value in blocks.values())
    assert not any(v.any() for n, v in original.items() if n not in blocks and v.ndim == 2)
    assert blocks["double_blocks.18.img_attn.qkv.weight"].shape[0] == 3 * 3072
    assert blocks["single_blocks.37.linear1.weight"].shape[0] == 3 * 3072 + 12288


@pytest.mark.parametrize("version", ["sd1", "sd2", "sdxl", "flux"])
def test_the_originals_files_convert_to_exactly_these_weights(version: str) -> None:
    """Names and shapes, by diffusers' converters and our sizes, from the layout that the makers' files have."""
    name = "transformer" if version == "flux" else "unet"
    root = part(version, name)
    original = tiny_flux.original(root.state_dict(), root.config) if version == "flux" else tiny_sd.original_unet(root)  # type: ignore[arg-type]
    converted = _single_file.CONVERTERS[name](dict(original), config=root.config)
    assert {n: v.shape for n, v in converted.items()} == {n: v.shape for n, v in root.state_dict().items()}
    vae = part(version, "vae")
    prefix = "vae." if version == "flux" else "first_stage_model."
    converted = _single_file.CONVERTERS["vae"](tiny_sd.original_vae(vae, prefix), config=vae.config)  # type: ignore[arg-type]
    assert {n: v.shape for n, v in converted.items()} == {n: v.shape for n, v in vae.state_dict().items()}
