"""Puts a LoRA (or DoRA, LoHa, LoKr) into a base model's modules, reads and sets its weights, and takes it out again.

The file format is the project's own: safetensors in float32, names `<component>.<module>.<part>` with the parts as peft
spells them (`unet.<module>.lora_A.weight`), and what is needed to rebuild the adapter in the header. `captune.exporters`
writes what other tools read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from captune import randomness
from captune.errors import DataError, RecipeError
from captune.runs import atomic
from captune.tensors import to_bytes

ADAPTER = "captune"  # peft's name for the one adapter that is injected at a time

# The one part of each kind that is zero at first, so that the model starts unchanged.
FIRST_ZERO = ("lora_B.weight", "hada_w2_b", "lokr_w1")
PART = re.compile(r"\.(lora_[AB]\.weight|lora_magnitude_vector|(?:hada|lokr)_\w+)$")
MAGNITUDE = "lora_magnitude_vector"  # DoRA's; starts as the norm of the base's own weight


@dataclass(frozen=True)
class LoraSpec:
    """An adapter's shape: per component a regular expression of the modules it changes, matched against whole names."""

    rank: int
    alpha: float  # the update is scaled by alpha / rank, also where `ranks` gives another rank
    targets: Mapping[str, str]  # component -> pattern
    dropout: float = 0.0
    kind: str = "lora"  # "lora", "dora", "loha", "lokr"
    ranks: Mapping[str, int] = field(default_factory=dict)  # pattern found in `<component>.<module>` -> rank

    def rank_of(self, name: str) -> int:
        """The rank of the module `<component>.<module>`: that of the first pattern found in its name."""
        return next((rank for pattern, rank in self.ranks.items() if re.search(pattern, name)), self.rank)


def patterns(chosen: str | list[str], presets: Mapping[str, str], component: str) -> str:
    """The pattern behind a recipe's `targets`: a preset's name, or own patterns joined."""
    if isinstance(chosen, list):
        return "|".join(f"(?:{p})" for p in chosen)
    if chosen not in presets:
        raise RecipeError(f"train.targets = {chosen!r}: unknown for {component} (known: {', '.join(presets)})")
    return presets[chosen]


def inject(components: Mapping[str, nn.Module], spec: LoraSpec, seed: int) -> None:
    """Put a fresh adapter into the components' modules; its first weights depend on (seed, module name) alone.

    They are uniform as in kohya (Kaiming with a = sqrt(5): within 1 / sqrt(inputs)) but for one part that is zero, so the
    model starts unchanged. Dropout is off until `dropping`. Raises RecipeError when a pattern hits nothing.
    """
    _check_ranks(components, spec)
    for component, pattern in spec.targets.items():
        module = components[component]
        try:
            inject_adapter_in_model(_config(spec, component, pattern, module), module, ADAPTER)
        except ValueError as error:
            raise RecipeError(f"train.targets: {pattern!r} hits no module of the {component}: {error}") from error
        for name, layer in lora_layers(module).items():
            layer.eval()
            for part, weight in _parts(layer):
                weight.data = weight.data.float()
                weight.requires_grad_(True)
                _begin(weight, part, seed, component, name)


@torch.no_grad()
def _begin(weight: Tensor, part: str, seed: int, component: str, name: str) -> None:
    """Give one part its first values."""
    if part in FIRST_ZERO:
        weight.zero_()
    elif part != MAGNITUDE:
        own = () if part == "lora_A.weight" else (part,)
        draw = torch.rand(weight.shape, generator=randomness.generator(seed, "lora", component, name, *own))
        weight.copy_(((draw * 2 - 1) * (1 / math.sqrt(weight[0].numel()))).to(weight.device))


def _config(spec: LoraSpec, component: str, pattern: str, module: nn.Module) -> Any:
    """peft's description of the adapter in one component."""
    hit = [name for name, _ in module.named_modules() if re.fullmatch(pattern, name)]
    other = {name: spec.rank_of(f"{component}.{name}") for name in hit}
    ranks = {f"^{re.escape(name)}": rank for name, rank in other.items() if rank != spec.rank}
    alphas = {name: spec.alpha * rank / spec.rank for name, rank in ranks.items()}
    common = {"r": spec.rank, "target_modules": pattern, "rank_pattern": ranks, "alpha_pattern": alphas}
    if spec.kind == "loha":
        return LoHaConfig(alpha=spec.alpha, **common)
    if spec.kind == "lokr":
        return LoKrConfig(alpha=spec.alpha, **common)
    return LoraConfig(
        lora_alpha=spec.alpha, lora_dropout=spec.dropout, bias="none", use_dora=spec.kind == "dora", **common
    )


def _check_ranks(components: Mapping[str, nn.Module], spec: LoraSpec) -> None:
    names = [
        f"{component}.{name}"
        for component, pattern in spec.targets.items()
        for name, _ in components[component].named_modules()
        if re.fullmatch(pattern, name)
    ]
    for pattern in spec.ranks:
        if not any(re.search(pattern, name) for name in names):
            some = f"; they are named like {names[0]}" if names else ""
            raise RecipeError(f"train.ranks: {pattern!r} is found in no module that train.targets names{some}")


def lora_layers(module: nn.Module) -> dict[str, BaseTunerLayer]:
    """The injected layers of a module, by their names in it."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}


def _parts(layer: BaseTunerLayer) -> Iterator[tuple[str, nn.Parameter]]:
    """The weights of one injected layer, by the ends of their names in files."""
    for part in layer.adapter_layer_names:
        held = getattr(layer, part)
        if ADAPTER not in held:
            continue
        value = held[ADAPTER]
        if isinstance(value, nn.Parameter):
            yield part, value
        else:
            yield (part if part == MAGNITUDE else f"{part}.weight"), value.weight


def parameters(components: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The trainable weights of what is injected: `unet.<module>.lora_A.weight` -> parameter, sorted by name."""
    found = {
        f"{component}.{name}.{part}": weight
        for component, module in components.items()
        for name, layer in lora_layers(module).items()
        for part, weight in _parts(layer)
    }
    return dict(sorted(found.items()))


def by_module(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of a file by `<component>.<module>` and part, as in {"unet.mid_block...": {"lora_A.weight": ...}}."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        split = PART.search(name)
        if split is None:
            raise DataError(f"{name} is no part of an adapter; the file was changed by another program")
        found.setdefault(name[: split.start()], {})[split[1]] = tensor
    return found


def kernels(components: Mapping[str, nn.Module]) -> dict[str, list[int]]:
    """Height and width of the convolutions that carry the adapter, by `<component>.<module>`: LoHa and LoKr flatten them."""
    return {
        f"{component}.{name}": list(layer.get_base_layer().kernel_size)
        for component, module in components.items()
        for name, layer in lora_layers(module).items()
        if isinstance(layer.get_base_layer(), nn.Conv2d)
    }


@contextmanager
def dropping(components: Mapping[str, nn.Module], on: bool = True) -> Iterator[None]:
    """The adapter's dropout is on (or off, for pictures on the way) meanwhile."""
    layers = [layer for module in components.values() for layer in lora_layers(module).values()]
    layers = [layer for layer in layers if isinstance(layer, LoraLayer)]  # the other kinds have none
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.train(on)
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.train(was)


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
