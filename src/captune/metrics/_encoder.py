"""The models behind the learned metrics, CLIP and DINOv2: each loaded once per process, every picture embedded once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captune import weights
from captune.errors import DataError, ModelError

# The [CLS] token stands first in both. Other kinds of ViT load too, but nobody's DINO scores would compare with theirs.
DINO_KINDS = ("dinov2", "dinov2_with_registers")


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


class PictureEncoder(ABC):
    """Unit-length embeddings of pictures, float32 on the CPU.

    Pictures go through the model's own processor: CLIP and DINOv2 look at a centre crop of what is not square.
    """

    def __init__(self, name: str, model: Any, processor: Any, device: torch.device) -> None:
        self.name, self.model, self.processor, self.device = name, model, processor, device
        self._images: dict[tuple[str, int, int], Tensor] = {}

    @abstractmethod
    def _images_of(self, paths: list[Path]) -> Tensor:
        """The model's embeddings, (count, width), of any length."""

    def embed_images(self, paths: Iterable[Path], batch_size: int) -> dict[Path, Tensor]:
        """The embedding, (width,), of every picture; in full batches those that were not asked for before."""
        keys = {path: version_of(path) for path in dict.fromkeys(paths)}
        missing = {key: path for path, key in keys.items() if key not in self._images}
        _fill(self._images, missing, batch_size, self._images_of)
        return {path: self._images[key] for path, key in keys.items()}

    def _pixels_of(self, paths: list[Path]) -> Tensor:
        inputs = self.processor(images=[open_rgb(path) for path in paths], return_tensors="pt")
        pixel_values: Tensor = inputs["pixel_values"].to(self.device)
        return pixel_values


class ClipEncoder(PictureEncoder):
    """CLIP: pictures and texts in one space."""

    def __init__(self, name: str, model: Any, processor: Any, device: torch.device) -> None:
        super().__init__(name, model, processor, device)
        self.longest = int(model.config.text_config.max_position_embeddings)
        self._texts: dict[str, Tensor] = {}

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, start and end included; what is beyond `longest` is not read."""
        return len(self.processor.tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def embed_texts(self, texts: Iterable[str], batch_size: int) -> dict[str, Tensor]:
        """The embedding, (width,), of every text."""
        asked = dict.fromkeys(texts)
        _fill(self._texts, {t: t for t in asked if t not in self._texts}, batch_size, self._texts_of)
        return {text: self._texts[text] for text in asked}

    def _images_of(self, paths: list[Path]) -> Tensor:
        return _pooled(self.model.get_image_features(pixel_values=self._pixels_of(paths)))

    def _texts_of(self, texts: list[str]) -> Tensor:
        # Padded to the full length, as CLIP was trained: the embedding must not depend on a text's neighbours.
        inputs = self.processor.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.longest, return_tensors="pt"
        )
        ids, mask = inputs["input_ids"].to(self.device), inputs["attention_mask"].to(self.device)
        return _pooled(self.model.get_text_features(input_ids=ids, attention_mask=mask))


class DinoEncoder(PictureEncoder):
    """DINOv2: the [CLS] token after the last layer norm."""

    def _images_of(self, paths: list[Path]) -> Tensor:
        hidden: Tensor = self.model(pixel_values=self._pixels_of(paths)).last_hidden_state
        return hidden[:, 0]


def _fill(
    known: dict[Any, Tensor], missing: dict[Any, Any], batch_size: int, embed: Callable[[list[Any]], Tensor]
) -> None:
    keys = list(missing)
    for start in range(0, len(keys), batch_size):
        chunk = keys[start : start + batch_size]
        with torch.inference_mode():
            embeddings = embed([missing[key] for key in chunk])
            known.update(zip(chunk, torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu(), strict=True))


def _pooled(features: Any) -> Tensor:
    """The projected embedding: transformers 5 returns it inside an output object, transformers 4 as it is."""
    pooled: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return pooled


@lru_cache(maxsize=2)
def load_clip(name: str, device: str, field: str = "evaluate.encoder") -> ClipEncoder:
    """The encoder that a setting names, a recipe's evaluate.encoder; asked for twice, it is the same object."""
    from transformers import CLIPModel, CLIPProcessor

    where = weights.locate(name, "clip")
    model, processor = _loaded(where, f"{field} = {name!r}", "CLIP", ("clip",), CLIPModel, CLIPProcessor)
    place = device_of(device)
    return ClipEncoder(name, model.to(place), processor, place)


@lru_cache(maxsize=2)
def load_dino(name: str, device: str) -> DinoEncoder:
    """The encoder that a recipe's evaluate.dino_encoder names; asked for twice, it is the same object."""
    from transformers import AutoImageProcessor, AutoModel

    where = weights.locate(name, "dino")
    field = f"evaluate.dino_encoder = {name!r}"
    model, processor = _loaded(where, field, "DINOv2", DINO_KINDS, AutoModel, AutoImageProcessor)
    place = device_of(device)
    return DinoEncoder(name, model.to(place), processor, place)


def _loaded(
    where: str, field: str, wanted: str, kinds: Sequence[str], model_class: Any, processor_class: Any
) -> tuple[Any, Any]:
    """Model and processor; a ModelError for a model of another kind, or one that lacks weights."""
    from transformers import PreTrainedConfig

    try:
        kind = PreTrainedConfig.get_config_dict(where)[0].get("model_type")
        if kind is not None and kind not in kinds:
            raise ModelError(f"{field} is a {kind} model, where a {wanted} model is needed")
        loaded: Any = model_class.from_pretrained(where, dtype=torch.float32, output_loading_info=True)
        # Pillow's resizing everywhere: torchvision's gives other pixels, and so other scores, where it is installed.
        processor = processor_class.from_pretrained(where, backend="pil")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise weights.loading_failed(where, f"{wanted} model", error) from error
    model, report = loaded
    absent = sorted(key for key in report["missing_keys"] if not key.endswith("position_ids"))
    if absent:  # transformers fills these with random numbers and goes on
        raise ModelError(f"{field} lacks {len(absent)} weights of a {wanted} model, such as {absent[0]}")
    return model.eval().requires_grad_(False), processor
