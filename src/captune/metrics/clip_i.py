"""clip_i: how much a picture looks like the training pictures.

Definition: the mean cosine between the CLIP image embeddings of the picture and of every training picture.
Range: -1 to 1. Higher is better, up to the ceiling: the training pictures among themselves (the arm named "real"). It
rewards copying, background included, so read it beside clip_t. The DreamBooth paper names no CLIP size: values of
different encoders do not compare.
Source: Ruiz et al. 2023, DreamBooth, section 4.2 (CLIP-I); first used by Gal et al. 2022, Textual Inversion.
"""

from __future__ import annotations

from collections.abc import Sequence

from captune.metrics import Context, Item, _encoder


class ClipI:
    """Mean cosine with the training pictures; None where there are none."""

    name = "clip_i"
    title = "Likeness to the training pictures"
    meaning = (
        "CLIP-I: mean cosine between a picture of the subject and the training pictures; from -1 to 1, higher is "
        "better up to what the training pictures reach among themselves; rewards copying their backgrounds too."
    )
    higher_is_better = True
    judges = "subject"

    def __init__(self, context: Context) -> None:
        self.encoder = context.encoder
        self.warnings: list[str] = []
        self._context = context

    def score(self, items: Sequence[Item]) -> list[float | None]:
        if not items:
            return []
        encoder, batch_size = _encoder.load(self._context.encoder, self._context.device), self._context.batch_size
        every = dict.fromkeys(path for item in items for path in (item.image, *item.references))
        encoder.embed_images(list(every), batch_size)  # in full batches; below they are only looked up
        values: list[float | None] = []
        for item in items:
            if not item.references:
                values.append(None)
                continue
            references = encoder.embed_images(item.references, batch_size)
            picture = encoder.embed_images([item.image], batch_size)[0]
            values.append((references @ picture).mean().item())
        return values
