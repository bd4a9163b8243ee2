"""WD-style ONNX tagger as captioner: tags that a network is sure of, as other trainers' booru captions have them."""

from __future__ import annotations

import csv
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from captune import captions, images, weights
from captune.captioners import Sources
from captune.errors import ModelError, RecipeError
from captune.recipe import CaptionerSection
from captune.types import Example

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL, TAGS = "model.onnx", "selected_tags.csv"
GENERAL, CHARACTER = 0, 4  # categories of tags; the others, such as ratings, are not written
_LETTERS = re.compile(r"[^\W_]{2}")  # in words; faces such as o_o and >_< keep their underscore


@dataclass(frozen=True)
class Tag:
    """What one of the network's outputs stands for."""

    name: str
    category: int


class Tagger:
    """Writes the tags above the thresholds: those that the recipe wants first, then characters, then the surest."""

    def __init__(self, section: CaptionerSection, device: str) -> None:
        self._section, self._device = section, device
        self._settings: dict[str, object] | None = None
        self._loaded: _Loaded | None = None

    @classmethod
    def load(cls, section: CaptionerSection, device: str = "auto") -> Tagger:
        """The captioner that the section names. Raises ModelError for a folder that is not there."""
        if section.model == weights.MINI:
            raise ModelError("no tagger is embedded: name a folder or a hub name such as SmilingWolf/wd-vit-tagger-v3")
        weights.locate(section.model, "tagger")
        if importlib.util.find_spec("onnxruntime") is None:
            raise ModelError("tagger needs onnxruntime: pip install 'captune[tagger]'")
        return cls(section, device)

    @property
    def settings(self) -> dict[str, object]:
        """Model and what is made of its numbers; a model on disk is told from another by its files."""
        if self._settings is None:
            section = self._section
            self._settings = {
                "model": section.model,
                "identity": weights.identity(section.model, "tagger"),
                "threshold": section.threshold,
                "character_threshold": section.character_threshold,
                "underscores": section.underscores,
                "exclude_tags": list(section.exclude_tags),
                "first_tags": list(section.first_tags),
            }
        return self._settings

    def sources(self, examples: Sequence[Example]) -> Sources:
        """Nothing is read but the pictures."""
        return Sources()

    def caption(self, examples: Sequence[Example]) -> list[str]:
        """The tags of every picture, a comma between two."""
        if not examples:
            return []
        if self._loaded is None:
            self._loaded = _Loaded(self._section, self._device)
        return self._loaded.caption([example.image for example in examples])


class _Loaded:
    """The network in memory, with the names of its outputs."""

    def __init__(self, section: CaptionerSection, device: str) -> None:
        self._section = section
        model, table = _files(weights.locate(section.model, "tagger"))
        self.tags = read_tags(table)
        self._session = _session(model, device)
        (read,) = self._session.get_inputs()
        self._input, shape = read.name, read.shape
        if len(shape) != 4 or not isinstance(shape[1], int) or shape[3] != 3:
            raise ModelError(f"{model} reads {shape}; a WD tagger reads (pictures, height, width, 3)")
        self.side = int(shape[1])
        self._single = shape[0] == 1  # older ones were written for one picture at a time
        known = {_plain(tag.name) for tag in self.tags}
        for option in ("exclude_tags", "first_tags"):
            strange = [name for name in getattr(section, option) if _plain(name) not in known]
            if strange:
                raise RecipeError(f"captioner.{option}: this tagger has no {captions.some(strange)}")

    def caption(self, pictures: Sequence[Path]) -> list[str]:
        pixels = np.stack([_seen(images.open_picture(picture), self.side) for picture in pictures])
        groups = [pixels[i : i + 1] for i in range(len(pixels))] if self._single else [pixels]
        sure = np.concatenate([self._session.run(None, {self._input: group})[0] for group in groups])
        if sure.shape[1] != len(self.tags):
            raise ModelError(f"the tagger tells {sure.shape[1]} numbers, and its {TAGS} names {len(self.tags)} tags")
        return [chosen(self.tags, row, self._section) for row in sure]


def chosen(tags: Sequence[Tag], sure: NDArray[np.float32], section: CaptionerSection) -> str:
    """The tags whose number is above their category's threshold, in order, as a caption."""
    least = {GENERAL: section.threshold, CHARACTER: section.character_threshold}
    left_out = {_plain(name) for name in section.exclude_tags}
    first = [_plain(name) for name in section.first_tags]
    found = [
        (tag, float(number))
        for tag, number in zip(tags, sure, strict=True)
        if tag.category in least and number > least[tag.category] and _plain(tag.name) not in left_out
    ]

    def place(entry: tuple[Tag, float]) -> tuple[int, bool, float, str]:
        tag, number = entry
        name = _plain(tag.name)
        return first.index(name) if name in first else len(first), tag.category != CHARACTER, -number, tag.name

    return ", ".join(_written(tag.name, section.underscores) for tag, _ in sorted(found, key=place))


def read_tags(path: Path) -> list[Tag]:
    """The rows of a selected_tags.csv, one for each of the network's outputs, in their order."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            tags = [Tag(row["name"], int(row["category"])) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ModelError(f"{path} is no table of tags with the columns name and category: {error}") from error
    if not tags:
        raise ModelError(f"{path} is no table of tags with the columns name and category: it has no rows")
    return tags


def _plain(name: str) -> str:
    """A tag's name however it is spelt."""
    return name.strip().lower().replace(" ", "_")


def _written(name: str, underscores: bool) -> str:
    return name if underscores or not _LETTERS.search(name) else name.replace("_", " ")


def _seen(picture: Image.Image, side: int) -> NDArray[np.float32]:
    """A picture as WD taggers were trained on them: (side, side, 3), on a white square, blue first, 0 to 255."""
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(square, dtype=np.float32)[:, :, ::-1]


def _files(location: str) -> tuple[Path, Path]:
    """The network and its table of tags, from a folder or the hub; of the hub no other file is loaded."""
    folder = Path(location)
    if not folder.exists():
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(location, MODEL)), Path(hf_hub_download(location, TAGS))
        except Exception as error:  # network, name, rights: told in one sentence
            raise weights.loading_failed(location, "tagger", error) from error
    for name in (MODEL, TAGS):
        if not (folder / name).is_file():
            raise ModelError(
                f"captioner.model = {location!r}: a tagger's folder has a {MODEL} and a {TAGS}; no {name} there"
            )
    return folder / MODEL, folder / TAGS


def _session(path: Path, device: str) -> Any:
    """The network on the device: CUDA where onnxruntime's build has it and it is wanted, else the processor."""
    import onnxruntime

    there = onnxruntime.get_available_providers()
    wanted = ["CUDAExecutionProvider"] if device == "auto" or device.startswith("cuda") else []
    providers = [name for name in wanted if name in there] + ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(str(path), providers=providers)
    except Exception as error:  # onnxruntime raises kinds of its own for broken files
        raise weights.loading_failed(str(path), "tagger", error) from error
