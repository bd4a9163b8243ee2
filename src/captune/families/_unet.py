"""What the families with a UNet share: its LoRA targets, its noise schedule, and drawing with guidance."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from captune.errors import ModelError
from captune.families import Conditioning, LoraTargets, Reading
from captune.families._frozen import FrozenPipeline
from captune.objective import NoiseSchedule

_ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)"
_FEED_FORWARD = r"ff\.net\.(0\.proj|2)|proj_in|proj_out"
_CONVOLUTIONS = r"conv1|conv2|conv_shortcut|time_emb_proj|(down|up)samplers\.0\.conv"

TARGETS = LoraTargets(
    {
        "attention": rf".*\.({_ATTENTION})",
        "attention+feed_forward": rf".*attentions\.\d+\.(.*\.)?({_ATTENTION}|{_FEED_FORWARD})",
        "all_linear": rf".*\.({_ATTENTION}|{_FEED_FORWARD}|time_emb_proj)",
        "all": rf".*\.({_ATTENTION}|{_FEED_FORWARD}|{_CONVOLUTIONS})",
    }
)


class UnetPipeline(FrozenPipeline):
    """A base whose UNet predicts the noise, or v, at the timesteps of a DDPM schedule."""

    denoiser = "unet"

    def __init__(self, pipeline: Any, device: torch.device, dtype: torch.dtype):
        super().__init__(pipeline, device, dtype)
        if device.type == "cpu" and dtype == torch.bfloat16:
            pipeline.unet.set_attn_processor(AttnProcessor())  # as with the text encoders: fused is slow there
        config = pipeline.scheduler.config
        if config.prediction_type not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"base.model: its scheduler predicts {config.prediction_type!r}; the family {self.name} trains epsilon "
                "and v_prediction"
            )
        taken, made = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
        if taken != made:
            raise ModelError(
                f"base.model: its UNet takes {taken} channels and its VAE makes {made}, as inpainting models do; "
                "name the text-to-image model"
            )
        if getattr(pipeline.vae.config, "latents_mean", None) is not None:
            raise ModelError("base.model: its latents are normalised per channel (EDM), which no family here trains")
        self.schedule = NoiseSchedule(config.prediction_type, DDPMScheduler.from_config(config).alphas_cumprod.float())

    @property
    def alphas_cumprod(self) -> Tensor:
        assert self.schedule.alphas_cumprod is not None
        return self.schedule.alphas_cumprod

    @property
    def default_size(self) -> tuple[int, int]:
        side = int(self._pipeline.unet.config.sample_size * self._pixels_per_latent)
        return side, side

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """model_pred (batch, channels, h, w) for noisy_latents at timesteps (batch,)."""
        with self._autocast():
            model_pred: Tensor = self._pipeline.unet(
                noisy_latents,
                timesteps,
                encoder_hidden_states=conditioning.encoder_hidden_states,
                added_cond_kwargs=self._added(noisy_latents, conditioning),
            ).sample
        return model_pred

    def _added(self, noisy_latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor] | None:
        """What the UNet is told beside the text's hidden states."""
        return None

    def _without_prompt(self, negative_prompt: str, reading: Reading, like: Conditioning) -> Conditioning:
        """What guidance leads away from, in as many rows."""
        return self.encode_prompts([negative_prompt], reading).select([0] * len(like.encoder_hidden_states))

    def _denoise(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        negative_prompt: str,
        reading: Reading,
        steps: int,
        guidance: float,
        zero_terminal_snr: bool,
    ) -> Tensor:
        """DPM-Solver++ of second order with classifier-free guidance, where its scale is above 1."""
        config = self._pipeline.scheduler.config
        solver = DPMSolverMultistepScheduler.from_config(
            config,
            algorithm_type="dpmsolver++",
            solver_order=2,
            timestep_spacing="trailing",
            rescale_betas_zero_snr=zero_terminal_snr or config.get("rescale_betas_zero_snr", False),
        )
        solver.set_timesteps(steps, device=self.device)
        guided = guidance > 1
        if guided:
            conditioning = Conditioning.cat(
                [self._without_prompt(negative_prompt, reading, conditioning), conditioning]
            )
        latents: Tensor = noise * solver.init_noise_sigma
        for timestep in solver.timesteps:
            given = torch.cat([latents, latents]) if guided else latents
            model_pred = self.predict(given, timestep.expand(len(given)), conditioning)
            if guided:
                without, towards = model_pred.chunk(2)
                model_pred = without + guidance * (towards - without)
            latents = solver.step(model_pred, timestep, latents).prev_sample
        return latents
