"""reproduction: whether a training picture comes back when it is asked for by its own caption.

Definition: the cosine between the CLIP image embeddings of the picture and of the training picture whose caption (of
the same arm) was its prompt, minus the same cosine of the base's picture of that caption and sampling seed.
Range: -2 to 2; 0 is no better than the base. Higher is better. A long, exact caption helps the base as well, which is
why the base's share is taken off. Great values together with high memorization are copies, not reproductions. The base
has no value: it would be 0 by definition.
Source: own; one reading of what studies of captioned LoRAs call reproducibility: how faithfully words bring back the look
that was trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from captune.metrics import Item
from captune.metrics._likeness import ByClip


class Reproduction(ByClip):
    """Likeness to the picture asked back, above the base's; None for the base itself."""

    name = "reproduction"
    title = "Training pictures asked back"
    meaning = (
        "Each training picture asked back by its own caption: cosine with that picture, minus that of the base "
        "model's picture of the same caption and seed; higher is better, 0 is no better than the base model."
    )
    higher_is_better = True
    judges = "reproduction"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        asked = [(i.image, i.base_image, i.own_image) if i.base_image and i.own_image else None for i in items]
        pictures = self._embed(path for paths in asked if paths for path in paths)
        values: list[float | None] = []
        for paths in asked:
            if paths is None:
                values.append(None)
            else:
                image, base, own = (pictures[path] for path in paths)
                values.append((image @ own - base @ own).item())
        return values
