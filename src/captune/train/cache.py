"""Latents and text embeddings, computed once: latents on disk for all arms of a run, text in memory for one arm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from captune import images
from captune.errors import DataError
from captune.families import Conditioning, Family
from captune.progress import Progress
from captune.runs import StageFolder, atomic
from captune.types import Example

Latents = dict[str, Tensor]  # "<example id>" and, mirrored, "<example id>|flip": (channels, h, w) float32


def cache_latents(
    examples: Sequence[Example],
    base: str,
    flip: bool,
    load_family: Callable[[], Family],
    folder: StageFolder,
    progress: Progress,
) -> Latents:
    """Encode every example once (mirrored too if `flip`), or read what an earlier run encoded from equal pictures.

    `base` is the base model's identity. One picture at a time, so that latents do not depend on their neighbours.
    """
    path = folder.path / "latents.safetensors"
    inputs = {"base": base, "flip": flip, "examples": {e.id: e.sha256 for e in examples}}
    if folder.done(inputs):
        return dict(load_file(path))
    folder.begin(inputs)
    family, latents = load_family(), {}
    with progress.track("encode pictures", len(examples)) as bar:
        for example in examples:
            pixel_values = torch.from_numpy(images.to_pixel_values(_open(example.image)))[None]
            latents[example.id] = family.encode_images(pixel_values)[0].cpu().contiguous()
            if flip:
                latents[f"{example.id}|flip"] = family.encode_images(pixel_values.flip(-1))[0].cpu().contiguous()
            bar.advance()
    with atomic(path) as part:
        save_file(latents, part)
    folder.finish(inputs, [path])
    return latents


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise DataError(
            f"the prepared picture {path} cannot be read: {error}; delete the run's prepare folder"
        ) from error


class Texts:
    """The conditioning of an arm's captions, by caption text; encoded once, one caption at a time."""

    def __init__(self, family: Family, captions: Sequence[str]) -> None:
        self.texts = sorted({*captions, ""})
        self._row = {text: i for i, text in enumerate(self.texts)}
        with torch.no_grad():
            rows = [family.encode_prompts([text]) for text in self.texts]
        self._all = Conditioning(
            torch.cat([r.encoder_hidden_states for r in rows]),
            torch.cat([r.pooled_prompt_embeds for r in rows])  # type: ignore[misc]
            if rows[0].pooled_prompt_embeds is not None
            else None,
        )

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """The conditioning of some captions, in their order."""
        return self._all.select([self._row[c] for c in captions])
