"""Which tools load a LoRA file, and which of its keys each drops: most tools do not say so. Imports no torch.

Measured on the tools' own loading code (docs/export.md has the table): a rule here, a measurement there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from captune.exporters import names

KOHYA, DIFFUSERS = "kohya", "diffusers"  # the two spellings
COMFYUI, FORGE, AUTOMATIC1111, SD_SCRIPTS, DIFFUSERS_TOOL = (
    "ComfyUI",
    "Forge",
    "AUTOMATIC1111",
    "sd-scripts",
    "diffusers",
)
FORGE_TOLERATES = 12  # keys that match nothing; with more, it refuses the file
_TENSORS = 3  # keys of a module in kohya's spelling

_SD_SCRIPTS_BLOCKS = {
    "sd": re.compile(r"(^|\.)(attentions|resnets|downsamplers|upsamplers)\."),
    "sdxl": re.compile(r"(^|\.)(attentions|resnets|downsamplers|upsamplers)\."),
    "flux": re.compile(r"^(single_)?transformer_blocks\."),
}
_DIFFUSERS_ATTENTION = re.compile(r"\.attn[12]\.to_")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class Reading:
    """What one tool does with a file."""

    client: str
    loads: bool
    ignored: tuple[str, ...]  # modules of the file, by their names in it, that have no effect there
    reason: str  # why it ignores them, or refuses the file; empty if it does neither


def readings(
    family: str, version: str, spelling: str, shapes: Mapping[str, Sequence[int]], *, scaled_by_header: bool = False
) -> list[Reading]:
    """What each tool does with a file of these modules: names as the file has them -> shape of `down`.

    `scaled_by_header` says that alphas other than the ranks stand in the header alone, as diffusers writes them.
    """
    if spelling == DIFFUSERS:
        return _of_diffusers(family, shapes, scaled_by_header)
    found = {name: names.from_kohya(family, name) for name in shapes}
    unknown = tuple(name for name, place in found.items() if place is None)
    known = {name: place for name, place in found.items() if place is not None}
    flat = version == "sd1" and any(
        name.endswith(("_proj_in", "_proj_out")) and "_attentions_" in name and len(shape) == 2
        for name, shape in shapes.items()
    )
    return [
        _reading(COMFYUI, unknown, {}),
        _forge(unknown),
        _automatic1111(version, unknown, known),
        _sd_scripts(family, flat, unknown, known),
        _refusal(DIFFUSERS_TOOL, _FLAT) if flat else _reading(DIFFUSERS_TOOL, unknown, {}),
    ]


_FLAT = "proj_in and proj_out are 1x1 convolutions in Stable Diffusion 1.x, and two-dimensional in this file"
_NO_SUCH = "no module of the base has this name"


def _reading(client: str, unknown: Iterable[str], dropped: Mapping[str, str]) -> Reading:
    ignored = (*unknown, *dropped)
    reasons = dict.fromkeys([*([_NO_SUCH] if len(ignored) > len(dropped) else []), *dropped.values()])
    return Reading(client, True, ignored, "; ".join(reasons))


def _refusal(client: str, reason: str) -> Reading:
    return Reading(client, False, (), reason)


def _forge(unknown: Sequence[str]) -> Reading:
    if _TENSORS * len(unknown) > FORGE_TOLERATES:
        return _refusal(FORGE, f"more than {FORGE_TOLERATES} keys match nothing")
    return _reading(FORGE, unknown, {})


def _automatic1111(version: str, unknown: Sequence[str], known: Mapping[str, tuple[str, tuple[str, ...]]]) -> Reading:
    if version.startswith("flux"):
        return _refusal(AUTOMATIC1111, "it has no FLUX")
    open_clip = {"sd2": "text_encoder", "sdxl": "text_encoder_2"}.get(version)
    modules = {place for place in known.values() if place[0] == open_clip}
    dropped = {}
    for name, (component, (module, *_)) in known.items():
        start, _, last = module.rpartition(".")
        if last == "text_projection":
            dropped[name] = "it reads the text encoders' layers only"
        if component == open_clip and last in _ATTENTION:
            complete = all((component, (f"{start}.{other}",)) in modules for other in _ATTENTION)
            if not complete:
                dropped[name] = "OpenCLIP's q, k, v and out are read together or not at all"
    return _reading(AUTOMATIC1111, unknown, dropped)


def _sd_scripts(
    family: str, flat: bool, unknown: Sequence[str], known: Mapping[str, tuple[str, tuple[str, ...]]]
) -> Reading:
    if flat:
        return _refusal(SD_SCRIPTS, _FLAT)
    dropped = {}
    for name, (component, members) in known.items():
        if component in ("unet", "transformer") and not _SD_SCRIPTS_BLOCKS[family].search(members[0]):
            dropped[name] = "it trains the blocks only"
        elif family == "sd" and name.startswith("lora_te1_"):
            dropped[name] = "it names Stable Diffusion's one text encoder lora_te_"
        elif members[0].endswith("text_projection"):
            dropped[name] = "it trains the text encoders' layers only"
    return _reading(SD_SCRIPTS, unknown, dropped)


def _of_diffusers(family: str, shapes: Mapping[str, Sequence[int]], scaled_by_header: bool) -> list[Reading]:
    reason = "it reads kohya's spelling"
    strength = (
        "it takes alpha = rank, whatever the header says: the effect has another strength" if scaled_by_header else ""
    )
    if family == "flux":
        web = [
            Reading(COMFYUI, True, (), strength),
            Reading(FORGE, True, (), strength),
            _refusal(AUTOMATIC1111, "it has no FLUX"),
        ]
    else:
        lost = tuple(name for name in shapes if _DIFFUSERS_ATTENTION.search(name))
        why = "; ".join(filter(None, ["it names attention layers otherwise" if lost else "", strength]))
        web = [Reading(COMFYUI, True, lost, why), _refusal(FORGE, reason), _refusal(AUTOMATIC1111, reason)]
    return [*web, _refusal(SD_SCRIPTS, reason), _reading(DIFFUSERS_TOOL, (), {})]
