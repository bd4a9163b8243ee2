"""How much faster is plain attention than torch's fused one for training the mini base on a CPU in bf16?

    python benchmarks/attention_on_cpu.py [--rounds 7]

Forward and backward of the UNet, batch 16, the two kinds run in turn within one process; prints the ratio of each round.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from captune import families
from captune.recipe import BaseSection


def seconds(unet: torch.nn.Module, processor: object, batch: int) -> float:
    unet.set_attn_processor(processor)
    config = unet.config
    noisy_latents = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size)
    hidden = torch.randn(batch, 48, config.cross_attention_dim)
    timesteps = torch.randint(0, 1000, (batch,))
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        model_pred = unet(noisy_latents, timesteps, encoder_hidden_states=hidden).sample
    model_pred.float().square().mean().backward()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    unet = families.load(BaseSection(device="cpu", precision="bf16")).components["unet"]
    unet.requires_grad_(True)
    for processor in (AttnProcessor(), AttnProcessor2_0()):
        seconds(unet, processor, arguments.batch)
    ratios = []
    for _ in range(arguments.rounds):
        plain = seconds(unet, AttnProcessor(), arguments.batch)
        fused = seconds(unet, AttnProcessor2_0(), arguments.batch)
        ratios.append(fused / plain)
        print(f"plain {plain:.3f} s, fused {fused:.3f} s, fused / plain {ratios[-1]:.2f}")
    print(f"median fused / plain: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
