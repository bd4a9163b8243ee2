"""A training loop as diffusers' example scripts write it: VAE and text encoders in every step, peft's LoRA as it comes.

    python benchmarks/plain_loop.py BASE PICTURES --family sd --resolution 64 --batch 4 --rank 8 --steps 300 --out DIR

For `train_step.py`, which runs it beside captune; the last line is JSON: seconds per step, peak memory, FLOPs of a step.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, FluxPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


def pixel_values(path: Path, side: int) -> Tensor:
    """(3, side, side) in [-1, 1]: opened, resized and cropped at every visit, as the scripts' transforms do."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    scale = side / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    values = np.asarray(picture.crop((left, top, left + side, top + side)), dtype=np.float32)
    return torch.from_numpy(values).permute(2, 0, 1) / 127.5 - 1


def denoiser_loss(pipe: Any, family: str, device: str) -> Callable[[Tensor, list[str]], Tensor]:
    """The loss of a batch of pictures and captions, nothing kept from one step to the next."""
    noise_scheduler = None if family == "flux" else DDPMScheduler.from_config(pipe.scheduler.config)

    def loss_of(pictures: Tensor, captions: list[str]) -> Tensor:
        config = pipe.vae.config
        with torch.no_grad():
            latents = pipe.vae.encode(pictures.to(device, pipe.vae.dtype)).latent_dist.sample()
        latents = (latents - (config.shift_factor or 0.0)) * config.scaling_factor
        noise = torch.randn_like(latents)
        if family == "flux":
            return flux_loss(pipe, latents, noise, captions, device)
        timesteps = torch.randint(0, 1000, (len(latents),), device=device)
        noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
        added = None
        if family == "sdxl":
            hidden, _, pooled, _ = pipe.encode_prompt(captions, device=device, do_classifier_free_guidance=False)
            side = float(pictures.shape[-1])
            times = torch.tensor([[side, side, 0.0, 0.0, side, side]] * len(latents), device=device, dtype=pooled.dtype)
            added = {"text_embeds": pooled, "time_ids": times}
        else:
            ids = pipe.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
            hidden = pipe.text_encoder(ids.to(device), return_dict=False)[0]
        model_pred = pipe.unet(
            noisy_latents, timesteps, encoder_hidden_states=hidden, added_cond_kwargs=added, return_dict=False
        )[0]
        return F.mse_loss(model_pred.float(), noise.float())

    return loss_of


def flux_loss(pipe: Any, latents: Tensor, noise: Tensor, captions: list[str], device: str) -> Tensor:
    """Flow matching with logit-normal timesteps."""
    with torch.no_grad():
        hidden, pooled, text_ids = pipe.encode_prompt(captions, None, device=device, max_sequence_length=512)
    batch, channels, height, width = latents.shape
    sigmas = torch.sigmoid(torch.randn(batch, device=device, dtype=latents.dtype))
    noisy = (1 - sigmas.view(-1, 1, 1, 1)) * latents + sigmas.view(-1, 1, 1, 1) * noise
    packed = FluxPipeline._pack_latents(noisy, batch, channels, height, width)
    places = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, device, latents.dtype)
    model_pred = pipe.transformer(
        hidden_states=packed,
        timestep=sigmas,
        guidance=torch.ones(batch, device=device, dtype=latents.dtype),
        pooled_projections=pooled,
        encoder_hidden_states=hidden,
        txt_ids=text_ids,
        img_ids=places,
        return_dict=False,
    )[0]
    target = FluxPipeline._pack_latents(noise - latents, batch, channels, height, width)
    return F.mse_loss(model_pred.float(), target.float())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--family", default="sd")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[asked.precision]
    pipe = DiffusionPipeline.from_pretrained(asked.base, torch_dtype=dtype).to(asked.device)
    denoiser = pipe.transformer if asked.family == "flux" else pipe.unet
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    denoiser.add_adapter(
        LoraConfig(r=asked.rank, lora_alpha=asked.rank, init_lora_weights="gaussian", target_modules=TARGETS)
    )
    weights = [p for p in denoiser.parameters() if p.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(weights, lr=1e-4)
    loss_of = denoiser_loss(pipe, asked.family, asked.device)
    files = sorted(p for p in asked.pictures.iterdir() if p.suffix in (".png", ".jpg"))
    data = [(path, path.with_suffix(".txt").read_text().strip()) for path in files]

    def collate(rows: list[tuple[Path, str]]) -> tuple[Tensor, list[str]]:
        return torch.stack([pixel_values(path, asked.resolution) for path, _ in rows]), [text for _, text in rows]

    batches = DataLoader(data, asked.batch, shuffle=True, drop_last=True, collate_fn=collate)
    autocast = torch.autocast(asked.device, dtype, enabled=dtype != torch.float32)
    seconds: list[float] = []
    flops, step = 0.0, 0
    while step < asked.steps:
        for pictures, captions in batches:
            began = time.perf_counter()
            with FlopCounterMode(display=False) if step == 0 else torch.enable_grad() as counted, autocast:
                loss = loss_of(pictures, captions)
                loss.backward()
            if step == 0:
                flops = counted.get_total_flops()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            seconds.append(time.perf_counter() - began)
            step += 1
            print(f"step {step}: {loss.item():.4f}", file=sys.stderr)
            if step == asked.steps:
                break
    type(pipe).save_lora_weights(asked.out, **{_layers(asked.family): get_peft_model_state_dict(denoiser)})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if asked.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    step_seconds = statistics.mean(seconds[1:]) if len(seconds) > 1 else seconds[0]
    print(json.dumps({"seconds_per_step": step_seconds, "peak_mib": peak, "flops": flops}))


def _layers(family: str) -> str:
    return "transformer_lora_layers" if family == "flux" else "unet_lora_layers"


if __name__ == "__main__":
    main()
