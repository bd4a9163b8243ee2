"""memorization: whether a picture is a training picture again, rather than a new picture of the subject.

Definition: every training picture has a nearest other one. The share of these real-to-real CLIP similarities that the
picture's own similarity to its nearest training picture exceeds (equal ones count half). 0.5: as near as real pictures
usually are to each other; 1: nearer than any real picture is to another.
Range: 0 to 1, in steps of one half over the number of training pictures. Lower is better, but only among arms that draw
the subject at all: the base, which does not know it, has a low value for nothing. It has no ceiling, for real pictures
are spread over 0 to 1 by definition. Training pictures that resemble each other (a burst of one scene) hide copies: then
a copy is no nearer than the others are.
Source: nearest-neighbour similarity as in Somepalli et al. 2023, Diffusion Art or Digital Forgery?; put on the scale of
the real pictures because no fixed threshold fits all encoders and subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from captune.metrics import Item
from captune.metrics._likeness import ByClip

FEWEST = 3  # of two pictures, each is the other's nearest: there is no distribution to stand in
EQUAL = 1e-6  # the same two pictures, embedded in batches of other sizes, differ in float32 by less than this


def nearest_real(embeddings: Tensor) -> Tensor:
    """The greatest cosine of every row of (count, width), of unit length, with another row: (count,)."""
    cosines = embeddings @ embeddings.T
    return cosines.fill_diagonal_(-torch.inf).max(dim=1).values


def quantile_of(value: float, values: Tensor) -> float:
    """The share of the values that lie below `value`; equal ones count half (mid-rank)."""
    below, equal = (values < value - EQUAL).sum(), ((values - value).abs() <= EQUAL).sum()
    return ((below + equal / 2) / len(values)).item()


class Memorization(ByClip):
    """Quantile of the nearest similarity among the real ones; None with fewer than three training pictures."""

    name = "memorization"
    title = "Copying of the training pictures"
    meaning = (
        "Similarity to the nearest training picture, as the quantile among the training pictures' own nearest "
        "similarities; from 0 to 1, lower is better among arms that draw the subject: 1 is nearer than any training "
        "picture is to another, 0.5 is usual."
    )
    higher_is_better = False
    judges = "subject"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        judged = [item for item in items if len(item.references) >= FEWEST]
        if len(judged) < len(items):
            self._note(f"memorization says nothing: it needs {FEWEST} training pictures or more")
        real: dict[tuple[Path, ...], Tensor] = {}
        for references in dict.fromkeys(item.references for item in judged):
            pictures = self._embed(references)
            real[references] = nearest_real(torch.stack([pictures[path] for path in references]))
        values: list[float | None] = []
        for item, cosines in zip(items, self._cosines(items), strict=True):
            known = real.get(item.references)
            values.append(None if known is None or cosines is None else quantile_of(cosines.max().item(), known))
        return values
