"""Exporters: the spellings in which other tools read a LoRA, and the table to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from captune import parts

if TYPE_CHECKING:  # the table is read by commands that never load a model
    from torch import Tensor

EXPORTERS: dict[str, str] = {
    "kohya": "captune.exporters.kohya:Kohya",
    "peft": "captune.exporters.peft:Peft",
}


@dataclass(frozen=True)
class LoraModule:
    """One module's update: scale * up @ down. down (rank, in[, kh, kw]), up (out, rank[, 1, 1]), float32."""

    component: str  # "unet" or "text_encoder"
    name: str  # the module's name in diffusers' or transformers' spelling, dots and all; text encoders begin "text_model."
    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


@dataclass(frozen=True)
class LoraFile:
    """All of a LoRA in memory: its modules, and the facts that go into the header."""

    family: str
    modules: tuple[LoraModule, ...]
    facts: Mapping[str, str]  # plain words: output_name, base_model, trigger_word, rank, alpha, resolution, ...


class Exporter(Protocol):
    """Writes one file format."""

    suffix: str  # of the file's name, such as ".safetensors" or ".peft.safetensors"

    def write(self, lora: LoraFile, path: Path, precision: str) -> None:
        """Write the file atomically; `precision` is fp32, fp16 or bf16."""

    def warnings(self, lora: LoraFile) -> list[str]:
        """What a tool that reads this format will leave out of this LoRA, a sentence each; mostly none."""


def check(names: list[str]) -> None:
    """Raise a RecipeError for an unknown format, before anything is loaded."""
    for name in names:
        if name not in EXPORTERS:
            raise parts.unknown("export format", name, EXPORTERS)


def load(name: str) -> Exporter:
    """The exporter of that name."""
    return cast(Exporter, cast(Any, parts.load("export format", EXPORTERS, name))())
