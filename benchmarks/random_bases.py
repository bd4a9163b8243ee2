"""Bases of the true architectures with random weights and toy tokenizers: for timings, which need no trained weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from captune.families._single_file import CONFIGS

VERSIONS = {"sd": "sd1", "sdxl": "sdxl", "flux": "flux"}


def write(family: str, folder: Path, dtype: torch.dtype, device: str = "cpu") -> Path:
    """Write the family's base into the folder, if it is not there yet."""
    if (folder / "model_index.json").exists():
        return folder
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            pipeline = _pipeline(family, CONFIGS / VERSIONS[family])
    finally:
        torch.set_default_dtype(torch.float32)
    pipeline.save_pretrained(folder)
    return folder


def _pipeline(family: str, configs: Path) -> object:
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(str(configs / "vae")))
    clip = CLIPTextModel(CLIPTextConfig.from_pretrained(str(configs / "text_encoder")))
    if family == "flux":
        t5 = T5EncoderModel(T5Config.from_pretrained(str(configs / "text_encoder_2")))
        transformer = FluxTransformer2DModel.from_config(
            FluxTransformer2DModel.load_config(str(configs / "transformer"))
        )
        steps = FlowMatchEulerDiscreteScheduler.from_config(
            FlowMatchEulerDiscreteScheduler.load_config(str(configs / "scheduler"))
        )
        return FluxPipeline(steps, vae, clip, _clip_tokenizer(clip), t5, _t5_tokenizer(), transformer)
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(configs / "unet")))
    steps = DDIMScheduler.from_config(DDIMScheduler.load_config(str(configs / "scheduler")))
    if family == "sdxl":
        second = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(str(configs / "text_encoder_2")))
        words = _clip_tokenizer(clip), _clip_tokenizer(second)
        return StableDiffusionXLPipeline(vae, clip, second, *words, unet, steps, add_watermarker=False)
    return StableDiffusionPipeline(
        vae, clip, _clip_tokenizer(clip), unet, steps, None, None, requires_safety_checker=False
    )


def _clip_tokenizer(encoder: PreTrainedModel) -> CLIPTokenizer:
    """CLIP's tokenizer with letters for words, as many as the encoder has tokens."""
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters)]
    size = encoder.config.vocab_size
    words += [f"filler{i}</w>" for i in range(size - 2 - len(words))] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77)


def _t5_tokenizer() -> T5TokenizerFast:
    pieces = ["<pad>", "</s>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyz,."]
    vocabulary = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)
