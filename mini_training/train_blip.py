"""Trains BLIP to caption the world in every style, mostly the short one, from CLIP's vision tower if there is one.

A tower that learns from captions alone leaves shape out for long, so heads, dropped afterwards, read the scene's
attributes from its tokens.

    python -m mini_training.train_blip WORK [--steps 4000]
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipForConditionalGeneration, BlipVisionModel, PreTrainedTokenizerBase

from captune.mini import grammar, oracle
from mini_training import data, fit, models, text
from mini_training.train_clip import VisionHeads, augmented, heads_loss, trained_reader

BATCH = 64
SHARES = {"short": 0.55, "long": 0.15, "tags": 0.12, "instruction": 0.18}
HEADS_WEIGHT, HEADS_LAST = 0.5, 0.05


class WithHeads(nn.Module):
    """BLIP plus the training-only heads that read a scene's attributes from its vision tokens."""

    def __init__(self, blip: BlipForConditionalGeneration) -> None:
        super().__init__()
        self.blip = blip
        self.vision = VisionHeads(128)


def start_vision(tower: BlipVisionModel) -> None:
    """Give the vision tower weights that gradients move: BLIP's own config draws them with a deviation of 1e-10."""
    for module in tower.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02)
    nn.init.normal_(tower.embeddings.class_embedding, std=0.02)
    nn.init.normal_(tower.embeddings.position_embedding, std=0.02)


def vision_from_clip(clip: dict[str, Tensor], pixel_values: Tensor) -> dict[str, Tensor]:
    """CLIP's vision tower under BLIP's names, q, k and v joined.

    BLIP has no layer norm before its layers, so CLIP's goes into the embeddings: exactly for the class token, and for
    the patches with the one spread that pixel_values (batch, 3, 64, 64) have on average.
    """
    patch, position = clip["embeddings.patch_embedding.weight"], clip["embeddings.position_embedding.weight"]
    gain, bias = clip["pre_layrnorm.weight"], clip["pre_layrnorm.bias"]
    tokens = F.conv2d(pixel_values, patch, stride=patch.shape[-1]).flatten(2).mT + position[1:]
    factor = gain / tokens.var(-1, correction=0).mean().sqrt()
    first = F.layer_norm(clip["embeddings.class_embedding"] + position[0], gain.shape, gain, bias)
    places = (position[1:] - position[1:].mean(-1, keepdim=True)) * factor + bias
    out = {
        "embeddings.class_embedding": first[None, None],
        "embeddings.position_embedding": torch.cat([torch.zeros_like(first)[None], places])[None],
        "embeddings.patch_embedding.weight": (patch - patch.mean(0)) * factor[:, None, None, None],
        "embeddings.patch_embedding.bias": torch.zeros_like(bias),
    }
    for name, value in clip.items():
        if ".q_proj." in name:
            parts = [clip[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            out[name.replace("q_proj", "qkv")] = torch.cat(parts)
        elif name.startswith(("encoder.", "post_layernorm.")) and ".k_proj." not in name and ".v_proj." not in name:
            out[name.replace("out_proj", "projection")] = value
    return out


def warm_start(tower: BlipVisionModel, checkpoint: Path, pixel_values: Tensor) -> None:
    """Load CLIP's trained vision tower, or say that there is none."""
    if not checkpoint.exists():
        print(f"no {checkpoint}: the vision tower starts from random weights")
        return
    prefix = "clip.vision_model."
    clip = {k.removeprefix(prefix): v for k, v in fit.averaged(checkpoint).items() if k.startswith(prefix)}
    taken = vision_from_clip(clip, pixel_values)
    shapes = {k: v.shape for k, v in tower.state_dict().items()}
    fitting = {k: v for k, v in taken.items() if shapes.get(k) == v.shape}
    tower.load_state_dict(fitting, strict=False)
    print(f"{len(fitting)} of the vision tower's {len(shapes)} tensors start from {checkpoint}")


def rows_of_styles(ids: np.ndarray, styles: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> dict[str, np.ndarray]:
    """Per style the (picture, caption) pairs to draw from.

    "a drawing of" also begins long captions; without those it is a prompt for the short style alone.
    """
    shared = tokenizer("a drawing of", add_special_tokens=False)["input_ids"]
    begins = (ids[:, :, 1 : 1 + len(shared)] == shared).all(-1)
    rows = {s: styles == i for i, s in enumerate(grammar.STYLES)}
    rows["long"] &= ~begins
    return {s: np.argwhere(chosen) for s, chosen in rows.items()}


def inputs_and_labels(ids: np.ndarray, dec: int, pad: int) -> tuple[Tensor, Tensor]:
    """Ids (batch, length) that begin with [CLS] -> input_ids that begin with [DEC], and their labels.

    The labels stand beside the ids: the model shifts them itself. [DEC] and the padding are not predicted.
    """
    input_ids = torch.from_numpy(ids[:, : int((ids != pad).sum(1).max())].astype(np.int64))
    input_ids[:, 0] = dec
    labels = input_ids.masked_fill(input_ids == pad, -100)
    labels[:, 0] = -100
    return input_ids, labels


def build(work: Path, steps: int):
    pictures, scenes = data.load(work, "train")
    ids, styles = np.load(work / "train.blip.npy"), np.load(work / "train.styles.npy")
    seen_labels = [oracle.labels(s) for s in scenes]
    tokenizer = text.blip_tokenizer(work)
    dec, pad = tokenizer.convert_tokens_to_ids("[DEC]"), tokenizer.pad_token_id
    of_style = rows_of_styles(ids, styles, tokenizer)
    model = WithHeads(models.blip(len(tokenizer), dec, tokenizer.sep_token_id))
    model.blip.set_attn_implementation("eager")  # twice as fast in bf16 on a CPU as the fused kernel and its backward
    start_vision(model.blip.vision_model)
    sample = torch.tensor(pictures[:256]).permute(0, 3, 1, 2).float() / 127.5 - 1
    reader = trained_reader(work)
    warm_start(model.blip.vision_model, work / "clip.ckpt.pt", sample)

    def make_loss(model: WithHeads):
        def loss(step: int, rng: np.random.Generator):
            drawn = rng.choice(list(SHARES), size=BATCH, p=list(SHARES.values()))
            chosen = np.stack([of_style[s][rng.integers(len(of_style[s]))] for s in drawn])
            rows = chosen[:, 0]
            input_ids, labels = inputs_and_labels(ids[rows, chosen[:, 1]], dec, pad)
            pixel_values = augmented(pictures[rows], rng)
            with torch.autocast("cpu", torch.bfloat16):
                out = model.blip(pixel_values=pixel_values, input_ids=input_ids, labels=labels)
                vision_logits = model.vision(out.last_hidden_state)
                taught = model.vision.teach(out.last_hidden_state, pixel_values, reader) if reader else 0.0
            dense, notes = heads_loss(vision_logits, [seen_labels[i] for i in rows], "v")
            weight = HEADS_WEIGHT + (HEADS_LAST - HEADS_WEIGHT) * min(1.0, step / steps)
            return out.loss + weight * (dense + taught), {"caption": out.loss.item(), **notes}

        return loss

    return model, make_loss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    plan = fit.Fit("blip", arguments.work, arguments.steps, 1e-3, processes=arguments.processes, ema=0.998)
    fit.run(plan, functools.partial(build, arguments.work, arguments.steps))
