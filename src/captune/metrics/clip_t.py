"""clip_t: how well a picture follows its prompt.

Definition: the cosine between the CLIP embeddings of the picture and of its prompt, with the class word in the trigger
word's place, because CLIP has never read the trigger word (DreamBooth's CLIP-T gives it the class word too).
Range: -1 to 1; good pictures of full-size CLIP models lie near 0.3. Higher is better. No prefix, no scaling by 2.5:
this is not CLIPScore. Values of different encoders do not compare.
Source: Ruiz et al. 2023, DreamBooth (CLIP-T); Radford et al. 2021 for CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from captune.metrics import Item, _encoder
from captune.metrics._likeness import ByClip


class ClipT(ByClip):
    """Cosine of picture and prompt; None where the prompt is empty without its trigger word."""

    name = "clip_t"
    title = "Prompt following"
    meaning = (
        "CLIP-T: cosine between a picture and its prompt, the class word in the trigger word's place; "
        "from -1 to 1, higher is better; compare only within one encoder."
    )
    higher_is_better = True
    judges = "all"

    def score(self, items: Sequence[Item]) -> list[float | None]:
        judged = [item for item in items if item.prompt_without_trigger.strip()]
        if not judged:
            return [None] * len(items)
        encoder = self._load()
        texts = [item.prompt_without_trigger for item in judged]
        self._note_cut(encoder, texts)
        of_text = encoder.embed_texts(texts, self._context.batch_size)
        of_image = self._embed(item.image for item in judged)
        pairs = [of_text[item.prompt_without_trigger] @ of_image[item.image] for item in judged]
        cosines = iter(torch.stack(pairs).tolist())
        return [next(cosines) if item.prompt_without_trigger.strip() else None for item in items]

    def _note_cut(self, encoder: _encoder.ClipEncoder, texts: Sequence[str]) -> None:
        for text in dict.fromkeys(texts):
            count = encoder.count_tokens(text)
            if count > encoder.longest:
                self._note(f"clip_t reads only the first {encoder.longest} of {count} tokens of the prompt {text!r}")
