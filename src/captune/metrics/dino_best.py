"""dino_best: how much a picture looks like the training picture that it is nearest to, by DINOv2.

Definition: the greatest cosine between the DINOv2 embeddings ([CLS] token) of the picture and of any training picture.
Range: -1 to 1, never below dino. Higher is better, up to the ceiling: each training picture's nearest other one (the
arm named "real"). More training pictures raise it.
Source: DINO (Ruiz et al. 2023, DreamBooth) with the best in place of the mean; Oquab et al. 2023 for DINOv2.
"""

from __future__ import annotations

from collections.abc import Sequence

from captune.metrics import Item
from captune.metrics._likeness import ByDino


class DinoBest(ByDino):
    """Cosine with the nearest training picture; None where there are none."""

    name = "dino_best"
    title = "Likeness to the nearest training picture, by DINO"
    meaning = (
        "DINO with the best in place of the mean: cosine between a picture of the subject and the nearest training "
        "picture; from -1 to 1, higher is better up to what a training picture reaches with its nearest other."
    )
    higher_is_better = True
    judges = "subject"
    ceiling = True

    def score(self, items: Sequence[Item]) -> list[float | None]:
        return [None if cosines is None else cosines.max().item() for cosines in self._cosines(items)]
