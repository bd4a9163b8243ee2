"""A randomly initialised Stable Diffusion of a few thousand weights, and random LoRAs for it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from captune.exporters import LoraFile, LoraModule

FACTS = {
    "output_name": "run-blip",
    "base_model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "trigger_word": "zorblax",
    "resolution": "64",
    "objective": "epsilon",
}


def unet(linear_projection: bool) -> UNet2DConditionModel:
    """A UNet with every kind of block that SD 1.x has; projections of attention are 1x1 convolutions, or linear."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=linear_projection,
    )


def text_encoder() -> CLIPTextModel:
    torch.manual_seed(1)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=50,
            hidden_size=12,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
        )
    )


def pipeline(linear_projection: bool = False) -> StableDiffusionPipeline:
    """The pipeline as a user has it, without the parts that a LoRA never touches."""
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=text_encoder(),
        tokenizer=None,
        unet=unet(linear_projection),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def targets(component: str, root: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Every linear layer and convolution, a text encoder's named as LoRA files name them."""
    for name, module in root.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bare = component == "text_encoder" and not name.startswith("text_model.")
            yield f"text_model.{name}" if bare else name, module


def random_module(component: str, name: str, module: nn.Module, rank: int, alpha: float) -> LoraModule:
    out, *inner = module.weight.shape
    down = torch.randn(rank, *inner) / 10
    up = torch.randn(out, rank, *([1, 1] if len(inner) == 3 else [])) / 10
    return LoraModule(component, name, down, up, alpha)


def lora(components: dict[str, nn.Module], rank: int = 3, alpha: float = 2.0) -> LoraFile:
    """A LoRA for all of them: attention, feed forward, projections, resnets, down- and upsamplers, embeddings."""
    torch.manual_seed(2)
    modules = [
        random_module(component, name, module, rank, alpha)
        for component, root in components.items()
        for name, module in targets(component, root)
    ]
    return LoraFile("sd", tuple(modules), FACTS)
