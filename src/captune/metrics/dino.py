"""dino: how much a picture looks like the training pictures, to an encoder that never learned class names.

Definition: the mean cosine between the DINOv2 embeddings ([CLS] token) of the picture and of every training picture.
Range: -1 to 1. Higher is better, up to the ceiling: the training pictures among themselves (the arm named "real").
CLIP, which learned from captions, takes two dogs for nearly the same; DINO, which learned from pictures alone, tells one
dog from another, so it is the stricter judge of a subject. The DreamBooth paper used the first DINO (ViT-S/16): its
values do not compare with these.
Source: Ruiz et al. 2023, DreamBooth (DINO); Oquab et al. 2023 for DINOv2.
"""

from __future__ import annotations

from collections.abc import Sequence

from captune.metrics import Item
from captune.metrics._likeness import ByDino


class Dino(ByDino):
    """Mean cosine with the training pictures; None where there are none."""

    name = "dino"
    title = "Likeness to the training pictures, by DINO"
    meaning = (
        "DINO: mean cosine between a picture of the subject and the training pictures; from -1 to 1, higher is better "
        "up to what the training pictures reach among themselves; tells single subjects apart better than CLIP."
    )
    higher_is_better = True
    judges = "subject"
    ceiling = True

    def score(self, items: Sequence[Item]) -> list[float | None]:
        return [None if cosines is None else cosines.mean().item() for cosines in self._cosines(items)]
