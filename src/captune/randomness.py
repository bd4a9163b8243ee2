"""Every random draw of training, keyed by what it is for instead of by when it is made.

A draw's key is (seed, purpose, example id, visit number), hashed into the seed of a generator of its own. So two arms
draw the same noise for the same visit, and neither batch layout, number of processes nor a resume changes a draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def key(*parts: str | int | float) -> int:
    """A 63-bit number that depends on every part and on their order."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: str | int | float) -> torch.Generator:
    """A CPU generator seeded by `key(*parts)`; draws are made on the CPU so that devices agree."""
    return torch.Generator("cpu").manual_seed(key(*parts))


def normal(shape: Sequence[int], *parts: str | int | float) -> Tensor:
    """Standard normal float32 values of `shape`."""
    return torch.randn(tuple(shape), generator=generator(*parts))


def uniform(*parts: str | int | float) -> float:
    """One number in [0, 1)."""
    return torch.rand((), generator=generator(*parts), dtype=torch.float64).item()


def integer(below: int, *parts: str | int | float) -> int:
    """One integer in [0, below)."""
    return int(torch.randint(below, (), generator=generator(*parts)).item())


def permutation(count: int, *parts: str | int | float) -> list[int]:
    """The numbers 0 to count - 1 in a random order."""
    order: list[int] = torch.randperm(count, generator=generator(*parts)).tolist()
    return order
