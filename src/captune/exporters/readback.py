"""Reads an exported file by the other tools' rules, to prove what they will do with it; no tool says it to the user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from captune.errors import DataError
from captune.exporters import names

PARTS = ("lora_down.weight", "lora_up.weight", "alpha")


def metadata(path: Path) -> dict[str, str]:
    """The header's texts."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is not a readable safetensors file: {error}") from error


def read_kohya(path: Path) -> dict[str, Tensor]:
    """The change each named module gets at weight 1: alpha / rank * up @ down, float32, in the module's own shape."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        name, _, part = key.partition(".")
        if part not in PARTS:
            raise DataError(f"{path}: {key} is not a tensor of a LoRA in kohya's spelling (.{', .'.join(PARTS)})")
        groups.setdefault(name, {})[part] = value.float()
    return {name: _change(path, name, group) for name, group in sorted(groups.items())}


def _change(path: Path, name: str, group: Mapping[str, Tensor]) -> Tensor:
    """up (out, rank[, 1, 1]) and down (rank, in[, h, w]) make a change (out, in[, h, w])."""
    if "lora_down.weight" not in group or "lora_up.weight" not in group:
        raise DataError(f"{path}: {name} has {', '.join(sorted(group))} but needs lora_down.weight and lora_up.weight")
    down, up = group["lora_down.weight"], group["lora_up.weight"]
    rank = down.shape[0]
    alpha = group["alpha"].item() if "alpha" in group else float(rank)
    return alpha / rank * (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def leftover_keys(path: Path, components: Mapping[str, nn.Module], family: str) -> list[str]:
    """The file's keys that no linear layer or convolution of the components takes, by name and by shape.

    Forge refuses a file with more than 12 of them, all others drop them.
    """
    shapes: dict[str, list[int]] = {}
    for component, root in components.items():
        for name, module in root.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                if component == "text_encoder" and not name.startswith("text_model."):
                    name = f"text_model.{name}"  # transformers 5 dropped this level, the file format did not
                key = names.to_kohya(family, component, name)
                if key is not None:
                    rows, *rest = module.weight.shape
                    shapes[key] = [shapes.get(key, [0])[0] + rows, *rest]  # several modules of FLUX are one weight
    taken = {name for name, change in read_kohya(path).items() if shapes.get(name) == list(change.shape)}
    with safe_open(path, framework="pt") as file:
        return [key for key in file.keys() if key.partition(".")[0] not in taken]  # noqa: SIM118
