"""Stable Diffusion 1.x and 2.x: a CLIP text encoder, a UNet with cross-attention and a VAE, in diffusers' classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionPipeline

from captune.errors import RecipeError
from captune.families import USUAL, Conditioning, LoraTargets, Reading, _clip, _unet

SD2_WIDTH = 1024  # of OpenCLIP-H's hidden states, which 2.x reads; 1.x reads CLIP-L's 768


class StableDiffusion(_unet.UnetPipeline):
    """A loaded Stable Diffusion 1.x or 2.x base, frozen, ready for adapters."""

    name = "sd"
    targets: ClassVar[Mapping[str, LoraTargets]] = {"unet": _unet.TARGETS, "text_encoder": _clip.TARGETS}
    _pipeline_class = StableDiffusionPipeline
    _encoders = ("text_encoder",)
    _loading = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def __init__(self, pipeline: Any, device: torch.device, dtype: torch.dtype):
        super().__init__(pipeline, device, dtype)
        self.version = "sd2" if pipeline.unet.config.cross_attention_dim == SD2_WIDTH else "sd1"

    def encode_prompts(self, prompts: Sequence[str], reading: Reading = USUAL) -> Conditioning:
        """encoder_hidden_states (batch, tokens, width) of prompts: the layer that `reading` says, normalised."""
        ids = _clip.tokenize(self._pipeline.tokenizer, prompts, reading.chunks)
        encoder = self._pipeline.text_encoder
        layers = int(encoder.config.num_hidden_layers)
        if reading.clip_skip > layers:
            raise RecipeError(f"train.clip_skip = {reading.clip_skip}: this base's text encoder has {layers} layers")
        with self._at_work("text_encoder"), self._autocast():
            read = encoder(ids.to(self.device), output_hidden_states=reading.clip_skip > 1)
            hidden = read.last_hidden_state
            if reading.clip_skip > 1:
                hidden = encoder.final_layer_norm(read.hidden_states[-reading.clip_skip])
        return Conditioning(_clip.join_chunks(hidden.float(), reading.chunks))
