"""Trains CLIP: contrastive with hard negatives (same colour and background), shapes among twelve, attribute heads.

A contrastive loss alone is solved by colour and background and leaves shape out; the heads, dropped afterwards, do not.
A transformer also learns form slowly from few pictures, so its patches are asked for what the oracle's convolutions see.

    python -m mini_training.train_clip WORK [--steps 4000]
"""

from __future__ import annotations

import argparse
import functools
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captune.mini import grammar, oracle, world
from mini_training import data, fit, models, text

GROUPS, GROUP = 12, 8


class WithHeads(nn.Module):
    """CLIP plus the training-only heads that read a scene's attributes from each tower."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip
        self.vision = VisionHeads(128)
        named = {"shape": len(world.SHAPES) + 1, "color": len(world.COLORS) + 1, "pattern": 4}
        self.text = nn.ModuleDict({f"{k}{i}": nn.Linear(256, n) for k, n in named.items() for i in (0, 1)})
        self.text["background"] = nn.Linear(256, len(world.BACKGROUNDS))


class VisionHeads(nn.Module):
    """What is asked of the vision tokens (batch, 1 + 64, width) while training.

    `forward` gives per place the oracle's classes, from the class token and three column bands; `teach` is the loss
    against the features of a trained reader at each patch's place.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.background = nn.Linear(width * 4, len(world.BACKGROUNDS))
        self.heads = nn.ModuleDict({k: nn.Linear(width * 4, 3 * n) for k, n in oracle.HEADS.items()})
        self.fine = nn.Linear(width, 96)
        self.coarse = nn.Linear(width, 128)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        grid = tokens[:, 1:].unflatten(1, (8, 8))
        bands = [grid[:, 2:, a:b].mean((1, 2)) for a, b in ((0, 4), (2, 6), (4, 8))]
        joint = torch.cat([tokens[:, 0], *bands], -1)
        out = {k: head(joint).unflatten(1, (3, -1)) for k, head in self.heads.items()}
        return {"background": self.background(joint), **out}

    def teach(self, tokens: Tensor, pixel_values: Tensor, reader: oracle.Reader) -> Tensor:
        with torch.no_grad():
            fine = reader.features[:3](pixel_values)
            coarse = reader.features[3](fine)
        loss = torch.zeros(())
        for head, seen in ((self.fine, fine), (self.coarse, F.interpolate(coarse, size=(8, 8), mode="bilinear"))):
            target = F.layer_norm(seen.float().flatten(2).mT, (seen.shape[1],))
            loss = loss + F.mse_loss(head(tokens[:, 1:]).float(), target)
        return loss


def trained_reader(work: Path) -> oracle.Reader | None:
    """The oracle's network as it stands in the working folder, frozen; None if it is not trained yet."""
    path = work / "oracle.ckpt.pt"
    if not path.exists():
        print(f"no {path}: the vision tower learns without a teacher")
        return None
    reader = oracle.Reader()
    reader.load_state_dict(fit.averaged(path))
    return reader.eval().requires_grad_(False)


def text_labels(scene: world.Scene) -> dict[str, int]:
    row = {"background": list(world.BACKGROUNDS).index(scene.background)}
    for i in (0, 1):
        thing = scene.things[i] if i < len(scene.things) else None
        row[f"shape{i}"] = world.SHAPES.index(thing.shape) if thing else len(world.SHAPES)
        row[f"color{i}"] = list(world.COLORS).index(thing.color) if thing else len(world.COLORS)
        row[f"pattern{i}"] = world.PATTERNS.index(thing.pattern) if thing else 3
    return row


def heads_loss(logits: dict[str, Tensor], truth: list[dict], prefix: str) -> tuple[Tensor, dict[str, float]]:
    total, notes = torch.zeros(()), {}
    for key, value in logits.items():
        target = torch.tensor([row[key] for row in truth])
        total = total + F.cross_entropy(value.float().flatten(0, -2), target.flatten(), ignore_index=-100)
        if key.startswith("shape"):
            hit = (value.argmax(-1) == target)[(target != -100) & (target != value.shape[-1] - 1)]
            notes[f"{prefix}_{key}"] = hit.float().mean().item()
    return total, notes


def augmented(rows: np.ndarray, rng: np.random.Generator) -> Tensor:
    """A little noise and a shift of up to two pixels, in [-1, 1]."""
    pixel_values = torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 127.5 - 1
    dx, dy = rng.integers(-2, 3, size=2)
    pixel_values = torch.roll(pixel_values, (int(dy), int(dx)), (2, 3))
    return pixel_values + 0.03 * torch.randn_like(pixel_values)


