"""Trains the oracle on renders of the world and of the subjects, sharp, blurred, noisy and rebuilt by the VAE.

With --generated it also learns from pictures that the shipped base model draws: of ordinary prompts, and of trigger
words, which to the base mean nothing, so that whatever it draws there is no subject.

    python -m mini_training.train_oracle WORK [--steps 3000] [--generated]
"""

from __future__ import annotations

import argparse
import functools
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captune.mini import grammar, oracle, subjects, world
from mini_training import data, fit, models

BATCH = 64
WEIGHTS = {"shape": 3.0, "pattern": 3.0}  # of the loss; the others, 1.0, are learnt in the first minutes
NO_SUBJECT = -200


def _subject_chunk(seed: int) -> tuple[np.ndarray, list[dict]]:
    rng = random.Random(seed)
    scenes = [subjects.subject_scene(rng.choice(list(subjects.SUBJECTS)), rng) for _ in range(500)]
    return np.stack([np.asarray(world.draw(s, data.SIZE)) for s in scenes]), [oracle.labels(s) for s in scenes]


def subject_pictures(chunks: int, seed: int) -> tuple[np.ndarray, list[dict]]:
    with ProcessPoolExecutor(2) as pool:
        parts = list(pool.map(_subject_chunk, range(seed, seed + chunks)))
    return np.concatenate([p for p, _ in parts]), [row for _, rows in parts for row in rows]


def degraded(pixel_values: Tensor) -> Tensor:
    """A random softness and noise, as a VAE or an unsure diffusion model gives; (batch, 3, height, width) in [-1, 1]."""
    draw = torch.rand(4).tolist()
    out = pixel_values
    if draw[0] < 0.4:
        side = int(24 + 40 * draw[1])
        out = F.interpolate(out, size=(side, side), mode="area")
        out = F.interpolate(out, size=pixel_values.shape[-2:], mode="bilinear")
    if draw[2] < 0.3:
        out = out + torch.randn_like(out) * 0.15 * draw[3]
    return out.clamp(-1, 1)


@torch.no_grad()
def rebuilt(work: Path, pictures: np.ndarray, batch: int = 100) -> np.ndarray:
    """The pictures (count, height, width, 3) as the VAE shows them."""
    vae = models.vae()
    newest = work / "decoder.ckpt.pt"
    vae.load_state_dict(fit.averaged(newest if newest.exists() else work / "vae.ckpt.pt"))
    out = []
    for start in range(0, len(pictures), batch):
        pixel_values = torch.from_numpy(np.array(pictures[start : start + batch])).permute(0, 3, 1, 2).float()
        with torch.autocast("cpu", torch.bfloat16):
            shown = vae(pixel_values / 127.5 - 1).sample.float()
        out.append(((shown.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


def base_pictures(ordinary: int = 640, trigger: int = 320) -> tuple[np.ndarray, list[dict]]:
    """What the shipped base draws; a row's shape is `NO_SUBJECT` where all that is known is that it is none."""
    from mini_training import gates  # not above: with it comes diffusers' whole pipeline

    pipeline = gates.base_pipeline(gates.SHIPPED / "sd")
    cases = gates.full_prompts("oracle", ordinary, "any")
    rng = random.Random("oracle trigger words")
    words = [subject.trigger_word for subject in subjects.SUBJECTS.values()]
    prompts = [prompt for _, prompt in cases]
    rows = [
        {**oracle.labels(scene), "pattern": [-100] * 3, "size": [-100] * 3, "hat": [-100] * 3} for scene, _ in cases
    ]
    for _ in range(trigger):
        background = rng.choice(list(world.BACKGROUNDS))
        place = rng.choice(grammar.BACKGROUND_PHRASES[background])
        prompts.append(f"{grammar.with_article(rng.choice(words))} {place}")
        unknown = {k: [-100] * 3 for k in oracle.HEADS}
        rows.append({**unknown, "shape": [NO_SUBJECT] * 3, "background": list(world.BACKGROUNDS).index(background)})
    images = gates.generate(pipeline, prompts, first_seed=50_000)
    return np.stack([np.asarray(image) for image in images]), rows


def not_a_subject(logits: Tensor) -> Tensor:
    """-log of the probability that it is no subject, for shape logits (count, classes)."""
    ordinary = torch.cat([logits[:, : len(world.SHAPES)], logits[:, -1:]], 1)
    return (logits.logsumexp(1) - ordinary.logsumexp(1)).mean()


def build(work: Path):
    sources = [data.load(work, "train"), data.load(work, "held_out")]
    pools = [(pictures, [oracle.labels(s) for s in scenes]) for pictures, scenes in sources]
    creatures = np.load(work / "subjects.npy", mmap_mode="r")
    creature_labels = torch.load(work / "subjects.labels.pt", weights_only=True)
    pools.append((creatures, creature_labels))
    pools.append((rebuilt(work, pools[0][0][:5000]), pools[0][1][:5000]))
    pools.append((rebuilt(work, creatures[:3000]), creature_labels[:3000]))
    shares = [0.45, 0.05, 0.15, 0.2, 0.15]
    if (work / "generated.npy").exists():
        pools.append((np.load(work / "generated.npy"), torch.load(work / "generated.labels.pt", weights_only=True)))
        shares = [*(0.85 * share for share in shares), 0.15]

    def make_loss(model):
        def loss(step: int, rng: np.random.Generator):
            rows, truth = [], []
            for pool in rng.choice(len(pools), size=BATCH, p=shares):
                pictures, labels = pools[pool]
                index = rng.integers(len(pictures))
                rows.append(np.asarray(pictures[index]))
                truth.append(labels[index])
            pixel_values = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(degraded(pixel_values))
            total, notes = torch.zeros(()), {}
            for key, value in logits.items():
                target = torch.tensor([row[key] for row in truth])
                if key == "shape" and (target == NO_SUBJECT).any():
                    total = total + not_a_subject(value.float()[target == NO_SUBJECT])
                    target[target == NO_SUBJECT] = -100
                part = F.cross_entropy(value.float().flatten(0, -2), target.flatten(), ignore_index=-100)
                total = total + WEIGHTS.get(key, 1.0) * part
                keep = target != -100
                notes[key] = (value.argmax(-1) == target)[keep].float().mean().item()
            return total, notes

        return loss

    return oracle.Reader(), make_loss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--generated", action="store_true", help="learn from the shipped base model's pictures too")
    arguments = parser.parse_args()
    if not (arguments.work / "subjects.npy").exists():
        rows, labels = subject_pictures(24, seed=7_000_000)
        np.save(arguments.work / "subjects.npy", rows)
        torch.save(labels, arguments.work / "subjects.labels.pt")
    if arguments.generated and not (arguments.work / "generated.npy").exists():
        rows, labels = base_pictures()
        np.save(arguments.work / "generated.npy", rows)
        torch.save(labels, arguments.work / "generated.labels.pt")
    plan = fit.Fit("oracle", arguments.work, arguments.steps, 2e-3, processes=arguments.processes, ema=0.998)
    fit.run(plan, functools.partial(build, arguments.work))
