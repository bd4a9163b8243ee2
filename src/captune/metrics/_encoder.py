"""The CLIP model behind clip_t and clip_i: loaded once per process, every picture embedded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captune import weights
from captune.errors import DataError, ModelError


def device_of(name: str) -> torch.device:
    """The device that a recipe's name means; auto: CUDA, then Apple's MPS, then the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def open_rgb(path: Path) -> Image.Image:
    """A stored picture as RGB; a DataError names one that is missing or broken."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise DataError(f"the picture {path} cannot be read ({error}); run the stage that makes it again") from error


def version_of(path: Path) -> tuple[str, int, int]:
    """What tells a picture from an older one under the same name."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"the picture {path} is missing; run the stage that makes it again") from error
    return str(path.absolute()), status.st_mtime_ns, status.st_size


def _pooled(features: Any) -> Tensor:
    """The projected embedding: transformers 5 returns it inside an output object, transformers 4 as it is."""
    pooled: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return pooled


def _unit(embeddings: Tensor) -> Tensor:
    return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu()


class Encoder:
    """Unit-length CLIP embeddings, float32 on the CPU: embed_images and embed_texts give (count, width).

    Pictures go through the model's own processor: CLIP looks at a centre crop of what is not square.
    """

    def __init__(self, name: str, model: Any, processor: Any, device: torch.device) -> None:
        self.name, self.model, self.processor, self.device = name, model, processor, device
        self.longest = int(model.config.text_config.max_position_embeddings)
        self._images: dict[tuple[str, int, int], Tensor] = {}
        self._texts: dict[str, Tensor] = {}

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, start and end included; what is beyond `longest` is not read."""
        return len(self.processor.tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def embed_images(self, paths: Sequence[Path], batch_size: int) -> Tensor:
        keys = [version_of(path) for path in paths]
        missing = {key: path for key, path in zip(keys, paths, strict=True) if key not in self._images}
        self._fill(self._images, missing, batch_size, self._images_of)
        return torch.stack([self._images[key] for key in keys])

    def embed_texts(self, texts: Sequence[str], batch_size: int) -> Tensor:
        missing = {text: text for text in texts if text not in self._texts}
        self._fill(self._texts, missing, batch_size, self._texts_of)
        return torch.stack([self._texts[text] for text in texts])

    def _fill(
        self, known: dict[Any, Tensor], missing: dict[Any, Any], batch_size: int, embed: Callable[[list[Any]], Tensor]
    ) -> None:
        keys = list(missing)
        for start in range(0, len(keys), batch_size):
            chunk = keys[start : start + batch_size]
            with torch.inference_mode():
                known.update(zip(chunk, _unit(embed([missing[key] for key in chunk])), strict=True))

    def _images_of(self, paths: list[Path]) -> Tensor:
        inputs = self.processor(images=[open_rgb(path) for path in paths], return_tensors="pt")
        return _pooled(self.model.get_image_features(pixel_values=inputs["pixel_values"].to(self.device)))

    def _texts_of(self, texts: list[str]) -> Tensor:
        # Padded to the full length, as CLIP was trained: the embedding must not depend on a text's neighbours.
        inputs = self.processor.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.longest, return_tensors="pt"
        )
        ids, mask = inputs["input_ids"].to(self.device), inputs["attention_mask"].to(self.device)
        return _pooled(self.model.get_text_features(input_ids=ids, attention_mask=mask))


@lru_cache(maxsize=2)
def load(name: str, device: str) -> Encoder:
    """The encoder that a recipe's evaluate.encoder names; asked for twice, it is the same object."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    where = weights.locate(name, "clip")
    try:
        kind = CLIPConfig.get_config_dict(where)[0].get("model_type")
        if kind not in (None, "clip"):
            raise ModelError(f"evaluate.encoder = {name!r} is a {kind} model; clip_t and clip_i need a CLIP model")
        loaded: Any = CLIPModel.from_pretrained(where, dtype=torch.float32, output_loading_info=True)
        processor = CLIPProcessor.from_pretrained(where)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise weights.loading_failed(where, "CLIP model", error) from error
    model, report = loaded
    absent = sorted(key for key in report["missing_keys"] if not key.endswith("position_ids"))
    if absent:  # transformers fills these with random numbers and goes on
        raise ModelError(
            f"evaluate.encoder = {name!r} lacks {len(absent)} weights of a CLIP model, such as {absent[0]}"
        )
    place = device_of(device)
    return Encoder(name, model.eval().requires_grad_(False).to(place), processor, place)