def choices(work: Path) -> dict[tuple[str, str], np.ndarray]:
    """By background and colour: ids (phrasings, shapes, tokens) of prompts that are alike but for the shape."""
    tokenizer = text.clip_tokenizer(work)
    found = {}
    for background, phrases in grammar.BACKGROUND_PHRASES.items():
        for color in world.COLORS:
            prompts = [f"{grammar.with_article(f'{color} {shape}')} {p}" for p in phrases for shape in world.SHAPES]
            rows = tokenizer(prompts, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="np")
            found[background, color] = rows.input_ids.reshape(len(phrases), len(world.SHAPES), -1)
    return found


def build(work: Path):
    pictures, scenes = data.load(work, "train")
    ids = np.load(work / "train.clip.npy")
    asked = choices(work)
    single = np.array([len(s.things) == 1 for s in scenes])
    first = np.array([world.SHAPES.index(s.things[0].shape) for s in scenes])
    seen_labels = [oracle.labels(s) for s in scenes]
    said_labels = [text_labels(s) for s in scenes]
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, scene in enumerate(scenes):
        groups[scene.background, scene.things[0].color].append(i)
    keys = sorted(groups)
    reader = trained_reader(work)
    tokenizer = text.clip_tokenizer(work)
    model = WithHeads(models.clip(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id))
    model.clip.set_attn_implementation("eager")  # twice as fast in bf16 on a CPU as the fused kernel and its backward

    def make_loss(model: WithHeads):
        def loss(step: int, rng: np.random.Generator):
            chosen = [keys[i] for i in rng.integers(len(keys), size=GROUPS)]
            rows = np.unique([groups[k][j] for k in chosen for j in rng.integers(len(groups[k]), size=GROUP)])
            said_ids = ids[rows, rng.integers(ids.shape[1], size=len(rows))].astype(np.int64)
            # every group also meets the twelve prompts that differ in the shape alone, which its captions rarely do
            choice = np.concatenate([asked[k][rng.integers(len(asked[k]))] for k in chosen])
            input_ids = torch.from_numpy(np.concatenate([said_ids, choice.astype(np.int64)]))
            pixel_values = augmented(pictures[rows], rng)
            with torch.autocast("cpu", torch.bfloat16):
                vision = model.clip.vision_model(pixel_values=pixel_values)
                said = model.clip.text_model(input_ids=input_ids)
                image_embeds = F.normalize(model.clip.visual_projection(vision.pooler_output).float(), dim=-1)
                text_embeds = F.normalize(model.clip.text_projection(said.pooler_output).float(), dim=-1)
                text_embeds, of_shapes = text_embeds[: len(rows)], text_embeds[len(rows) :].unflatten(0, (GROUPS, -1))
                vision_logits = model.vision(vision.last_hidden_state)
                taught = model.vision.teach(vision.last_hidden_state, pixel_values, reader) if reader else 0.0
                joint = torch.cat([said.pooler_output, said.last_hidden_state.mean(1)], -1)[: len(rows)]
                text_logits = {k: head(joint) for k, head in model.text.items()}
            scale = model.clip.logit_scale.exp().clamp(max=60)
            logits = image_embeds @ text_embeds.T * scale
            place = {key: i for i, key in enumerate(chosen)}
            own = torch.tensor([place[scenes[i].background, scenes[i].things[0].color] for i in rows])
            among = torch.einsum("nd,nsd->ns", image_embeds, of_shapes[own]) * scale
            one = torch.from_numpy(single[rows])
            shape = F.cross_entropy(among[one], torch.from_numpy(first[rows])[one])
            truth = torch.arange(len(rows))
            contrastive = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
            a, notes_a = heads_loss(vision_logits, [seen_labels[i] for i in rows], "v")
            b, notes_b = heads_loss(text_logits, [said_labels[i] for i in rows], "t")
            hit = (among.argmax(1) == torch.from_numpy(first[rows]))[one].float().mean()
            notes = {"contrastive": contrastive.item(), "shape_among": hit.item(), **notes_a, **notes_b}
            return contrastive + shape + 0.5 * a + 0.3 * b + taught, notes

        return loss

    return model, make_loss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    plan = fit.Fit(
        "clip", arguments.work, arguments.steps, arguments.learning_rate, processes=arguments.processes, ema=0.998
    )
    fit.run(plan, functools.partial(build, arguments.work))
