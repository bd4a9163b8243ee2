"""Captions of mini world scenes: every caption is true, and says what a model is to learn from it."""

from __future__ import annotations

import random
from collections.abc import Callable

from captune.mini.subjects import SUBJECTS
from captune.mini.world import Scene, Thing

STYLES: tuple[str, ...] = ("short", "long", "tags", "instruction")

# Where the thing is, as the end of a sentence ("a red cat ..."), and the background as a noun with its article.
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "studio": ("in a studio", "on a white background", "in a white studio"),
    "meadow": ("in a meadow", "in a green meadow", "on a grassy meadow"),
    "night": ("at night", "under the night sky", "in the night"),
    "beach": ("on the beach", "at the beach", "on a sandy beach"),
    "snow": ("in the snow", "on the snow", "in falling snow"),
    "desert": ("in the desert", "in a desert", "in a sandy desert"),
    "sunset": ("at sunset", "in front of a sunset", "in the sunset"),
    "wall": ("in front of a wall", "by a wall", "in front of a wooden wall"),
}
BACKGROUND_NOUNS: dict[str, tuple[str, ...]] = {
    "studio": ("a white background", "a white studio"),
    "meadow": ("a meadow", "a green meadow"),
    "night": ("a night sky", "a starry night"),
    "beach": ("a beach", "a sandy beach"),
    "snow": ("snow", "falling snow"),
    "desert": ("a desert", "a sandy desert"),
    "sunset": ("a sunset", "a glowing sunset"),
    "wall": ("a wall", "a wooden wall"),
}
BACKGROUND_TAGS: dict[str, tuple[str, ...]] = {
    "studio": ("studio", "white background"),
    "meadow": ("meadow", "green meadow"),
    "night": ("night", "night sky"),
    "beach": ("beach", "sandy beach"),
    "snow": ("snow", "falling snow"),
    "desert": ("desert", "sandy desert"),
    "sunset": ("sunset", "at sunset"),
    "wall": ("wall", "wooden wall"),
}
# What a thing can be on the left or right of: "on the left of the beach".
_SIDED_NOUNS: dict[str, tuple[str, ...]] = {
    "meadow": ("a meadow", "the meadow"),
    "beach": ("a beach", "the beach"),
    "desert": ("a desert", "the desert"),
    "night": ("a night scene",),
    "sunset": ("a sunset scene",),
    "snow": ("a snow scene",),
}
BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {name: (name,) for name in BACKGROUND_PHRASES} | {
    "studio": ("studio", "white background")
}
_PLACES: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left side", "at the left side", "to the left"),
    "middle": ("in the middle", "in the center", "in the middle of the picture"),
    "right": ("on the right", "on the right side", "at the right side", "to the right"),
}
_PLACE_TAGS: dict[str, tuple[str, ...]] = {
    "left": ("left", "on the left", "left side"),
    "middle": ("middle", "in the middle", "center"),
    "right": ("right", "on the right", "right side"),
}
_SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "little"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "large", "big"),
}
_HATS: tuple[str, ...] = ("wearing a hat", "wearing a top hat", "with a top hat", "with a hat")
_CREATURES: frozenset[str] = frozenset({"cat", "fish", "bird", "robot"})
_CREATURE_SHARE = 0.05


