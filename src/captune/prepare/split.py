"""Which pictures train, validate and test: by picture, keyed, and never two near-duplicates on different sides."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captune import images, runs
from captune.errors import DataError

SIDES = ("train", "validation", "test")
GRID = 16  # the difference hash compares neighbours in a grid of 16 x 16: 256 bits
NEAR_BITS = 20  # of near-duplicates: a re-saved or scaled copy differs in a few bits, another picture in about 128
COLORS = 8  # and, since the hash knows no colours: mean colours of 8 x 8 fields
NEAR_COLOR = 12.0  # mean difference of near-duplicates, of 255
BLOCK = 512  # pictures compared at a time, so that memory stays flat


@dataclass(frozen=True)
class View:
    """A picture as near-duplicates are told by: its file's hash, its difference hash (32 bytes), its colours (8, 8, 3)."""

    sha256: str
    bits: NDArray[np.uint8]
    colors: NDArray[np.float32]


@dataclass(frozen=True)
class Sides:
    """Every picture's side, and the groups of near-duplicates."""

    of: dict[str, str]
    together: list[list[str]]


def view(path: Path) -> View:
    """How a picture looks. Raises PictureError for a broken one."""
    picture = images.open_picture(path)
    grey = np.asarray(picture.convert("L").resize((GRID + 1, GRID), Image.Resampling.BOX), dtype=np.int16)
    fields = np.asarray(picture.resize((COLORS, COLORS), Image.Resampling.BOX), dtype=np.float32)
    return View(runs.sha256_of(path), np.packbits(grey[:, 1:] > grey[:, :-1]), fields)


def sides(views: Mapping[str, View], validation: float, test: float, seed: int) -> Sides:
    """The side of every picture. It depends on the pictures and the seed, not on names or order.

    Groups of near-duplicates are drawn in a keyed order; a group that is too large for what a side still lacks goes on to
    the next, and at last to training. Raises DataError where a side that was asked for has no picture.
    """
    groups = near_duplicates(views)
    key = {i: min(views[name].sha256 for name in group) for i, group in enumerate(groups)}
    order = sorted(range(len(groups)), key=lambda i: hashlib.sha256(f"{seed}\x1f{key[i]}".encode()).digest())
    wanted = {"test": _count(test, len(views)), "validation": _count(validation, len(views))}
    of: dict[str, str] = {}
    for i in order:
        side = next((name for name, room in wanted.items() if room >= len(groups[i])), "train")
        if side != "train":
            wanted[side] -= len(groups[i])
        of |= dict.fromkeys(groups[i], side)
    for side, share in (("train", 1.0), ("validation", validation), ("test", test)):
        if share and side not in of.values():
            raise DataError(
                f"{len(views)} pictures in {len(groups)} groups of near-duplicates leave none to {side} on "
                f"(validation = {validation}, test = {test}); give more pictures, or set that share to 0"
            )
    return Sides({name: of[name] for name in views}, [group for group in groups if len(group) > 1])


def _count(share: float, pictures: int) -> int:
    return max(1, round(share * pictures)) if share else 0


def near_duplicates(views: Mapping[str, View]) -> list[list[str]]:
    """All pictures in groups; those of a group are linked by near-duplicates. Order of names and of groups as given."""
    names = list(views)
    leader = list(range(len(names)))

    def root(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    bits = np.stack([views[name].bits for name in names]) if names else np.zeros((0, 32), np.uint8)
    for start in range(0, len(names), BLOCK):
        differing = np.bitwise_count(bits[start : start + BLOCK, None] ^ bits[None]).sum(-1, dtype=np.int32)
        for i, j in zip(*np.nonzero(differing <= NEAR_BITS), strict=True):
            a, b = int(i) + start, int(j)
            if a < b and _same_colors(views[names[a]], views[names[b]]):
                leader[max(root(a), root(b))] = min(root(a), root(b))
    groups: dict[int, list[str]] = defaultdict(list)
    for i, name in enumerate(names):
        groups[root(i)].append(name)
    return [groups[i] for i in sorted(groups)]


def _same_colors(a: View, b: View) -> bool:
    return float(np.abs(a.colors - b.colors).mean()) <= NEAR_COLOR
