"""Randomly initialised SDXL and FLUX pipelines of a few thousand weights in their true layout, and random LoRAs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from captune.exporters import LoraFile
from tests import tiny_sd

CLIP = {
    "vocab_size": 50,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "projection_dim": 12,
}
FAMILIES = ("sd", "sdxl", "flux")


def sdxl() -> StableDiffusionXLPipeline:
    """Three levels of two layers, as the names in SDXL's files count them."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8, 8),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=24,
        attention_head_dim=(1, 2, 2),
        norm_num_groups=2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * 6 + 12,
    )
    return StableDiffusionXLPipeline(
        vae=None,
        text_encoder=CLIPTextModel(CLIPTextConfig(**CLIP)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**CLIP)),
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=DDIMScheduler(),
        add_watermarker=False,
    )


def flux() -> FluxPipeline:
    """Two double and two single blocks."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=12,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=CLIPTextModel(CLIPTextConfig(**CLIP)),
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )


def pipeline(family: str) -> Any:
    return {"sd": tiny_sd.pipeline, "sdxl": sdxl, "flux": flux}[family]()


def components(pipe: Any) -> dict[str, nn.Module]:
    """What a LoRA of the family may change."""
    names = ("unet", "transformer", "text_encoder", "text_encoder_2")
    return {name: part for name in names if (part := getattr(pipe, name, None)) is not None}


def lora(family: str, rank: int = 3, alpha: float = 2.0, keep: str = "") -> LoraFile:
    """A LoRA for every linear layer and convolution whose name has `keep` in it, each with its own down."""
    torch.manual_seed(2)
    modules = [
        tiny_sd.random_module(component, name, module, rank, alpha)
        for component, root in components(pipeline(family)).items()
        for name, module in targets(component, root)
        if keep in name
    ]
    version = {"sd": "sd1", "sdxl": "sdxl", "flux": "flux-dev"}[family]
    objective = "flow_matching" if family == "flux" else "epsilon"
    return LoraFile(family, tuple(modules), {**tiny_sd.FACTS, "objective": objective}, version)


def targets(component: str, root: nn.Module) -> list[tuple[str, nn.Module]]:
    """As tiny_sd.targets, and a text encoder's projection, which lies beside its `text_model`."""
    found = []
    for name, module in tiny_sd.targets(component, root):
        found.append((name.removeprefix("text_model.") if name == "text_model.text_projection" else name, module))
    return found
