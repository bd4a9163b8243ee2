"""leak_change: how much an adapter changes pictures that do not ask for the subject.

Definition: of ordinary prompts, those without the trigger word: 1 - cosine between the CLIP image embeddings of the
picture with the adapter and of the base's picture of the same prompt and sampling seed.
Range: 0 (the base's picture) to 2. Lower is better. It counts every change, for good or bad: read leak_subject for
whether it is the subject that came in, and clip_t of the same prompts for whether they are still followed. The base has
no value: it would be 0 by definition.
Source: own, after the complaint of LoRA users that an adapter is active without its trigger word; DreamBooth (Ruiz et
al. 2023) calls it language drift.
"""

from __future__ import annotations

from collections.abc import Sequence

from captune.metrics import Item
from captune.metrics._likeness import ByClip


class LeakChange(ByClip):
    """Distance to the base's picture of the same prompt and seed; None for the base itself."""

    name = "leak_change"
    title = "Change of ordinary pictures"
    meaning = (
        "Of prompts without the trigger word: 1 - cosine between the picture and the base model's of the same prompt "
        "and seed; lower is better, 0 is no change."
    )
    higher_is_better = False
    judges = "ordinary"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        pictures = self._embed(path for i in items if i.base_image is not None for path in (i.image, i.base_image))
        return [
            None if item.base_image is None else max(0.0, 1 - (pictures[item.image] @ pictures[item.base_image]).item())
            for item in items
        ]
