"""Names of modules in LoRA files: kohya's spelling of each family from diffusers' names, and back. Imports no torch.

kohya joins a module's name with underscores. For SDXL it takes the names of the original checkpoint (`input_blocks...`),
for FLUX those of Black Forest Labs' code, where q, k, v (and the single blocks' mlp) are rows of one weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PREFIXES: Mapping[str, Mapping[str, str]] = {
    "sd": {"unet": "lora_unet_", "text_encoder": "lora_te_"},  # lora_te1_ is SDXL's; sd-scripts drops it here
    "sdxl": {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
    "flux": {"transformer": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te3_"},
}
VERSIONS: Mapping[str, tuple[str, ...]] = {
    "sd": ("sd1", "sd2"),
    "sdxl": ("sdxl",),
    "flux": ("flux-dev", "flux-schnell"),
}
# Written by other trainers, for the same modules.
ALSO_READ: Mapping[str, Mapping[str, str]] = {
    "sd": {"lora_te1_": "text_encoder"},
    "sdxl": {},
    "flux": {"lora_transformer_": "transformer", "lora_te2_": "text_encoder_2", "lora_te_": "text_encoder"},
}

_WORDS = (
    # CLIP and T5
    *("text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "mlp", "fc1", "fc2"),
    *("text_projection", "block", "layer", "SelfAttention", "DenseReluDense", "q", "k", "v", "o", "wi_0", "wi_1", "wo"),
    # UNet, as diffusers names it
    *("down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "transformer_blocks", "attn1", "attn2"),
    *("to_q", "to_k", "to_v", "to_out", "ff", "net", "proj", "proj_in", "proj_out", "downsamplers", "upsamplers"),
    *("conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut", "time_emb_proj"),
    *("time_embedding", "add_embedding", "linear_1", "linear_2"),
    # UNet, as the original checkpoint names it
    *("input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers", "skip_connection"),
    *("op", "out", "time_embed", "label_emb"),
    # FLUX, as diffusers names it
    *("single_transformer_blocks", "attn", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context"),
    *("norm", "norm1", "norm1_context", "norm_out", "linear", "proj_mlp", "x_embedder", "context_embedder"),
    *("time_text_embed", "timestep_embedder", "text_embedder", "guidance_embedder"),
    # FLUX, as Black Forest Labs name it
    *("double_blocks", "single_blocks", "img_attn", "txt_attn", "qkv", "img_mlp", "txt_mlp", "img_mod", "txt_mod"),
    *("lin", "linear1", "linear2", "modulation", "final_layer", "adaLN_modulation"),
    *("img_in", "txt_in", "time_in", "vector_in", "guidance_in", "in_layer", "out_layer"),
)
_WORD = re.compile(f"({'|'.join(sorted(_WORDS, key=len, reverse=True))}|[0-9]+)(?:_|$)")


def _sdxl_blocks() -> dict[str, str]:
    """Original block -> diffusers' block, for SDXL's three levels of two layers (three on the way up)."""
    found = {
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
    }
    for level in range(3):
        for layer in range(2):
            place = 1 + 3 * level + layer
            found[f"input_blocks.{place}.0"] = f"down_blocks.{level}.resnets.{layer}"
            found[f"input_blocks.{place}.1"] = f"down_blocks.{level}.attentions.{layer}"
        for layer in range(3):
            found[f"output_blocks.{3 * level + layer}.0"] = f"up_blocks.{level}.resnets.{layer}"
            found[f"output_blocks.{3 * level + layer}.1"] = f"up_blocks.{level}.attentions.{layer}"
        if level < 2:
            found[f"input_blocks.{3 * level + 3}.0"] = f"down_blocks.{level}.downsamplers.0"
            found[f"output_blocks.{3 * level + 2}.2"] = f"up_blocks.{level}.upsamplers.0"
    return found


_SDXL_BLOCKS = _sdxl_blocks()
_SDXL_RESNETS = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
    "op": "conv",
}
_SDXL_OUTSIDE = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_SDXL_TO_BLOCKS = {v: k for k, v in _SDXL_BLOCKS.items()}
_SDXL_TO_RESNETS = {v: k for k, v in _SDXL_RESNETS.items()}
_SDXL_TO_OUTSIDE = {v: k for k, v in _SDXL_OUTSIDE.items()}

# Each original weight of FLUX and the modules whose rows it holds, in this order.
_FLUX_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_FLUX_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
FLUX_SWAPPED = "norm_out.linear"  # the two halves of its rows are the other way round in the original
_FLUX_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.adaLN_modulation.1": FLUX_SWAPPED,
    "final_layer.linear": "proj_out",
}
_FLUX_BLOCKS = {
    "double_blocks": ("transformer_blocks", _FLUX_DOUBLE),
    "single_blocks": ("single_transformer_blocks", _FLUX_SINGLE),
}
_FLUX_TO_OUTSIDE = {v: k for k, v in _FLUX_OUTSIDE.items()}


def to_kohya(family: str, component: str, name: str) -> str | None:
    """The name that the module's weight has in kohya's files (several of FLUX share one), or None if it has none."""
    prefix = PREFIXES.get(family, {}).get(component)
    original = _original(family, component, name)
    return None if prefix is None or original is None else prefix + original.replace(".", "_")


def from_kohya(family: str, key: str) -> tuple[str, tuple[str, ...]] | None:
    """The component and the modules whose rows a weight of kohya's holds, in order; None if there is no such module."""
    prefixes = {**{v: k for k, v in PREFIXES[family].items()}, **ALSO_READ[family]}
    for prefix in sorted(prefixes, key=len, reverse=True):
        if key.startswith(prefix):
            name = dotted(key.removeprefix(prefix))
            members = _members(family, prefixes[prefix], name) if name is not None else ()
            return (prefixes[prefix], members) if members else None
    return None


