"""Stable Diffusion 1.x: a CLIP text encoder, a UNet with cross-attention and a VAE, in diffusers' classes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor, nn

from captune import weights
from captune.errors import ModelError
from captune.families import Conditioning, LoraTargets, Objective
from captune.families._devices import choose_device, choose_dtype
from captune.recipe import BaseSection

ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)"
FEED_FORWARD = r"ff\.net\.(0\.proj|2)|proj_in|proj_out"
CONVOLUTIONS = r"conv1|conv2|conv_shortcut|time_emb_proj|(down|up)samplers\.0\.conv"


class StableDiffusion:
    """A loaded Stable Diffusion 1.x base, frozen, ready for adapters."""

    name = "sd"
    pipeline_class = "StableDiffusionPipeline"
    export_prefixes: Mapping[str, str] = {"unet": "lora_unet", "text_encoder": "lora_te"}
    targets: Mapping[str, LoraTargets] = {
        "unet": LoraTargets(
            {
                "attention": rf".*\.({ATTENTION})",
                "attention+feed_forward": rf".*attentions\.\d+\.(.*\.)?({ATTENTION}|{FEED_FORWARD})",
                "all_linear": rf".*\.({ATTENTION}|{FEED_FORWARD}|time_emb_proj)",
                "all": rf".*\.({ATTENTION}|{FEED_FORWARD}|{CONVOLUTIONS})",
            }
        ),
        "text_encoder": LoraTargets(
            {"attention": r".*\.self_attn\.(q|k|v|out)_proj", "all": r".*\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"}
        ),
    }

    def __init__(self, pipeline: StableDiffusionPipeline, device: torch.device, dtype: torch.dtype):
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.eval().requires_grad_(False)
        if device.type == "cpu" and dtype == torch.bfloat16:
            # measured (benchmarks/attention_on_cpu.py): a CPU's fused attention is slow in bf16, its backward above all
            pipeline.unet.set_attn_processor(AttnProcessor())
            pipeline.text_encoder.set_attn_implementation("eager")
        self._pipeline = pipeline
        self._vae: AutoencoderKL = pipeline.vae
        self._vae.to(
            torch.float32
        )  # SD's VAE overflows in fp16, and pictures are judged: 8 bits need more than bf16 has
        self.device, self.dtype = device, dtype
        self.components: Mapping[str, nn.Module] = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
        training = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.alphas_cumprod: Tensor = training.alphas_cumprod.float()
        self.objective: Objective = pipeline.scheduler.config.prediction_type
        if self.objective not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"base.model: its scheduler predicts {self.objective!r}; the family sd trains epsilon and v_prediction"
            )

    @classmethod
    def load(cls, section: BaseSection) -> StableDiffusion:
        """Load the base that the section names; a ModelError says what is missing and how to get it."""
        device = choose_device(section.device)
        dtype = choose_dtype(section.precision, device)
        place = weights.locate(section.model, "sd")
        folder = Path(place)
        if folder.exists() and not (folder / "model_index.json").is_file():
            raise ModelError(f"{place} is not a diffusers folder of Stable Diffusion: it has no model_index.json")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pipeline = StableDiffusionPipeline.from_pretrained(
                    place,
                    revision=section.revision,
                    variant=section.variant,
                    dtype=torch.float32 if device.type == "cpu" else dtype,
                    safety_checker=None,
                    feature_extractor=None,
                    requires_safety_checker=False,
                    local_files_only=folder.exists(),
                )
        except Exception as error:
            raise weights.loading_failed(place, "base model", error) from error
        return cls(pipeline, device, dtype)

    @property
    def default_size(self) -> tuple[int, int]:
        side = int(self._pipeline.unet.config.sample_size * self._pipeline.vae_scale_factor)
        return side, side

    def _autocast(self) -> Any:
        on = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype) if on else nullcontext()

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Encode pixel_values (batch, 3, height, width) in [-1, 1] to scaled latents (batch, channels, h, w), float32."""
        posterior = self._vae.encode(pixel_values.to(self.device, torch.float32)).latent_dist
        # the mean, not a draw: the posterior's spread is far below the noise of training, and the cache stays exact
        latents: Tensor = posterior.mean * self._vae.config.scaling_factor
        return latents

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """encoder_hidden_states (batch, tokenizer's length, width) of prompts, cut at the tokenizer's length."""
        tokenizer = self._pipeline.tokenizer
        ids = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        with self._autocast():
            hidden = self._pipeline.text_encoder(ids.to(self.device)).last_hidden_state
        return Conditioning(encoder_hidden_states=hidden.float())

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """model_pred (batch, channels, h, w) for noisy_latents at timesteps (batch,)."""
        with self._autocast():
            model_pred: Tensor = self._pipeline.unet(
                noisy_latents, timesteps, encoder_hidden_states=conditioning.encoder_hidden_states
            ).sample
        return model_pred

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int,
        guidance_scale: float,
        negative_prompt: str,
        width: int,
        height: int,
    ) -> list[Image.Image]:
        """One picture per prompt and seed; DPM-Solver++ of second order, the start noise drawn on the CPU per picture."""
        self._pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
            self._pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing"
        )
        with self._autocast():
            latents = self._pipeline(
                list(prompts),
                negative_prompt=[negative_prompt] * len(prompts),
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                width=width,
                height=height,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                output_type="latent",
            ).images
        pixels = self._vae.decode(latents.float() / self._vae.config.scaling_factor).sample
        images: list[Image.Image] = self._pipeline.image_processor.postprocess(pixels, output_type="pil")
        return images

    def count_tokens(self, text: str) -> tuple[int, int]:
        """Tokens of a text, start and end included, and how many are read."""
        tokenizer = self._pipeline.tokenizer
        return len(tokenizer(text, truncation=False, verbose=False).input_ids), int(tokenizer.model_max_length)
