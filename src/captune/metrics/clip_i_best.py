"""clip_i_best: how much a picture looks like the training picture that it is nearest to.

Definition: the greatest cosine between the CLIP image embeddings of the picture and of any training picture.
Range: -1 to 1, never below clip_i. Higher is better, up to the ceiling: each training picture's nearest other one (the
arm named "real"). A subject that was photographed in unlike places and poses cannot be near to all of its pictures;
this asks only for one. More training pictures raise it. Above the ceiling it speaks of copying: see memorization.
Source: CLIP-I (Ruiz et al. 2023, DreamBooth) with the best in place of the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from captune.metrics import Item
from captune.metrics._likeness import ByClip


class ClipIBest(ByClip):
    """Cosine with the nearest training picture; None where there are none."""

    name = "clip_i_best"
    title = "Likeness to the nearest training picture"
    meaning = (
        "CLIP-I with the best in place of the mean: cosine between a picture of the subject and the nearest training "
        "picture; from -1 to 1, higher is better up to what a training picture reaches with its nearest other."
    )
    higher_is_better = True
    judges = "subject"
    ceiling = True

    def score(self, items: Sequence[Item]) -> list[float | None]:
        return [None if cosines is None else cosines.max().item() for cosines in self._cosines(items)]
