"""Writes the shipped weights from the checkpoints' averages: fp16 safetensors in the standard folder format.

python -m mini_training.assemble WORK [--out src/captune/mini/weights]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    CLIPProcessor,
    CLIPTextModel,
    CLIPTokenizerFast,
)

from captune.mini import oracle
from mini_training import fit, models, text

SHIPPED = Path("src/captune/mini/weights")
LIMIT = 30_000_000  # bytes of all shipped weights together
SIDE = 64
SAME_AS_TRAINING = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # pixel_values in [-1, 1]
NEEDED = {  # the files of WORK that each part is made from
    "sd/vae": ("vae.ckpt.pt",),
    "sd": ("vae.ckpt.pt", "unet.ckpt.pt", "latents.json", "clip_tokenizer"),
    "clip": ("clip.ckpt.pt", "clip_tokenizer"),
    "blip": ("blip.ckpt.pt", "blip_tokenizer"),
    "oracle.safetensors": ("oracle.ckpt.pt",),
}


def loaded(model: nn.Module, state: dict[str, Tensor], prefix: str = "") -> nn.Module:
    """The model in fp16 with the part of a checkpoint's weights whose names begin with `prefix`."""
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    model.load_state_dict(own)
    model = model.half().eval()
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"{type(model).__name__}: {name} is not finite in fp16; train it again")
    return model


def read_vae(work: Path) -> AutoencoderKL:
    """The VAE, with the scaling factor that the UNet was trained on."""
    longer = work / "decoder.ckpt.pt"  # the same encoder, its decoder trained on
    vae = loaded(models.vae(), fit.averaged(longer if longer.exists() else work / "vae.ckpt.pt"))
    if (work / "latents.json").exists():
        vae.register_to_config(scaling_factor=json.loads((work / "latents.json").read_text())["scaling_factor"])
    return vae


def write_vae(work: Path, folder: Path) -> None:
    read_vae(work).save_pretrained(folder)


def write_clip_tokenizer(tokenizer: CLIPTokenizerFast, folder: Path) -> None:
    """tokenizer.json, and the vocab.json and merges.txt that tools with the older tokenizer class read."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def write_processor(processor: CLIPProcessor | BlipProcessor, folder: Path) -> None:
    """processor_config.json, and the preprocessor_config.json that transformers 4 reads."""
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)


def with_key_prefix(path: Path, prefix: str) -> None:
    """Begin every key of a safetensors file with `prefix`."""
    state = {prefix + k.removeprefix(prefix): v for k, v in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})


def write_sd(work: Path, folder: Path) -> None:
    tokenizer, state = text.clip_tokenizer(work), fit.averaged(work / "unet.ckpt.pt")
    clip = models.clip(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    pipeline = StableDiffusionPipeline(
        vae=read_vae(work),
        text_encoder=loaded(CLIPTextModel(clip.config.text_config), state, "text."),
        tokenizer=tokenizer,
        unet=loaded(models.unet(), state, "unet."),
        scheduler=models.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    write_clip_tokenizer(tokenizer, folder / "tokenizer")
    # transformers 5 writes the text encoder without the prefix that every other tool expects, and reads both.
    with_key_prefix(folder / "text_encoder" / "model.safetensors", "text_model.")


def write_clip(work: Path, folder: Path) -> None:
    tokenizer = text.clip_tokenizer(work)
    clip = models.clip(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    loaded(clip, fit.averaged(work / "clip.ckpt.pt"), "clip.").save_pretrained(folder)
    crop = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop, **SAME_AS_TRAINING)
    write_processor(CLIPProcessor(pictures, tokenizer), folder)
    write_clip_tokenizer(tokenizer, folder)


def write_blip(work: Path, folder: Path) -> None:
    tokenizer = text.blip_tokenizer(work)
    blip = models.blip(len(tokenizer), tokenizer.convert_tokens_to_ids("[DEC]"), tokenizer.sep_token_id)
    loaded(blip, fit.averaged(work / "blip.ckpt.pt"), "blip.").save_pretrained(folder)
    pictures = BlipImageProcessor(size={"height": SIDE, "width": SIDE}, **SAME_AS_TRAINING)
    write_processor(BlipProcessor(pictures, tokenizer), folder)


def write_oracle(work: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(loaded(oracle.Reader(), fit.averaged(work / "oracle.ckpt.pt")).state_dict(), path)


WRITERS = {
    "sd/vae": write_vae,
    "sd": write_sd,
    "clip": write_clip,
    "blip": write_blip,
    "oracle.safetensors": write_oracle,
}


def assemble(work: Path, out: Path) -> list[str]:
    """Write every part whose files are there, in place of the old one; returns what is missing, in sentences."""
    missing = []
    for part, write in WRITERS.items():
        absent = [name for name in NEEDED[part] if not (work / name).exists()]
        if absent:
            missing.append(f"{part} is not written: {work} has no {', '.join(absent)}")
            continue
        if part == "sd/vae" and (out / "sd" / "unet").exists():
            continue  # a UNet only fits the VAE it was trained on, so the two are replaced together
        if (out / part).is_dir():
            shutil.rmtree(out / part)
        write(work, out / part)
    return missing


def print_sizes(out: Path) -> None:
    files = sorted(p for p in out.rglob("*") if p.is_file())
    for path in files:
        print(f"{path.stat().st_size:>12,}  {path.relative_to(out)}")
    total = sum(p.stat().st_size for p in files)
    print(f"{total:>12,}  in all; the limit is {LIMIT:,}{'' if total <= LIMIT else ': TOO LARGE'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    arguments = parser.parse_args()
    for line in assemble(arguments.work, arguments.out):
        print(line)
    print_sizes(arguments.out)
