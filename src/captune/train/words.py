"""What a visit reads: its caption, or parts of it in another order, or nothing; encoded once where that is possible."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from captune import captions, randomness
from captune.families import Conditioning, Family, Reading
from captune.recipe import TrainSection
from captune.train.cache import Texts
from captune.train.noise import Who


def said(section: TrainSection, caption: str, who: Who) -> str:
    """The words of a visit: "" where the caption is dropped, else its parts shuffled and thinned out as the section says."""
    if section.caption_dropout and randomness.uniform("caption_dropout", *who) < section.caption_dropout:
        return ""
    if not captions.varies(section):
        return caption
    kept, others = captions.split_parts(caption, section.keep_tokens)
    if section.shuffle_caption:
        others = [others[i] for i in randomness.permutation(len(others), "shuffle_caption", *who)]
    if section.tag_dropout:
        stay = [randomness.uniform("tag_dropout", *who, i) >= section.tag_dropout for i in range(len(others))]
        others = [part for part, stays in zip(others, stay, strict=True) if stays]
    return ", ".join(kept + others)


class Words:
    """The conditioning of visits. Text that never varies is encoded once, and its encoders leave the device."""

    def __init__(self, section: TrainSection, family: Family, texts: Sequence[str]) -> None:
        self._family, self._reading = family, Reading.of(section)
        self._learns = section.text_encoder_learning_rate is not None
        at_each_step = self._learns or captions.varies(section)
        self._cached = None if at_each_step else Texts(family, texts, self._reading)
        family.release(("vae",) if at_each_step else family.releasable)

    def __call__(self, texts: Sequence[str]) -> Conditioning:
        """The conditioning of some texts, in their order."""
        if self._cached is not None:
            return self._cached(texts)
        with torch.set_grad_enabled(self._learns):
            return self._family.encode_prompts(texts, self._reading)
