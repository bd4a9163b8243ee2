"""What the metrics share that compare pictures by their embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from captune.metrics import Context, Item, _encoder, dino_model


class _ByEmbedding(ABC):
    encoder: str
    ceiling = False

    def __init__(self, context: Context) -> None:
        self.warnings: list[str] = []
        self._context = context

    @abstractmethod
    def _load(self) -> _encoder.PictureEncoder: ...

    def _embed(self, paths: Iterable[Path]) -> dict[Path, Tensor]:
        return self._load().embed_images(paths, self._context.batch_size)

    def _cosines(self, items: Sequence[Item]) -> list[Tensor | None]:
        """The cosines between each item's picture and its training pictures, (references,); None without any."""
        judged = [item for item in items if item.references]
        references = list(dict.fromkeys(item.references for item in judged))
        pictures = self._embed([*(item.image for item in judged), *(path for paths in references for path in paths)])
        stacked = {paths: torch.stack([pictures[path] for path in paths]) for paths in references}
        return [stacked[i.references] @ pictures[i.image] if i.references else None for i in items]

    def _note(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)


class ByClip(_ByEmbedding):
    """A metric by the CLIP model that evaluate.encoder names."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.encoder = context.encoder

    def _load(self) -> _encoder.ClipEncoder:
        return _encoder.load_clip(self.encoder, self._context.device)


class ByDino(_ByEmbedding):
    """A metric by the DINOv2 model that evaluate.dino_encoder names."""

    name: str

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.encoder = dino_model(context.dino_encoder, self.name)

    def _load(self) -> _encoder.DinoEncoder:
        return _encoder.load_dino(self.encoder, self._context.device)
