"""What a LoRA file says of itself, by its keys, shapes and header: family, spelling, facts. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captune.exporters import names

Shape = Sequence[int]

# Endings of keys, by what they are; the rest of a key names the module.
_PARTS = {
    "down": ("lora_down.weight", "lora_A.weight", "lora.down.weight", "lora_linear_layer.down.weight"),
    "up": ("lora_up.weight", "lora_B.weight", "lora.up.weight", "lora_linear_layer.up.weight"),
    "alpha": ("alpha",),
    "dora": ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "lokr": ("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "full difference": ("diff", "diff_b"),
    "tucker": ("lora_mid.weight",),
}
_ENDINGS = sorted(((ending, part) for part, endings in _PARTS.items() for ending in endings), key=lambda e: -len(e[0]))
_OLD_PROCESSOR = re.compile(r"(.+)\.processor\.(to_[qkv]|to_out)_lora\.(down|up)\.weight")  # diffusers before peft
_SECTIONS = ("unet", "transformer", "text_encoder", "text_encoder_2")  # how diffusers' keys begin

_VERSION_BY_LABEL = (
    ("flux-1-schnell", "flux-schnell"),
    ("flux", "flux-dev"),
    ("stable-diffusion-xl", "sdxl"),
    ("sdxl", "sdxl"),
    ("stable-diffusion-v2", "sd2"),
    ("sd_v2", "sd2"),
    ("stable-diffusion-v1", "sd1"),
    ("sd_v1", "sd1"),
)
# Width of what the UNet's cross-attention reads, and of the first text encoder's layers.
_CROSS_ATTENTION = {768: "sd1", 1024: "sd2", 2048: "sdxl"}

# Facts of ours that stand in the header under other names; `exporters.kohya` writes them.
_FACTS = {
    "ss_output_name": "output_name",
    "ss_sd_model_name": "base_model",
    "modelspec.resolution": "resolution",
    "modelspec.trigger_phrase": "trigger_word",
    "ss_training_started_at": "training_started_at",
}
_MADE_ANEW = (
    *("ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_base_model_version", "ss_v2"),
    *("sshs_model_hash", "sshs_legacy_hash", "format", "lora_adapter_metadata", "captune.base_version"),
    *("modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation", "modelspec.title"),
    *("modelspec.prediction_type", "modelspec.hash_sha256"),
)


@dataclass(frozen=True)
class Description:
    """What a file is; None where nothing tells."""

    kind: str  # lora, dora, loha, lokr, ...
    spelling: str | None  # kohya, diffusers
    family: str | None
    version: str | None
    evidence: str  # by what the version is known


def split_key(key: str) -> tuple[str, str]:
    """A key's module and which tensor of it this is: down, up, alpha, dora, loha, lokr, ... or "" for none of these."""
    old = _OLD_PROCESSOR.fullmatch(key)
    if old:
        return f"{old[1]}.{old[2]}{'.0' if old[2] == 'to_out' else ''}", old[3]
    for ending, part in _ENDINGS:
        if key.endswith("." + ending):
            return key.removesuffix("." + ending), part
    return key, ""


def describe(header: Mapping[str, str], shapes: Mapping[str, Shape]) -> Description:
    """What the file of these keys is."""
    parts = {key: split_key(key) for key in shapes}
    kinds = {part for _, part in parts.values()} - {"down", "up", "alpha", ""}
    kind = " and ".join(sorted(kinds)) or ("lora" if any(part == "down" for _, part in parts.values()) else "no LoRA")
    modules = {name for name, _ in parts.values()}
    spelling = _spelling(modules)
    version, evidence = _version(header, {parts[k]: s for k, s in shapes.items()}, modules)
    family = next((f for f, versions in names.VERSIONS.items() if version in versions), None)
    return Description(kind, spelling, family, version, evidence)


def _spelling(modules: set[str]) -> str | None:
    if any(name.startswith("lora_") and "." not in name for name in modules):
        return "kohya"
    return "diffusers" if any(name.partition(".")[0] in _SECTIONS for name in modules) else None


def _version(
    header: Mapping[str, str], shapes: Mapping[tuple[str, str], Shape], modules: set[str]
) -> tuple[str | None, str]:
    told = header.get("captune.base_version") or header.get("version", "")
    if any(told in versions for versions in names.VERSIONS.values()):
        return told, "its header"
    by_label = _labelled(header)
    if any(
        n.startswith(("lora_unet_double_", "lora_unet_single_", "lora_transformer_", "transformer.")) for n in modules
    ):
        return (by_label if by_label in names.VERSIONS["flux"] else "flux-dev"), "the names of its modules"
    for (name, part), shape in shapes.items():
        if part == "down" and re.search(r"attn2[._]to_[kv]$", name) and shape[1] in _CROSS_ATTENTION:
            return _CROSS_ATTENTION[shape[1]], f"its cross-attention, which reads {shape[1]} numbers a token"
    if by_label is not None:
        return by_label, "its header"
    if any(n.startswith(("lora_te2_", "text_encoder_2.", "lora_unet_input_", "lora_unet_output_")) for n in modules):
        return "sdxl", "the names of its modules"
    if any(n.startswith(("lora_unet_", "lora_te", "unet.", "text_encoder.")) for n in modules):
        return "sd1", "the names of its modules, which do not tell 1.x from 2.x"
    return None, "nothing in it"


def _labelled(header: Mapping[str, str]) -> str | None:
    for key in ("modelspec.architecture", "ss_base_model_version"):
        for beginning, version in _VERSION_BY_LABEL:
            if header.get(key, "").startswith(beginning):
                return version
    return "sd2" if header.get("ss_v2") == "True" else None


def configured_alpha(config: Mapping[str, Any], component: str, module: str, rank: int) -> float:
    """peft's alpha of a module: the pattern that fits its name's ending, else the component's; the rank if none is told."""
    for pattern, alpha in config.get(f"{component}.alpha_pattern", {}).items():
        if re.fullmatch(rf"(.*\.)?{pattern}", module):
            return float(alpha)
    return float(config.get(f"{component}.lora_alpha", rank))


def facts(header: Mapping[str, str]) -> dict[str, str]:
    """The header's facts in our words; what another tool said in its own words keeps its name."""
    found = {}
    for key, value in header.items():
        if key in _FACTS:
            found[_FACTS[key]] = value
        elif key.startswith("captune.") and key not in _MADE_ANEW:
            found[key.removeprefix("captune.")] = value
        elif key.startswith(("ss_", "modelspec.", "ssmd_")) and key not in _MADE_ANEW:
            found[key] = value
    found.setdefault("output_name", header.get("modelspec.title", "LoRA"))
    if header.get("modelspec.prediction_type") == "v":
        found["objective"] = "v_prediction"
    return {key: value for key, value in found.items() if value != "None"}  # kohya's word for a value that is not set
