"""Puts a LoRA into a base model's modules, reads and sets its weights, and takes it out again.

The file format is the project's own: safetensors in float32, names `unet.<module>.lora_A.weight` and `...lora_B.weight`
as peft spells them, and what is needed to rebuild the adapter in the header. `captune.exporters` writes what other tools
read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from captune import randomness
from captune.errors import DataError, RecipeError
from captune.runs import atomic
from captune.tensors import to_bytes

ADAPTER = "captune"  # peft's name for the one adapter that is injected at a time


@dataclass(frozen=True)
class LoraSpec:
    """A LoRA's shape: per component a regular expression of the modules it changes, matched against whole names."""

    rank: int
    alpha: float
    targets: Mapping[str, str]  # component -> pattern
    dropout: float = 0.0


def patterns(chosen: str | list[str], presets: Mapping[str, str], component: str) -> str:
    """The pattern behind a recipe's `targets`: a preset's name, or own patterns joined."""
    if isinstance(chosen, list):
        return "|".join(f"(?:{p})" for p in chosen)
    if chosen not in presets:
        raise RecipeError(f"train.targets = {chosen!r}: unknown for {component} (known: {', '.join(presets)})")
    return presets[chosen]


def inject(components: Mapping[str, nn.Module], spec: LoraSpec, seed: int) -> None:
    """Put a fresh LoRA into the components' modules; its first weights depend on (seed, module name) alone.

    down is uniform as in kohya (Kaiming with a = sqrt(5): within 1 / sqrt(inputs)), up is zero, so the model starts
    unchanged. Raises RecipeError when a pattern hits nothing.
    """
    for component, pattern in spec.targets.items():
        config = LoraConfig(
            r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=pattern, bias="none"
        )
        try:
            inject_adapter_in_model(config, components[component], ADAPTER)
        except ValueError as error:
            raise RecipeError(f"train.targets: {pattern!r} hits no module of the {component}: {error}") from error
        for name, layer in lora_layers(components[component]).items():
            down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            bound = 1 / math.sqrt(down[0].numel())
            draw = torch.rand(down.shape, generator=randomness.generator(seed, "lora", component, name))
            with torch.no_grad():
                down.copy_(((draw * 2 - 1) * bound).to(down.device))
                up.zero_()
            for weight in (down, up):
                weight.data = weight.data.float()
                weight.requires_grad_(True)


def lora_layers(module: nn.Module) -> dict[str, LoraLayer]:
    """The injected layers of a module, by their names in it."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def parameters(components: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The trainable weights of what is injected: `unet.<module>.lora_A.weight` -> parameter, sorted by name."""
    found: dict[str, nn.Parameter] = {}
    for component, module in components.items():
        for name, layer in lora_layers(module).items():
            found[f"{component}.{name}.lora_A.weight"] = layer.lora_A[ADAPTER].weight
            found[f"{component}.{name}.lora_B.weight"] = layer.lora_B[ADAPTER].weight
    return dict(sorted(found.items()))


def remove(components: Mapping[str, nn.Module]) -> None:
    """Take the LoRA out: every changed module is put back as it was, bit for bit."""
    for module in components.values():
        for name, layer in lora_layers(module).items():
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, layer.get_base_layer())
        if hasattr(module, "peft_config"):
            del module.peft_config


def weights_of(components: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """A float32 CPU copy of the injected weights."""
    return {name: p.detach().float().cpu().clone() for name, p in parameters(components).items()}


def set_weights(components: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Set all injected weights; names must agree exactly."""
    own = parameters(components)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise DataError(f"the LoRA does not fit this base model: {len(odd)} weights differ, the first is {odd[0]}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name].to(parameter.device))


def save(path: Path, tensors: Mapping[str, Tensor], spec: LoraSpec, facts: Mapping[str, str]) -> None:
    """Write an adapter file; equal weights and facts give equal bytes."""
    header = {"captune_lora": json.dumps(asdict(spec), sort_keys=True), **facts}
    with atomic(path) as part:
        part.write_bytes(to_bytes({k: v.contiguous() for k, v in sorted(tensors.items())}, header))


def read(path: Path) -> tuple[dict[str, Tensor], LoraSpec, dict[str, str]]:
    """The weights, shape and facts of a file that `save` wrote."""
    try:
        with safe_open(path, "pt") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator there)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is not a readable LoRA file: {error}") from error
    if "captune_lora" not in facts:
        raise DataError(f"{path} was not written by this program: its header has no captune_lora")
    return tensors, LoraSpec(**json.loads(facts.pop("captune_lora"))), facts
