"""FLUX.1 dev and schnell: a transformer over latent patches and T5's tokens, trained by flow matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from captune.errors import ModelError
from captune.families import USUAL, Conditioning, LoraTargets, Reading, _clip
from captune.families._frozen import FrozenPipeline
from captune.objective import NoiseSchedule

TRAINING_GUIDANCE = (
    1.0  # of dev's embedding while training: the undistilled prediction, the one noise - latents asks for
)
T5_TOKENS = {"flux-dev": 512, "flux-schnell": 256}  # as each was trained

_ATTENTION = r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_REST = r"ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out|norm1\.linear|norm1_context\.linear|norm\.linear"
# every linear layer of the 19 double and 38 single blocks: 494 here, 304 in kohya's files, where q, k, v (mlp) are one
_BLOCKS = rf"(single_)?transformer_blocks\.\d+\.({_ATTENTION}|{_REST})"


class Flux(FrozenPipeline):
    """A loaded FLUX.1 base, frozen, ready for adapters."""

    name = "flux"
    denoiser = "transformer"
    targets: ClassVar[Mapping[str, LoraTargets]] = {
        "transformer": LoraTargets(
            {
                "attention": rf"(single_)?transformer_blocks\.\d+\.{_ATTENTION}",
                "attention+feed_forward": _BLOCKS,
                "all_linear": _BLOCKS,
                "all": _BLOCKS,  # it has no convolutions
            }
        ),
        "text_encoder": _clip.TARGETS,
    }
    _pipeline_class = FluxPipeline
    _encoders = ("text_encoder", "text_encoder_2")

    def __init__(self, pipeline: Any, device: torch.device, dtype: torch.dtype):
        super().__init__(pipeline, device, dtype)
        self._distilled = bool(pipeline.transformer.config.guidance_embeds)
        self.version = "flux-dev" if self._distilled else "flux-schnell"
        self.schedule = NoiseSchedule("flow_matching")
        taken, made = pipeline.transformer.config.in_channels, 4 * pipeline.vae.config.latent_channels
        if taken != made:
            raise ModelError(
                f"base.model: its transformer takes {taken} channels a patch and its VAE makes {made}, as FLUX's Fill, "
                "Depth and Canny do; name FLUX.1-dev or FLUX.1-schnell"
            )

    @property
    def default_size(self) -> tuple[int, int]:
        side = int(self._vae.config.sample_size)
        return side, side

    def encode_prompts(self, prompts: Sequence[str], reading: Reading = USUAL) -> Conditioning:
        """T5's hidden states (batch, 512 or 256 tokens, 4096) and CLIP's pooled output (batch, 768)."""
        ids = _clip.tokenize(self._pipeline.tokenizer, prompts)
        with self._at_work("text_encoder"), self._autocast():
            pooled = self._pipeline.text_encoder(ids.to(self.device)).pooler_output
        tokenizer = self._pipeline.tokenizer_2
        length = min(T5_TOKENS[self.version], int(tokenizer.model_max_length))
        ids = tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        with self._at_work("text_encoder_2"), torch.no_grad():  # no autocast: T5 leaves fp16's range
            hidden = self._pipeline.text_encoder_2(ids.to(self.device)).last_hidden_state
        return Conditioning(hidden.float(), pooled.float())

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """model_pred (batch, channels, h, w), the velocity noise - latents, for noisy_latents at timesteps (batch,)."""
        return self._predict(noisy_latents, timesteps, conditioning, TRAINING_GUIDANCE)

    def _predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance: float) -> Tensor:
        height, width = (side // 2 for side in noisy_latents.shape[-2:])
        rows = len(noisy_latents)
        told = torch.full((rows,), guidance, device=self.device) if self._distilled else None
        with self._autocast():
            packed: Tensor = self._pipeline.transformer(
                hidden_states=pack(noisy_latents),
                encoder_hidden_states=conditioning.encoder_hidden_states,
                pooled_projections=conditioning.pooled_prompt_embeds,
                timestep=timesteps / self.schedule.length,
                img_ids=positions(height, width, self.device),
                txt_ids=torch.zeros(conditioning.encoder_hidden_states.shape[1], 3, device=self.device),
                guidance=told,
            ).sample
        return unpack(packed, height, width)

    def _denoise(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        negative_prompt: str,
        reading: Reading,
        steps: int,
        guidance: float,
        zero_terminal_snr: bool,  # a flow ends in pure noise anyway
    ) -> Tensor:
        """Euler steps along the flow, their sigmas shifted by the picture's size in dev; negative prompts are not read."""
        euler = FlowMatchEulerDiscreteScheduler.from_config(self._pipeline.scheduler.config)
        config = euler.config
        patches = noise.shape[-2] * noise.shape[-1] // 4
        ends = (config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
        mu = calculate_shift(patches, *ends)
        euler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=self.device, mu=mu)
        euler.set_begin_index(0)
        latents = noise
        for timestep in euler.timesteps:
            model_pred = self._predict(latents, timestep.expand(len(latents)), conditioning, guidance)
            latents = euler.step(model_pred, timestep, latents).prev_sample
        return latents


def pack(latents: Tensor) -> Tensor:
    """Latents (batch, channels, h, w) as patches of 2 x 2 in reading order: (batch, h/2 * w/2, channels * 4)."""
    batch, channels, height, width = latents.shape
    split = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // 2 * (width // 2), channels * 4)


def unpack(packed: Tensor, height: int, width: int) -> Tensor:
    """Patches (batch, height * width, channels * 4) as latents (batch, channels, 2 height, 2 width)."""
    batch, _, values = packed.shape
    split = packed.view(batch, height, width, values // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return split.reshape(batch, values // 4, height * 2, width * 2)


def positions(height: int, width: int, device: torch.device) -> Tensor:
    """img_ids (height * width, 3): 0, row and column of every patch."""
    sides = torch.arange(height, device=device), torch.arange(width, device=device)
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3).float()
