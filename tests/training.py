"""Short trainings of random miniatures on random latents, for tests of what training's options do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from captune import adapters, families
from captune.families import Family
from captune.progress import Silent
from captune.recipe import BaseSection, TrainSection
from captune.runs import StageFolder
from captune.train.diffusion import train_lora
from captune.types import Caption, Example
from tests import tiny_base, tiny_flux

TEXTS = ("zorblax, a red ball, in the snow, left of a tree", "zorblax, two balls, on grass", "zorblax, one, more, ball")
LATENT = (4, 8, 8)
WHO = (0, "0", 3)


def load(folder: Path, kind: str = "epsilon") -> Family:
    if kind == "flow_matching":
        return families.load(BaseSection(family="flux", model=tiny_flux.write(folder), device="cpu", precision="fp32"))
    place = tiny_base.write_tiny_base(folder, kind)
    return families.load(BaseSection(model=place, device="cpu", precision="fp32"))


def examples(folder: Path = Path("nowhere")) -> list[Example]:
    return [Example(str(i), folder / f"{i}.png", folder / f"{i}.jpg", 16, 16, 16, 16, 1, str(i)) for i in range(3)]


def latents() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {e.id: torch.randn(LATENT, generator=generator) for e in examples()}
    return found | {f"{name}|flip": x.flip(-1) for name, x in found.items()}


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def train(
    family: Family,
    folder: Path,
    photos: Path = Path("nowhere"),
    texts: tuple[str, ...] = TEXTS,
    progress: Silent | None = None,
    **options: Any,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of three steps."""
    section = TrainSection(
        **{"steps": 3, "batch_size": 3, "rank": 2, "alpha": 2, "learning_rate": 0.01, "seed": 1, **options}
    )
    captions = [Caption(e.id, text, "test") for e, text in zip(examples(), texts, strict=True)]
    adapter = train_lora(
        section, "arm", "base", examples(photos), captions, latents, lambda: family, StageFolder(folder), progress or Silent()
    )  # fmt: skip
    losses = [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]
    return losses, adapters.read(adapter.path)[0]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def section(**values: Any) -> TrainSection:
    return TrainSection(steps=1, **values)
