"""Pictures that show nearly the same, by the perceptual hash of the library ImageHash (a picture's lowest frequencies)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image, ImageOps

BITS = 64
SHRUNK = 32  # the side that the hash looks at


@dataclass(frozen=True)
class Look:
    """A picture's perceptual hash (16 hexadecimal digits), and that of its mirror image."""

    hash: str
    mirrored: str


@dataclass(frozen=True)
class Pair:
    """Two pictures by name; of 64 bits `distance` differ; `mirrored`: one shows the other's mirror image."""

    first: str
    second: str
    distance: int
    mirrored: bool = False


def look(image: Image.Image) -> Look:
    """What is compared of a picture."""
    small = image.convert("L").resize((SHRUNK, SHRUNK), Image.Resampling.LANCZOS)
    return Look(str(imagehash.phash(small)), str(imagehash.phash(ImageOps.mirror(small))))


def near_duplicates(looks: Mapping[str, Look], distance: int = 10) -> Iterator[Pair]:
    """All pairs of pictures whose hashes differ in at most `distance` bits, in the order of the mapping.

    10 of 64 is as far as a cut of 5 % of each side brought any of 21 photographs from itself; no two of them were nearer
    than 18.
    """
    names = list(looks)
    straight = np.array([int(looks[name].hash, 16) for name in names], dtype=np.uint64)
    mirrored = np.array([int(looks[name].mirrored, 16) for name in names], dtype=np.uint64)
    for i, name in enumerate(names):
        as_is = np.bitwise_count(straight[i + 1 :] ^ straight[i])
        turned = np.bitwise_count(mirrored[i + 1 :] ^ straight[i])
        for j in np.flatnonzero(np.minimum(as_is, turned) <= distance):
            is_turned = bool(turned[j] < as_is[j])
            yield Pair(name, names[i + 1 + int(j)], int(min(as_is[j], turned[j])), is_turned)


def dropped(pairs: Sequence[Pair], pixels: Mapping[str, int]) -> dict[str, Pair]:
    """Which pictures to leave out, with the pair that says why, so that no pair is left; the larger of two stays."""
    order = {name: index for index, name in enumerate(sorted(pixels, key=lambda n: (-pixels[n], n)))}
    partners: dict[str, list[Pair]] = {}
    for pair in pairs:
        later = max(pair.first, pair.second, key=order.__getitem__)
        partners.setdefault(later, []).append(pair)
    gone: dict[str, Pair] = {}
    for name in sorted(partners, key=order.__getitem__):
        for pair in partners[name]:
            other = pair.second if pair.first == name else pair.first
            if other not in gone:
                gone[name] = pair
                break
    return gone


def as_reason(pair: Pair, name: str) -> str:
    """Why one picture of a pair is left out."""
    return f"shows nearly the same as {pair.second if pair.first == name else pair.first} {_how_near(pair)}"


def as_warning(pair: Pair) -> str:
    """What is said of a pair that is kept."""
    return f"{pair.first} and {pair.second} show nearly the same {_how_near(pair)}"


def _how_near(pair: Pair) -> str:
    mirrored = ", one of them mirrored" if pair.mirrored else ""
    return f"({pair.distance} of {BITS} bits of their perceptual hashes differ{mirrored})"
