"""diversity: how unlike the pictures of one prompt are.

Definition: the mean of 1 - cosine between the CLIP image embeddings of the picture and of those that the same adapter
drew of the same prompt with other sampling seeds.
Range: 0 (all alike) to 2. Higher is better, but the base's own value is the mark, not the range's end: an adapter that
draws one subject, and not anything, is less diverse than the base for a good reason, and one that draws noise is more
so. Low diversity together with high memorization is overfitting. Real pictures are no ceiling: they show other scenes,
not one prompt.
Source: DIV of DreamBooth (Ruiz et al. 2023), there by LPIPS, here by CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from captune.metrics import Item
from captune.metrics._likeness import ByClip


class Diversity(ByClip):
    """Mean distance to the pictures of the same prompt with other seeds; None where there are none."""

    name = "diversity"
    title = "Variety within a prompt"
    meaning = (
        "Mean of 1 - cosine between pictures of one prompt with several seeds; 0 is all alike, higher is better, with "
        "the base model's own value as the mark: far below it, an adapter draws the same picture again and again."
    )
    higher_is_better = True
    judges = "subject"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        judged = [item for item in items if item.siblings]
        if items and not judged:
            self._note("diversity says nothing: pictures of one prompt need two seeds or more in sample.seeds")
        pictures = self._embed(path for item in judged for path in (item.image, *item.siblings))
        values: list[float | None] = []
        for item in items:
            if item.siblings:
                siblings = torch.stack([pictures[path] for path in item.siblings])
                values.append(max(0.0, 1 - (siblings @ pictures[item.image]).mean().item()))
            else:
                values.append(None)
        return values