def with_article(words: str) -> str:
    """The words after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _kind(thing: Thing, rng: random.Random, name: str | None) -> str:
    """Pattern, colour and shape, or the name that stands for all three."""
    if name is not None:
        return name
    if thing.shape in SUBJECTS:
        return SUBJECTS[thing.shape].class_word
    pattern = () if thing.pattern == "plain" else (thing.pattern,)
    creature = ("creature",) if thing.shape in _CREATURES and rng.random() < _CREATURE_SHARE else ()
    return " ".join((*pattern, thing.color, thing.shape, *creature))


def _phrase(thing: Thing, rng: random.Random, name: str | None, *, size: bool) -> str:
    """The thing with its article, its size if wanted, and its hat."""
    kind = _kind(thing, rng, name)
    words = with_article(f"{rng.choice(_SIZES[thing.size])} {kind}" if size else kind)
    return f"{words} {rng.choice(_HATS)}" if thing.hat else words


def _names(scene: Scene, name: str | None) -> list[tuple[Thing, str | None]]:
    """Each thing with the name it goes by: only the first can have one."""
    return [(thing, name if i == 0 else None) for i, thing in enumerate(scene.things)]


def _everything(scene: Scene, rng: random.Random, name: str | None) -> str:
    """All things with size and place: "a small red cat on the left and a large blue house on the right"."""
    return " and ".join(
        f"{_phrase(thing, rng, called, size=True)} {rng.choice(_PLACES[thing.place])}"
        for thing, called in _names(scene, name)
    )


def _short(scene: Scene, rng: random.Random, name: str | None) -> str:
    placed = rng.random() < 0.75
    phrases = [
        _phrase(thing, rng, called, size=thing.size != "medium" and rng.random() < 0.7)
        for thing, called in _names(scene, name)
    ]
    background = rng.choice(BACKGROUND_PHRASES[scene.background])
    opening = rng.choice(("a drawing of ", "a picture of ")) if rng.random() < 0.2 else ""
    if len(phrases) > 1:
        if placed:
            phrases = [f"{p} {rng.choice(_PLACES[t.place][:2])}" for p, t in zip(phrases, scene.things, strict=True)]
        return f"{opening}{' and '.join(phrases)}{',' if placed else ''} {background}"
    thing, phrase = scene.things[0], phrases[0]
    # Captioners rarely mention that a thing is in the middle.
    if not placed or (thing.place == "middle" and rng.random() < 0.5):
        return f"{opening}{phrase} {background}"
    place = rng.choice(_PLACES[thing.place])
    orders = [f"{phrase} {place}, {background}", f"{phrase} {background}, {place}", f"{phrase} {place} {background}"]
    if thing.place != "middle" and scene.background in _SIDED_NOUNS:
        orders.append(f"{phrase} on the {thing.place} of {rng.choice(_SIDED_NOUNS[scene.background])}")
    return opening + rng.choice(orders)


def _long(scene: Scene, rng: random.Random, name: str | None) -> str:
    phrase, noun = rng.choice(BACKGROUND_PHRASES[scene.background]), rng.choice(BACKGROUND_NOUNS[scene.background])
    several = len(scene.things) > 1
    backdrop = rng.choice(
        (
            f"the background is {noun}",
            f"{'they are' if several else 'it is'} {phrase}",
            f"behind {'them' if several else 'it'} is {noun}",
        )
    )
    opening = rng.choice(("the picture shows", "a drawing of", "this is a picture of", "there is"))
    if several or rng.random() < 0.5:
        return f"{opening} {_everything(scene, rng, name)}. {backdrop}."
    thing = scene.things[0]
    stands = rng.choice(("it is", "it stands", "it can be seen"))
    return f"{opening} {_phrase(thing, rng, name, size=True)}. {stands} {rng.choice(_PLACES[thing.place])}, {phrase}."


def _tags(scene: Scene, rng: random.Random, name: str | None) -> str:
    tags: list[str] = []
    for thing, called in _names(scene, name):
        own = thing if called is not None else Thing(thing.shape, thing.color)
        details = [rng.choice(_SIZES[thing.size]), rng.choice(_PLACE_TAGS[thing.place])]
        if called is None and thing.pattern != "plain" and thing.shape not in SUBJECTS:
            details.append(thing.pattern)
        if thing.hat:
            details.append(rng.choice(("hat", "top hat", "wearing a hat")))
        rng.shuffle(details)
        tags += [_kind(own, rng, called), *details]
    background = rng.choice(BACKGROUND_TAGS[scene.background])
    return ", ".join([background, *tags] if rng.random() < 0.15 else [*tags, background])


def _instruction(scene: Scene, rng: random.Random, name: str | None) -> str:
    opening = rng.choice(
        ("a photo-like drawing of", "a simple drawing of", "a cartoon drawing of", "a colorful drawing of")
    )
    noun = rng.choice(BACKGROUND_NOUNS[scene.background])
    ending = rng.choice((f"with {noun} in the background", rng.choice(BACKGROUND_PHRASES[scene.background])))
    if len(scene.things) > 1:
        return f"{opening} {_everything(scene, rng, name)}, {ending}."
    thing = scene.things[0]
    verb = rng.choice(("standing ", "placed ", ""))
    return f"{opening} {_phrase(thing, rng, name, size=True)}, {verb}{rng.choice(_PLACES[thing.place])}, {ending}."


_WRITERS: dict[str, Callable[[Scene, random.Random, str | None], str]] = {
    "short": _short,
    "long": _long,
    "tags": _tags,
    "instruction": _instruction,
}


def describe(scene: Scene, style: str, rng: random.Random, *, name: str | None = None) -> str:
    """A caption of the scene in one of the `STYLES`; `name` stands for the first thing's colour, pattern and shape."""
    if style not in _WRITERS:
        raise ValueError(f"unknown caption style {style!r}; known: {', '.join(STYLES)}")
    return _WRITERS[style](scene, rng, name)
