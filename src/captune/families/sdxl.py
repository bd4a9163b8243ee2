"""Stable Diffusion XL: two CLIP text encoders, and a UNet that is told where the picture was cut from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from captune.families import USUAL, Conditioning, Extent, LoraTargets, Reading, _clip, _unet


class StableDiffusionXL(_unet.UnetPipeline):
    """A loaded SDXL base, frozen, ready for adapters."""

    name = "sdxl"
    version = "sdxl"
    targets: ClassVar[Mapping[str, LoraTargets]] = {
        "unet": _unet.TARGETS,
        "text_encoder": _clip.TARGETS,
        "text_encoder_2": _clip.TARGETS,
    }
    _pipeline_class = StableDiffusionXLPipeline
    _encoders = ("text_encoder", "text_encoder_2")
    _loading: ClassVar[Mapping[str, Any]] = {"add_watermarker": False}

    def encode_prompts(self, prompts: Sequence[str], reading: Reading = USUAL) -> Conditioning:
        """Both encoders' last but one hidden states side by side (batch, tokens, 768 + 1280), the second's pooled output."""
        states = []
        for tokenizer, name in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
            ids = _clip.tokenize(getattr(self._pipeline, tokenizer), prompts, reading.chunks)
            with self._at_work(name), self._autocast():
                read = getattr(self._pipeline, name)(ids.to(self.device), output_hidden_states=True)
            states.append(_clip.join_chunks(read.hidden_states[-2].float(), reading.chunks))
        pooled = read.text_embeds.float()[:: reading.chunks]  # of the first chunk, as in kohya's scripts
        return Conditioning(torch.cat(states, dim=-1), pooled)

    def with_extents(self, conditioning: Conditioning, extents: Sequence[Extent]) -> Conditioning:
        """With time_ids (batch, 6): source size, crop and size, height before width (Podell et al. 2023, section 2.2)."""
        rows = [
            (e.source_height, e.source_width, e.crop_top, e.crop_left, e.height, e.width)  # as the UNet was trained
            for e in extents
        ]
        time_ids = torch.tensor(rows, dtype=torch.float32, device=self.device)
        return Conditioning(conditioning.encoder_hidden_states, conditioning.pooled_prompt_embeds, time_ids)

    def _added(self, noisy_latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor] | None:
        """The pooled text and the extent; a whole picture of the latents' size where none is given."""
        time_ids = conditioning.time_ids
        if time_ids is None:
            height, width = (side * self._pixels_per_latent for side in noisy_latents.shape[-2:])
            whole = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=self.device)
            time_ids = whole.expand(len(noisy_latents), 6)
        assert conditioning.pooled_prompt_embeds is not None
        return {"text_embeds": conditioning.pooled_prompt_embeds, "time_ids": time_ids}

    def _without_prompt(self, negative_prompt: str, reading: Reading, like: Conditioning) -> Conditioning:
        """Zeros where there is no negative prompt, as the base was trained to leave text out; else what it says."""
        if negative_prompt or not self._pipeline.config.force_zeros_for_empty_prompt:
            return super()._without_prompt(negative_prompt, reading, like)
        assert like.pooled_prompt_embeds is not None
        return Conditioning(torch.zeros_like(like.encoder_hidden_states), torch.zeros_like(like.pooled_prompt_embeds))
