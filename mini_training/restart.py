"""Writes start weights from the shipped models, so that any training can go on without its old checkpoints.

    python -m mini_training.restart WORK

Writes WORK/{decoder,clip,unet,blip,oracle}.start.pt: a training script that finds no checkpoint begins from them, with a
fresh optimizer and learning rate curve.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import BlipForConditionalGeneration, CLIPModel, CLIPTextModel

SHIPPED = Path(__file__).parents[1] / "src" / "captune" / "mini" / "weights"


def prefixed(prefix: str, module: torch.nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in module.float().state_dict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(SHIPPED / "sd" / "vae")
    unet = UNet2DConditionModel.from_pretrained(SHIPPED / "sd" / "unet")
    text = CLIPTextModel.from_pretrained(SHIPPED / "sd" / "text_encoder")
    weights = {
        "decoder": prefixed("", vae),
        "clip": prefixed("clip.", CLIPModel.from_pretrained(SHIPPED / "clip")),
        "unet": prefixed("unet.", unet) | prefixed("text.", text),
        "blip": prefixed("blip.", BlipForConditionalGeneration.from_pretrained(SHIPPED / "blip")),
        "oracle": {name: value.float() for name, value in load_file(SHIPPED / "oracle.safetensors").items()},
    }
    for name, average in weights.items():
        torch.save({"average": average}, work / f"{name}.start.pt")
    torch.save({"average": weights["decoder"]}, work / "vae.ckpt.pt")  # what latents are encoded with
    (work / "latents.json").write_text(json.dumps({"scaling_factor": vae.config.scaling_factor}))


if __name__ == "__main__":
    main()