def dotted(name: str) -> str | None:
    """The name with dots where underscores stand between parts of it; None if a part is no word of a family's."""
    parts, place = [], 0
    while place < len(name):
        match = _WORD.match(name, place)
        if match is None:
            return None
        parts.append(match[1])
        place = match.end()
    return ".".join(parts) if parts and not name.endswith("_") else None


def fused_with(family: str, component: str, name: str) -> tuple[str, ...]:
    """The modules that lie in one weight of kohya's with this one, itself among them, in the order of their rows."""
    original = _original(family, component, name)
    members = _members(family, component, original) if original is not None else ()
    return members if len(members) > 1 else (name,)


def _original(family: str, component: str, name: str) -> str | None:
    if (family, component) == ("sdxl", "unet"):
        return _sdxl_original(name)
    if (family, component) == ("flux", "transformer"):
        return _flux_original(name)
    return name


def _members(family: str, component: str, original: str) -> tuple[str, ...]:
    if (family, component) == ("sdxl", "unet"):
        return _sdxl_members(original)
    if (family, component) == ("flux", "transformer"):
        return _flux_members(original)
    return (original,)


def _sdxl_original(name: str) -> str | None:
    if name in _SDXL_TO_OUTSIDE:
        return _SDXL_TO_OUTSIDE[name]
    parts = name.split(".")
    depth = 3 if parts[0] == "mid_block" else 4
    block, rest = _SDXL_TO_BLOCKS.get(".".join(parts[:depth])), ".".join(parts[depth:])
    if block is None:
        return None
    in_original = {"conv": "conv" if ".upsamplers." in name else "op"}  # only the way down calls it op
    return f"{block}.{in_original.get(rest, _SDXL_TO_RESNETS.get(rest, rest))}"


def _sdxl_members(original: str) -> tuple[str, ...]:
    if original in _SDXL_OUTSIDE:
        return (_SDXL_OUTSIDE[original],)
    parts = original.split(".")
    depth = 2 if parts[0] == "middle_block" else 3
    if parts[0] not in ("input_blocks", "middle_block", "output_blocks"):
        return (original,)  # some trainers write diffusers' names
    block, rest = _SDXL_BLOCKS.get(".".join(parts[:depth])), ".".join(parts[depth:])
    return () if block is None else (f"{block}.{_SDXL_RESNETS.get(rest, rest)}",)


def _flux_original(name: str) -> str | None:
    if name in _FLUX_TO_OUTSIDE:
        return _FLUX_TO_OUTSIDE[name]
    for original, (blocks, table) in _FLUX_BLOCKS.items():
        match = re.fullmatch(rf"{blocks}\.(\d+)\.(.+)", name)
        if match:
            for weight, members in table.items():
                if match[2] in members:
                    return f"{original}.{match[1]}.{weight}"
    return None


def _flux_members(original: str) -> tuple[str, ...]:
    if original in _FLUX_OUTSIDE:
        return (_FLUX_OUTSIDE[original],)
    start, _, rest = original.partition(".")
    if start not in _FLUX_BLOCKS:
        return (original,) if _flux_original(original) else ()  # some trainers write diffusers' names
    number, _, weight = rest.partition(".")
    blocks, table = _FLUX_BLOCKS[start]
    return tuple(f"{blocks}.{number}.{member}" for member in table.get(weight, ()))
