"""leak_subject: how much of the subject comes into pictures that do not ask for it.

Definition: of ordinary prompts, those without the trigger word: clip_i of the picture with the adapter, minus clip_i of
the base's picture of the same prompt and sampling seed (clip_i: the mean cosine with the training pictures).
Range: -2 to 2; 0 is no leak, below 0 the pictures became less like the training pictures. Lower is better. Anything that
the training pictures share can leak, their light and their style as well as the subject, and all of it counts here. The
base has no value: it would be 0 by definition.
Source: own, after PRES of DreamBooth (Ruiz et al. 2023), the likeness between pictures of the class and those of the
subject, there by DINO and without the base's share taken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from captune.metrics import Item
from captune.metrics._likeness import ByClip


class LeakSubject(ByClip):
    """Likeness to the training pictures above the base's; None for the base itself, or without training pictures."""

    name = "leak_subject"
    title = "Subject in ordinary pictures"
    meaning = (
        "Of prompts without the trigger word: mean cosine with the training pictures, minus that of the base model's "
        "picture of the same prompt and seed; lower is better, 0 is no leak."
    )
    higher_is_better = False
    judges = "ordinary"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        judged = [(item, item.base_image) for item in items if item.base_image is not None]
        of_item = self._cosines([item for item, _ in judged])
        of_base = self._cosines([replace(item, image=base_image) for item, base_image in judged])
        found = iter(
            None if own is None or base is None else (own.mean() - base.mean()).item()
            for own, base in zip(of_item, of_base, strict=True)
        )
        return [next(found) if item.base_image is not None else None for item in items]
