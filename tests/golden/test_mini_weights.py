"""The shipped weights do what docs/mini.md says, on a small sample; `make gates` measures them in full."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from captune import captioners, demo, families, images, weights
from captune.mini import grammar, oracle, subjects, world
from captune.recipe import BaseSection, CaptionerSection
from captune.types import Example

LIMIT = 30_000_000


def scenes(count: int, seed: int) -> list[world.Scene]:
    rng = random.Random(seed)
    return [world.random_scene(rng, two_share=0) for _ in range(count)]


def asked(prompt: str, reading: oracle.Reading) -> bool:
    """Whether what is seen has the prompt's background, colour and shape."""
    words = grammar.BACKGROUND_WORDS[reading.background]
    things = any(f"{t.color} {t.shape}" in prompt for t in reading.things)
    return things and any(word in prompt for word in words)


@pytest.fixture(scope="module")
def reader() -> oracle.Oracle:
    return oracle.Oracle.load(weights.EMBEDDED / "oracle.safetensors")


@pytest.fixture(scope="module")
def base() -> families.Family:
    return families.load(BaseSection(device="cpu", precision="fp32"))


def test_all_weights_together_are_small() -> None:
    assert 1_000_000 < sum(p.stat().st_size for p in weights.EMBEDDED.rglob("*") if p.is_file()) <= LIMIT


def test_the_oracle_reads_renders(reader: oracle.Oracle) -> None:
    """Patterns too: they are what goes first when the world is drawn otherwise than the models learnt it."""
    chosen = scenes(200, seed=1)
    readings = reader.read([world.draw(s) for s in chosen])
    right = 0
    for scene, reading in zip(chosen, readings, strict=True):
        thing = scene.things[0]
        seen = [(t.shape, t.color, t.pattern, t.place) for t in reading.things]
        told = (thing.shape, thing.color, thing.pattern, thing.place)
        right += reading.background == scene.background and seen == [told]
    assert right >= 196


def test_the_oracle_knows_every_subject(reader: oracle.Oracle) -> None:
    for name in subjects.SUBJECTS:
        pictures = [world.draw(s) for s in subjects.training_scenes(name)]
        assert sum(r.things[0].shape == name for r in reader.read(pictures) if r.things) >= 10


def test_the_vae_keeps_a_subjects_colours(base: families.Family) -> None:
    pictures = [images.to_pixel_values(world.draw(scene)) for scene in subjects.training_scenes("jefpajot")]
    pixel_values = torch.from_numpy(np.stack(pictures))
    vae = base._pipeline.vae  # type: ignore[attr-defined]
    with torch.no_grad():
        rebuilt = vae.decode(base.encode_images(pixel_values) / vae.config.scaling_factor).sample
    error = (rebuilt.clamp(-1, 1) - pixel_values).square().mean((1, 2, 3))
    assert (10 * torch.log10(4 / error)).mean().item() >= 23


def test_the_base_draws_what_it_is_asked_and_no_subject(base: families.Family, reader: oracle.Oracle) -> None:
    prompts = [*demo.ordinary_prompts(12, seed=3), *demo.subject_prompts("jefpajot")[::6]]
    pictures = base.generate(
        prompts,
        list(range(len(prompts))),
        steps=20,
        guidance_scale=5.0,
        negative_prompt="",
        width=64,
        height=64,
    )
    readings = reader.read(pictures)
    assert sum(asked(p, r) for p, r in zip(prompts[:12], readings[:12], strict=True)) >= 11
    assert not any(t.shape in subjects.SUBJECTS for r in readings for t in r.things)


def test_blip_says_what_it_sees(tmp_path: Path) -> None:
    chosen = scenes(16, seed=5)
    examples = []
    for index, scene in enumerate(chosen):
        path = tmp_path / f"{index}.png"
        world.draw(scene).save(path)
        examples.append(Example(str(index), path, path, 64, 64, 64, 64, 1, ""))
    captions = captioners.load(CaptionerSection(name="blip"), "cpu").caption(examples)
    right = sum(
        f"{s.things[0].color} {s.things[0].shape}" in caption
        and any(word in caption for word in grammar.BACKGROUND_WORDS[s.background])
        for s, caption in zip(chosen, captions, strict=True)
    )
    assert right >= 15, captions
