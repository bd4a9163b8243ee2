"""A randomly initialised SDXL of a few thousand weights: two text encoders of different widths, and a VAE."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests import tiny_sd


def pipeline(prediction_type: str = "epsilon", seed: int = 0) -> StableDiffusionXLPipeline:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16 + 24, transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 24,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=tiny_sd.vae(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(tiny_sd.clip_config(16)),
        text_encoder_2=CLIPTextModelWithProjection(tiny_sd.clip_config(24, hidden_act="gelu")),
        tokenizer=tiny_sd.clip_tokenizer(),
        tokenizer_2=tiny_sd.clip_tokenizer(pad_token="!"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
            prediction_type=prediction_type,
        ),
        add_watermarker=False,
    )  # fmt: skip


def write(folder: Path, prediction_type: str = "epsilon") -> str:
    """Write it into the folder; its path as a recipe would name it."""
    pipeline(prediction_type).save_pretrained(folder)
    return str(folder)


def original(pipe: StableDiffusionXLPipeline) -> dict[str, Tensor]:
    """All its weights as a single file has them."""
    return {
        **tiny_sd.original_unet(pipe.unet),
        **tiny_sd.original_vae(pipe.vae),
        **tiny_sd.original_clip(pipe.text_encoder, "conditioner.embedders.0.transformer."),
        **tiny_sd.original_open_clip(pipe.text_encoder_2.state_dict(), "conditioner.embedders.1.model."),
    }
