"""LoRA files of other tools, in kohya's spelling or diffusers', as the exporters take them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from captune.errors import DataError, ModelError
from captune.exporters import LoraFile, LoraModule, fused, names, readback
from captune.importers import lora_header

Group = dict[str, Tensor]  # a module's tensors: "down", "up", "alpha"


def read_lora(path: Path) -> LoraFile:
    """The LoRA in a file of another tool, every change exactly as it is there; a DataError says what cannot be read."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is not a readable safetensors file: {error}") from error
    header = readback.metadata(path)
    told = lora_header.describe(header, {key: tuple(value.shape) for key, value in tensors.items()})
    if told.kind == "no LoRA" or told.spelling is None or told.family is None:
        first = min(tensors, default="none")
        raise DataError(f"{path} holds no LoRA in a spelling that is known here: its first key is {first}")
    if told.kind != "lora":
        raise DataError(f"{path} holds a {told.kind}; only plain LoRAs, products of two matrices, are converted")
    groups = _groups(path, tensors)
    read = _kohya_modules if told.spelling == "kohya" else _diffusers_modules
    modules = read(path, told.family, groups, header)
    return LoraFile(told.family, tuple(modules), lora_header.facts(header), told.version or "")


def _groups(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Group]:
    groups: dict[str, Group] = {}
    for key, value in tensors.items():
        name, part = lora_header.split_key(key)
        if part not in ("down", "up", "alpha"):
            raise DataError(f"{path}: {key} is no tensor of a LoRA")
        groups.setdefault(name, {})[part] = value.float()
    for name, group in groups.items():
        if "down" not in group or "up" not in group:
            raise DataError(f"{path}: {name} has {', '.join(sorted(group))} but needs both matrices, down and up")
    return dict(sorted(groups.items()))


def _kohya_modules(path: Path, family: str, groups: Mapping[str, Group], header: Mapping[str, str]) -> list[LoraModule]:
    found = []
    for key, group in groups.items():
        place = names.from_kohya(family, key)
        if place is None:
            raise DataError(
                f"{path}: {key} names no module of the family {family}; `captune inspect` lists all such keys"
            )
        component, members = place
        module = LoraModule(component, members[0], group["down"], group["up"], _alpha(group))
        if len(members) > 1:
            try:
                found += fused.split(module, members)
            except ModelError as error:
                raise DataError(f"{path}: {error}") from error
        elif family == "flux" and members[0] == names.FLUX_SWAPPED:
            found.append(fused.with_halves_swapped(module))
        else:
            found.append(module)
    return found


def _alpha(group: Group) -> float:
    return float(group["alpha"].item()) if "alpha" in group else float(group["down"].shape[0])


def _diffusers_modules(
    path: Path, family: str, groups: Mapping[str, Group], header: Mapping[str, str]
) -> list[LoraModule]:
    try:
        config: dict[str, Any] = json.loads(header.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise DataError(f"{path}: lora_adapter_metadata in its header is not JSON: {error}") from error
    found = []
    for key, group in groups.items():
        component, _, name = key.partition(".")
        alpha = (
            _alpha(group)
            if "alpha" in group
            else lora_header.configured_alpha(config, component, name, len(group["down"]))
        )
        clip = component == "text_encoder" or (component, family) == ("text_encoder_2", "sdxl")
        if clip and not name.startswith(("text_model.", "text_projection")):
            name = f"text_model.{name}"
        found.append(LoraModule(component, name, group["down"], group["up"], alpha))
    return found
