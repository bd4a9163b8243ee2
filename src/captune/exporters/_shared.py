"""What all exporters share: a LoRA is checked before it is written, and equal LoRAs give equal bytes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from captune import parts, runs
from captune.errors import ModelError
from captune.exporters import LoraFile, LoraModule
from captune.exporters.names import VERSIONS

Value = TypeVar("Value")
FOREIGN = ("ss_", "modelspec.", "ssmd_")  # facts by these names come from another tool's header and stay as they are
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check(lora: LoraFile, precision: str) -> None:
    """Raise a ModelError for a LoRA that other tools would refuse, read in part, or not be changed by."""
    name = lora.facts.get("output_name", "the LoRA")
    if not lora.modules:
        raise ModelError(f"{name} has no modules: there is nothing to export; check train.targets")
    seen: set[tuple[str, str]] = set()
    for module in lora.modules:
        _check_module(module, lora.family, f"{name}: {module.component}.{module.name}", precision)
        if (module.component, module.name) in seen:
            raise ModelError(f"{name}: {module.component}.{module.name} is in it twice; export each module once")
        seen.add((module.component, module.name))
    dtype = DTYPES[precision]
    if not any(module.up.to(dtype).any() and module.down.to(dtype).any() for module in lora.modules):
        raise ModelError(
            f"{name} changes nothing, every update in it is zero in {precision}: train it longer, or set a larger "
            "train.learning_rate"
        )


def _check_module(module: LoraModule, family: str, place: str, precision: str) -> None:
    clip = module.component == "text_encoder" or (module.component, family) == ("text_encoder_2", "sdxl")
    if clip and not module.name.startswith(("text_model.", "text_projection")):
        raise ModelError(f"{place}: a text encoder's module must be named `text_model.`..., as other tools expect")
    down, up = tuple(module.down.shape), tuple(module.up.shape)
    if len(down) not in (2, 4) or len(up) != len(down) or up[1] != down[0] or up[2:] not in ((), (1, 1)):
        raise ModelError(
            f"{place}: down {down} and up {up} do not fit; a linear layer has (rank, in) and (out, rank), "
            "a convolution (rank, in, height, width) and (out, rank, 1, 1)"
        )
    if not (module.down.isfinite().all() and module.up.isfinite().all()):
        raise ModelError(f"{place} holds values that are not finite; train again with a lower train.learning_rate")
    for tensor in (module.down, module.up):
        if not tensor.to(DTYPES[precision]).isfinite().all():
            raise ModelError(f"{place} holds values too large for {precision}; set export.precision to fp32 or bf16")
    if not 0 < torch.tensor(module.alpha, dtype=DTYPES[precision]).item() < math.inf:
        raise ModelError(f"{place}: alpha = {module.alpha} is not a positive number in {precision}; choose another")


def rounded(value: Tensor, precision: str) -> Tensor:
    """The value in the file's number format, as safetensors wants it."""
    return value.detach().to("cpu", DTYPES[precision], copy=True).contiguous()  # safetensors refuses shared memory


def version_of(lora: LoraFile) -> str:
    """The version of its base; a RecipeError for a family that no LoRA file is known of, or a version not its own."""
    if lora.family not in VERSIONS:
        raise parts.unknown("family of a LoRA file", lora.family, VERSIONS)
    version = lora.version or VERSIONS[lora.family][0]
    if version not in VERSIONS[lora.family]:
        raise parts.unknown(f"version of {lora.family}", version, VERSIONS[lora.family])
    return version


def most_common(values: Iterable[Value]) -> Value:
    """The value met most often, the first of equals."""
    return Counter(values).most_common(1)[0][0]


def write(path: Path, content: bytes) -> None:
    with runs.atomic(path) as part:
        part.write_bytes(content)


def sides(resolution: str) -> tuple[int, int] | None:
    """Width and height from a fact like "512" or "512x768"; None for anything else."""
    numbers = [int(n) for n in re.findall(r"\d+", resolution)]
    return (numbers[0], numbers[-1]) if len(numbers) in (1, 2) else None


def model_name(model: str) -> str:
    """The base model's name without the folders that it lies in on this computer; a hub name stays whole."""
    local = Path(model).is_absolute() or model.startswith((".", "~")) or Path(model).exists()
    return Path(model).name if local else model
