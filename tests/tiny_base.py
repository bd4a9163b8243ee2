"""A Stable Diffusion of random weights in a diffusers folder, complete with VAE and tokenizer, that trains in seconds."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

LONGEST = 32
WORDS = ("a red ball", "a blue ball on grass", "two balls", "a ball in the snow, far away", "one more ball")
COLORS = ((200, 30, 40), (30, 60, 200), (90, 200, 90), (230, 230, 240), (120, 90, 20))


def write_tiny_base(folder: Path, prediction_type: str = "epsilon") -> str:
    """Write the model into the folder; its path as a recipe would name it."""
    torch.manual_seed(0)
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    start, end = len(words) - 2, len(words) - 1
    tokenizer = CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=LONGEST)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LONGEST, bos_token_id=start, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4, layers_per_block=1, sample_size=16, mid_block_add_attention=False,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction_type,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return str(folder)


def write_photos(folder: Path, size: int = 24) -> Path:
    """Five one-coloured pictures with a caption beside each."""
    folder.mkdir(parents=True)
    for index, (words, color) in enumerate(zip(WORDS, COLORS, strict=True)):
        Image.new("RGB", (size, size), color).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(words + "\n")
    return folder
