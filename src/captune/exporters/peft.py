"""peft's spelling as diffusers saves it: what a pipeline's `load_lora_weights` reads as its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from captune.exporters import LoraFile, LoraModule
from captune.exporters._shared import FOREIGN, check, model_name, most_common, rounded, version_of, write
from captune.tensors import to_bytes


class Peft:
    """Writes `<component>.<module>.lora_A.weight` and `.lora_B.weight`; rank and alpha are in the header."""

    suffix = ".diffusers.safetensors"

    def write(self, lora: LoraFile, path: Path, precision: str) -> None:
        """Write the file atomically; `precision` is fp32, fp16 or bf16."""
        check(lora, precision)
        version = version_of(lora)
        tensors: dict[str, Tensor] = {}
        for module in lora.modules:
            name = f"{module.component}.{module.name}"
            tensors[f"{name}.lora_A.weight"] = rounded(module.down, precision)
            tensors[f"{name}.lora_B.weight"] = rounded(module.up, precision)
        write(path, to_bytes(tensors, _header(lora, version)))

    def warnings(self, lora: LoraFile) -> list[str]:
        """diffusers reads all of it."""
        return []


def _header(lora: LoraFile, version: str) -> dict[str, str]:
    config: dict[str, Any] = {}
    for component in sorted({m.component for m in lora.modules}):
        modules = [m for m in lora.modules if m.component == component]
        config.update({f"{component}.{k}": v for k, v in lora_config(modules).items()})
    facts = {fact if fact.startswith(FOREIGN) else f"captune.{fact}": value for fact, value in lora.facts.items()}
    facts["captune.base_version"] = version
    if "base_model" in lora.facts:
        facts["captune.base_model"] = model_name(lora.facts["base_model"])
    return {**facts, "format": "pt", "lora_adapter_metadata": json.dumps(config, indent=2, sort_keys=True)}


def lora_config(modules: Sequence[LoraModule]) -> dict[str, Any]:
    """The arguments of peft's LoraConfig for one component; without them diffusers takes alpha = rank.

    A text encoder's modules are named without their `text_model.`, which transformers 5 no longer has: peft finds
    names by their ending, so these fit older and newer encoders.
    """
    names = [m.name.removeprefix("text_model.") for m in modules]
    rank = most_common(m.rank for m in modules)
    alpha = most_common(m.alpha for m in modules)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {n: m.rank for n, m in zip(names, modules, strict=True) if m.rank != rank},
        "alpha_pattern": {n: m.alpha for n, m in zip(names, modules, strict=True) if m.alpha != alpha},
        "target_modules": sorted(names),
    }
