"""Trains the UNet and its text encoder together, on latents encoded once; the text encoder starts as CLIP's text tower.

The contrastive tower alone tells shapes apart badly; the denoising loss teaches it the rest.

    python -m mini_training.train_unet WORK [--steps 5000]
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel

from mini_training import data, fit, models, text

BATCH = 64
DROPOUT = 0.1


class Joint(nn.Module):
    """The two modules that learn together."""

    def __init__(self, tokenizer) -> None:
        super().__init__()
        clip = models.clip(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
        self.unet = models.unet()
        self.text = CLIPTextModel(clip.config.text_config)
        # the plain kernels are 1.6 times as fast in bf16 on a CPU as the fused ones and their backward
        self.unet.set_attn_processor(AttnProcessor())
        self.text.set_attn_implementation("eager")


def text_weights(work: Path) -> dict[str, Tensor]:
    """CLIP's trained text tower under the names that CLIPTextModel has in memory."""
    prefix = "clip.text_model."
    weights = fit.averaged(work / "clip.ckpt.pt")
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


@torch.no_grad()
def encode(work: Path, splits: list[str], batch: int = 125) -> None:
    """Write WORK/{split}.latents.npy (fp16, scaled) with the VAE's EMA weights; the first split fixes the scale."""
    torch.set_num_threads(2)
    vae = models.vae()
    vae.load_state_dict(fit.averaged(work / "vae.ckpt.pt"))
    note = work / "latents.json"
    for split in splits:
        pictures, _ = data.load(work, split)
        out = np.empty((len(pictures), models.LATENT_CHANNELS, 16, 16), np.float16)
        for start in range(0, len(pictures), batch):
            pixel_values = torch.from_numpy(np.asarray(pictures[start : start + batch])).permute(0, 3, 1, 2).float()
            with torch.autocast("cpu", torch.bfloat16):
                latents = vae.encode(pixel_values / 127.5 - 1).latent_dist.mean
            out[start : start + batch] = latents.float().numpy()
        if not note.exists():
            note.write_text(json.dumps({"scaling_factor": float(1 / out[:5000].astype(np.float32).std())}))
        out = (out * np.float16(json.loads(note.read_text())["scaling_factor"])).astype(np.float16)
        np.save(work / f"{split}.latents.npy", out)


def build(work: Path, splits: list[str]):
    latents = np.concatenate([np.load(work / f"{s}.latents.npy") for s in splits])
    ids = np.concatenate([np.load(work / f"{s}.clip.npy") for s in splits])
    tokenizer = text.clip_tokenizer(work)
    empty = np.array(tokenizer("", padding="max_length", max_length=models.CONTEXT)["input_ids"], np.int16)
    settings = models.scheduler().config
    noise_scheduler = DDPMScheduler(
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        beta_schedule=settings.beta_schedule,
        prediction_type=settings.prediction_type,
    )
    model = Joint(tokenizer)
    model.text.load_state_dict(text_weights(work))

    def make_loss(model: Joint):
        def loss(step: int, rng: np.random.Generator):
            rows = rng.integers(len(latents), size=BATCH)
            said = ids[rows, rng.integers(ids.shape[1], size=BATCH)]
            said[rng.random(BATCH) < DROPOUT] = empty
            x = torch.from_numpy(latents[rows].astype(np.float32))
            noise = torch.randn_like(x)
            even = torch.randint(0, 1000, (BATCH // 2,))
            middle = (500 + 200 * torch.randn(BATCH - BATCH // 2)).clamp(0, 999).long()
            timesteps = torch.cat([even, middle])
            noisy_latents = noise_scheduler.add_noise(x, noise, timesteps)
            target = noise_scheduler.get_velocity(x, noise, timesteps)
            with torch.autocast("cpu", torch.bfloat16):
                hidden = model.text(input_ids=torch.from_numpy(said.astype(np.int64))).last_hidden_state
                model_pred = model.unet(noisy_latents, timesteps, hidden).sample
            each = F.mse_loss(model_pred.float(), target, reduction="none").mean((1, 2, 3))
            return each.mean(), {"even": each[: BATCH // 2].mean().item()}

        return loss

    return model, make_loss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--splits", nargs="+", default=["train", "extra"])
    arguments = parser.parse_args()
    missing = [s for s in arguments.splits if not (arguments.work / f"{s}.latents.npy").exists()]
    encode(arguments.work, missing)
    plan = fit.Fit("unet", arguments.work, arguments.steps, arguments.learning_rate, slow=("text.",))
    fit.run(plan, functools.partial(build, arguments.work, arguments.splits))
