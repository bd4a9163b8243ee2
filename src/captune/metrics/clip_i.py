"""clip_i: how much a picture looks like the training pictures.

Definition: the mean cosine between the CLIP image embeddings of the picture and of every training picture.
Range: -1 to 1. Higher is better, up to the ceiling: the training pictures among themselves (the arm named "real"). It
rewards copying, background included, so read it beside clip_t and memorization. The DreamBooth paper names no CLIP
size: values of different encoders do not compare.
Source: Ruiz et al. 2023, DreamBooth (CLIP-I); first used by Gal et al. 2022, Textual Inversion.
"""

from __future__ import annotations

from collections.abc import Sequence

from captune.metrics import Item
from captune.metrics._likeness import ByClip


class ClipI(ByClip):
    """Mean cosine with the training pictures; None where there are none."""

    name = "clip_i"
    title = "Likeness to the training pictures"
    meaning = (
        "CLIP-I: mean cosine between a picture of the subject and the training pictures; from -1 to 1, higher is "
        "better up to what the training pictures reach among themselves; rewards copying their backgrounds too."
    )
    higher_is_better = True
    judges = "subject"
    ceiling = True

    def score(self, items: Sequence[Item]) -> list[float | None]:
        return [None if cosines is None else cosines.mean().item() for cosines in self._cosines(items)]
