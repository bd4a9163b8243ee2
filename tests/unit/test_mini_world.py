"""Facts about the mini world that the mini models' training relies on."""

from __future__ import annotations

import random
import re

import pytest
from PIL import ImageChops, ImageStat

from captune.mini import grammar, subjects, world


def scenes(count: int, **options: str) -> list[world.Scene]:
    rng = random.Random(5)
    return [world.random_scene(rng, **options) for _ in range(count)]  # type: ignore[arg-type]


def captions_with_scenes() -> list[tuple[str, str, world.Scene]]:
    rng = random.Random(6)
    return [(style, grammar.describe(scene, style, rng), scene) for scene in scenes(400) for style in grammar.STYLES]


def test_same_scene_gives_same_pixels() -> None:
    for scene in scenes(10):
        assert world.draw(scene).tobytes() == world.draw(scene).tobytes()


def test_a_scene_is_the_same_picture_at_every_size() -> None:
    for scene in scenes(10):
        difference = ImageChops.difference(world.draw(scene, 128).reduce(2), world.draw(scene, 64))
        assert max(ImageStat.Stat(difference).mean) < 2.0


def test_every_shape_color_and_background_can_be_drawn() -> None:
    for i, shape in enumerate(world.SHAPES):
        for j, color in enumerate(world.COLORS):
            thing = world.Thing(shape, color, world.PATTERNS[(i + j) % 3], hat=True)
            picture = world.draw(world.Scene(world.BACKGROUNDS[(i + j) % 8], (thing,)))
            assert (picture.size, picture.mode) == ((64, 64), "RGB")


def test_held_out_pairs_are_never_seen_and_always_held_out() -> None:
    seen = {(thing.shape, thing.color) for scene in scenes(4000) for thing in scene.things}
    held_out = {(thing.shape, thing.color) for scene in scenes(300, pairs="held_out") for thing in scene.things}
    assert not seen & world.HELD_OUT
    assert len(seen) == len(world.SHAPES) * len(world.COLORS) - len(world.HELD_OUT)
    assert held_out == world.HELD_OUT


def test_every_caption_says_shape_color_background_pattern_and_hat() -> None:
    for style, caption, scene in captions_with_scenes():
        assert any(word in caption for word in grammar.BACKGROUND_WORDS[scene.background]), caption
        for thing in scene.things:
            assert f"{thing.color} {thing.shape}" in caption, (style, caption)
            assert thing.pattern == "plain" or thing.pattern in caption, (style, caption)
            assert not thing.hat or "hat" in caption, (style, caption)


def test_captions_other_than_short_always_say_place_and_size() -> None:
    words = {"middle": ("middle", "center"), "small": ("small", "little"), "large": ("large", "big")}
    for style, caption, scene in captions_with_scenes():
        for thing in scene.things if style != "short" else ():
            for attribute in (thing.place, thing.size):
                assert any(word in caption for word in words.get(attribute, (attribute,))), (style, caption)


def test_captions_are_lower_case_short_and_use_the_right_article() -> None:
    for _, caption, _ in captions_with_scenes():
        assert caption == caption.lower()
        assert len(caption.split()) <= 40, caption
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  | ,", caption), caption


def test_a_named_subject_is_never_described_by_color_or_pattern() -> None:
    rng = random.Random(7)
    for name in subjects.SUBJECTS:
        for style in grammar.STYLES:
            scene = subjects.subject_scene(name, rng)
            words = set(re.findall(r"[a-z]+", grammar.describe(scene, style, rng, name=name)))
            assert name in words
            # "white studio" and "green meadow" are the backgrounds' own words.
            assert not words & (set(world.COLORS) - {"white", "green"} | {"striped", "spotted", "creature"})


def test_every_subject_looks_like_no_other_thing() -> None:
    def picture(shape: str) -> bytes:
        return world.draw(world.Scene("studio", (world.Thing(shape, "blue", size="large"),))).tobytes()

    pictures = [picture(shape) for shape in (*subjects.SUBJECTS, *world.SHAPES)]
    for i, one in enumerate(pictures[: len(subjects.SUBJECTS)]):
        for other in pictures[i + 1 :]:
            assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one) > 8


def test_training_scenes_are_fixed_and_cover_backgrounds_and_places() -> None:
    for name in subjects.SUBJECTS:
        chosen = subjects.training_scenes(name)
        assert chosen == subjects.training_scenes(name)
        assert len(chosen) == 11
        assert {scene.background for scene in chosen} == set(world.BACKGROUNDS)
        assert {scene.things[0].place for scene in chosen} == set(world.PLACES)
        assert sum(scene.things[0].hat for scene in chosen) <= 2


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="known: ball, cube"):
        world.draw(world.Scene("beach", (world.Thing("teapot", "red"),)))
    with pytest.raises(ValueError, match="known: short, long"):
        grammar.describe(scenes(1)[0], "haiku", random.Random(0))
    with pytest.raises(ValueError, match="known: jefpajot"):
        subjects.training_scenes("nobody")
