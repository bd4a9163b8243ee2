"""Exporters: the spellings in which other tools read a LoRA, and the table to choose from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from captune import parts
from captune.errors import RecipeError

if TYPE_CHECKING:  # the table is read by commands that never load a model
    from torch import Tensor

EXPORTERS: dict[str, str] = {
    "kohya": "captune.exporters.kohya:Kohya",
    "peft": "captune.exporters.peft:Peft",
    "merged": "captune.exporters.merged:Merged",
}
NEEDS_BASE = frozenset({"merged"})  # formats that hold the whole model
PipelineLoader = Callable[[], Any]  # gives a diffusers pipeline of the base, which the exporter may change


@dataclass(frozen=True)
class LoraModule:
    """One module's update: scale * up @ down. down (rank, in[, kh, kw]), up (out, rank[, 1, 1]), float32."""

    component: str  # "unet" or "transformer", "text_encoder", "text_encoder_2"
    name: str  # the module's name in diffusers' or transformers' spelling, dots and all; CLIP's begin "text_model."
    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    def change(self) -> Tensor:
        """What it adds to the module's weight, in the weight's own shape: alpha / rank * up @ down."""
        product = self.up.flatten(1) @ self.down.flatten(1)
        return self.alpha / self.rank * product.reshape(self.up.shape[0], *self.down.shape[1:])


@dataclass(frozen=True)
class LoraFile:
    """All of a LoRA in memory: its modules, and the facts that go into the header."""

    family: str
    modules: tuple[LoraModule, ...]
    facts: Mapping[str, str]  # plain words: output_name, base_model, trigger_word, rank, alpha, resolution, ...
    version: str = ""  # of the family, such as "sd2" or "flux-schnell"; the family's first if not given
    cover: bytes | None = None  # a small JPEG, PNG or WebP that web interfaces show for the file


class Exporter(Protocol):
    """Writes one format."""

    suffix: str  # of the name, such as ".safetensors" or ".diffusers.safetensors"

    def write(self, lora: LoraFile, path: Path, precision: str) -> None:
        """Write the file (or folder) atomically; `precision` is fp32, fp16 or bf16."""

    def warnings(self, lora: LoraFile) -> list[str]:
        """What a tool that reads this format will leave out of this LoRA, a sentence each; mostly none."""


def check(names: list[str]) -> None:
    """Raise a RecipeError for an unknown format, before anything is loaded."""
    for name in names:
        if name not in EXPORTERS:
            raise parts.unknown("export format", name, EXPORTERS)


def load(name: str, load_pipeline: PipelineLoader | None = None) -> Exporter:
    """The exporter of that name; those in NEEDS_BASE take their base model from `load_pipeline`."""
    made = cast(Any, parts.load("export format", EXPORTERS, name))
    if name not in NEEDS_BASE:
        return cast(Exporter, made())
    if load_pipeline is None:
        raise RecipeError(f"the export format {name!r} holds the whole base model: name the base, as base.model does")
    return cast(Exporter, made(load_pipeline))
