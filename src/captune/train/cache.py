"""What is computed once: latents, on disk for all arms of a run; text embeddings and masks, in memory for one arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from captune import images
from captune.errors import DataError
from captune.families import USUAL, Conditioning, Family, Reading
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


def mask_files(examples: Sequence[Example], beside: bool = True) -> dict[str, list[Path]]:
    """The masks of the pictures by example id: those that prepare made, and (`beside`) a.mask.png beside a.jpg.

    Raises DataError where there should be masks beside the pictures and there is none at all.
    """
    made = {e.id: [e.mask] for e in examples if e.mask is not None}
    if not beside:
        return made
    there = {e.id: images.mask_file(e.source) for e in examples}
    found = {name: path for name, path in there.items() if path.is_file()}
    if not found and not made:
        first = next(iter(there.values()))
        raise DataError(
            f"train.masked_loss = true, but no picture has a mask beside it (looked for {first} and so on); white is "
            "learned, black is not"
        )
    return {
        e.id: [*made.get(e.id, ()), *([found[e.id]] if e.id in found else ())]
        for e in examples
        if e.id in made or e.id in found
    }


def read_masks(
    files: Mapping[str, Sequence[Path]], examples: Sequence[Example], latents: Mapping[str, Tensor]
) -> Latents:
    """How much of each latent pixel is learned (1, h, w) in [0, 1], by example id, for the examples that have a mask.

    A mask beside a picture is cut as the picture was; what two masks leave is their product; each latent pixel is the mean
    of the pixels below it.
    """
    return {e.id: _mask(files[e.id], e, latents[e.id]) for e in examples if e.id in files}


def _mask(paths: Sequence[Path], example: Example, latents: Tensor) -> Tensor:
    source, size = (example.source_width, example.source_height), (example.width, example.height)
    where, values = example.centering, torch.ones(1, 1, example.height, example.width)
    for path in paths:
        cut = images.open_picture(path, "black") if path == example.mask else images.fit_mask(path, source, size, where)
        values *= torch.from_numpy(images.to_pixel_values(cut)[:1].copy())[None] / 2 + 0.5
    mask = F.interpolate(values, latents.shape[-2:], mode="area")[0]
    if not mask.any():
        told = " and ".join(str(path) for path in paths)
        raise DataError(f"the mask {told} is black wherever the picture is used: take the picture out, or draw it anew")
    return mask


class Texts:
    """The conditioning of an arm's captions, by caption text; encoded once, one caption at a time."""

    def __init__(self, family: Family, captions: Sequence[str], reading: Reading = USUAL) -> None:
        self.texts = sorted({*captions, ""})
        self._row = {text: i for i, text in enumerate(self.texts)}
        with torch.no_grad():
            rows = [family.encode_prompts([text], reading) for text in self.texts]
        self._all = Conditioning.cat(rows)

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """The conditioning of some captions, in their order."""
        return self._all.select([self._row[c] for c in captions])
