"""kohya's spelling: the one that ComfyUI, Forge, AUTOMATIC1111, sd-scripts and diffusers all read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from captune import parts
from captune.exporters import LoraFile, LoraModule
from captune.exporters._shared import check, model_name, most_common, rounded, sides, write
from captune.tensors import to_bytes


@dataclass(frozen=True)
class Spelling:
    """How kohya names a family: key prefixes by component, and what the header says about the base."""

    prefixes: Mapping[str, str]
    base_model_version: str
    v2: str
    architecture: str
    implementation: str


SPELLINGS: dict[str, Spelling] = {
    "sd": Spelling(
        prefixes={"unet": "lora_unet_", "text_encoder": "lora_te_"},  # lora_te1_ is SDXL's; sd-scripts drops it here
        base_model_version="sd_v1",
        v2="False",
        architecture="stable-diffusion-v1/lora",  # Forge calls a file Unknown without exactly this
        implementation="diffusers",
    )
}

# Facts that go into the header under kohya's own names, as they are.
KOHYA_FACTS = {
    "output_name": "ss_output_name",
    "num_train_images": "ss_num_train_images",
    "epoch": "ss_epoch",
    "epochs": "ss_num_epochs",
    "step": "ss_steps",
    "steps": "ss_max_train_steps",
    "batch_size": "ss_total_batch_size",
    "gradient_accumulation": "ss_gradient_accumulation_steps",
    "learning_rate": "ss_unet_lr",
    "text_encoder_learning_rate": "ss_text_encoder_lr",
    "lr_scheduler": "ss_lr_scheduler",
    "optimizer": "ss_optimizer",
    "seed": "ss_seed",
    "noise_offset": "ss_noise_offset",
    "min_snr_gamma": "ss_min_snr_gamma",
    "caption_dropout": "ss_caption_dropout_rate",
    "comment": "ss_training_comment",
}
JSON_FACTS = {
    "tag_frequency": "ss_tag_frequency",
    "bucket_info": "ss_bucket_info",
    "dataset_dirs": "ss_dataset_dirs",
}
# Facts that are put in other words below, or that the modules themselves tell.
OTHER_FACTS = {"base_model", "resolution", "trigger_word", "objective", "training_started_at", "rank", "alpha"}
SD_SCRIPTS_BLOCKS = re.compile(r"(^|\.)(attentions|resnets|downsamplers|upsamplers)\.")


class Kohya:
    """Writes `<module>.lora_down.weight`, `.lora_up.weight` and `.alpha`; the module's dots become underscores."""

    suffix = ".safetensors"

    def write(self, lora: LoraFile, path: Path, precision: str) -> None:
        """Write the file atomically; `precision` is fp32, fp16 or bf16."""
        check(lora, precision)
        if lora.family not in SPELLINGS:
            raise parts.unknown("family for the kohya format", lora.family, SPELLINGS)
        spelling = SPELLINGS[lora.family]
        alpha = rounded(torch.tensor(file_alpha(lora)), precision)
        tensors: dict[str, Tensor] = {}
        for module in lora.modules:
            tensors.update(_tensors(module, key(module, spelling), alpha, precision))
        metadata = header(lora, spelling)
        write(path, to_bytes(tensors, {**metadata, **_hashes(tensors, metadata)}))

    def warnings(self, lora: LoraFile) -> list[str]:
        """sd-scripts drops, and does not say so, what is outside of the blocks that it can train."""
        outside = [m.name for m in lora.modules if m.component == "unet" and not SD_SCRIPTS_BLOCKS.search(m.name)]
        if not outside:
            return []
        count = f"{len(outside)} of {len(lora.modules)} modules"
        return [f"sd-scripts will leave out {count} ({', '.join(outside)}); all other tools read them"]


def key(module: LoraModule, spelling: Spelling) -> str:
    """The module's name in kohya's spelling, without the tensor's ending."""
    if module.component not in spelling.prefixes:
        raise parts.unknown("component", module.component, spelling.prefixes)
    return spelling.prefixes[module.component] + module.name.replace(".", "_")


def file_alpha(lora: LoraFile) -> float:
    """The one alpha that the whole file has: diffusers mixes up the alphas of attention layers when they differ."""
    return most_common(module.alpha for module in lora.modules)


def _tensors(module: LoraModule, name: str, alpha: Tensor, precision: str) -> dict[str, Tensor]:
    """One module's three tensors; what sets its own alpha apart from the file's (rounding, too) goes into `up`."""
    up = module.up * (torch.tensor(module.alpha) / alpha.float())
    return {
        f"{name}.alpha": alpha.clone(),
        f"{name}.lora_down.weight": rounded(module.down, precision),
        f"{name}.lora_up.weight": rounded(up, precision),
    }


def header(lora: LoraFile, spelling: Spelling) -> dict[str, str]:
    """What the file says about itself: kohya's ss_ names and Stability's modelspec. No clock is read."""
    facts = lora.facts
    name = facts.get("output_name", "LoRA")
    size = sides(facts.get("resolution", ""))
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _ranks(lora.modules),
        "ss_network_alpha": f"{file_alpha(lora):g}",
        "ss_network_args": json.dumps(_network_args(lora)),
        "ss_base_model_version": spelling.base_model_version,
        "ss_v2": spelling.v2,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": spelling.architecture,
        "modelspec.implementation": spelling.implementation,
        "modelspec.title": name,
        "modelspec.prediction_type": "v" if facts.get("objective") == "v_prediction" else "epsilon",
    }
    for fact, value in facts.items():
        if fact in KOHYA_FACTS:
            metadata[KOHYA_FACTS[fact]] = value
        elif fact in JSON_FACTS:
            metadata[JSON_FACTS[fact]] = _json_object(fact, value)
        elif fact not in OTHER_FACTS:
            metadata[f"captune.{fact}"] = value
    if "base_model" in facts:
        metadata["ss_sd_model_name"] = model_name(facts["base_model"])
    if size:
        metadata["ss_resolution"] = f"({size[0]}, {size[1]})"
        metadata["modelspec.resolution"] = f"{size[0]}x{size[1]}"
    if facts.get("trigger_word"):
        metadata["modelspec.trigger_phrase"] = facts["trigger_word"]
    if "training_started_at" in facts:  # AUTOMATIC1111 and Forge read it as seconds since 1970 or fail
        metadata["ss_training_started_at"] = str(float(facts["training_started_at"]))
    return metadata


def _ranks(modules: Sequence[LoraModule]) -> str:
    """The one rank, or what kohya's own tools write when modules differ."""
    ranks = {module.rank for module in modules}
    return str(ranks.pop()) if len(ranks) == 1 else "Dynamic"


def _network_args(lora: LoraFile) -> dict[str, str]:
    """kohya's arguments for a network with 3x3 convolutions."""
    wide = [m for m in lora.modules if m.down.ndim == 4 and m.down.shape[2:] != (1, 1)]
    return {"conv_dim": _ranks(wide), "conv_alpha": f"{file_alpha(lora):g}"} if wide else {}


def _json_object(fact: str, text: str) -> str:
    """The text as one line of JSON; the web interfaces fail on anything but an object here."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"the fact {fact} must be a JSON object, not {text!r}")
    return json.dumps(value, sort_keys=True)


def _hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The two hashes by which web interfaces know the file, over what cannot be edited later (as kohya makes them)."""
    content = to_bytes(tensors, {k: v for k, v in metadata.items() if k.startswith("ss_")})
    begin = 8 + int.from_bytes(content[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(content[begin:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    }
