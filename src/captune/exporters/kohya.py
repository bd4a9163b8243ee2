"""kohya's spelling: the one that ComfyUI, Forge, AUTOMATIC1111, sd-scripts and diffusers all read."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from captune.errors import ModelError
from captune.exporters import LoraFile, LoraModule, clients, fused, names
from captune.exporters._shared import FOREIGN, check, model_name, most_common, rounded, sides, version_of, write
from captune.tensors import to_bytes

GENERATIVE_MODELS = "https://github.com/Stability-AI/generative-models"
BLACK_FOREST_LABS = "https://github.com/black-forest-labs/flux"


@dataclass(frozen=True)
class Label:
    """What the header says about the base, as kohya writes it and web interfaces tell families by."""

    base_model_version: str
    architecture: str  # Forge calls a file Unknown without exactly kohya's words
    implementation: str = "diffusers"
    network_module: str = "networks.lora"
    v2: str = "False"


LABELS: dict[str, Label] = {
    "sd1": Label("sd_v1", "stable-diffusion-v1/lora"),
    "sd2": Label("sd_v2", "stable-diffusion-v2-512/lora", v2="True"),
    "sd2-v": Label("sd_v2_v", "stable-diffusion-v2-768-v/lora", v2="True"),
    "sdxl": Label("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", GENERATIVE_MODELS),
    "flux-dev": Label("flux1", "flux-1-dev/lora", BLACK_FOREST_LABS, "networks.lora_flux"),
    "flux-schnell": Label("flux1", "flux-1-schnell/lora", BLACK_FOREST_LABS, "networks.lora_flux"),
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
    "lr_warmup_steps": "ss_lr_warmup_steps",
    "max_grad_norm": "ss_max_grad_norm",
    "optimizer": "ss_optimizer",
    "seed": "ss_seed",
    "noise_offset": "ss_noise_offset",
    "ip_noise_gamma": "ss_ip_noise_gamma",
    "min_snr_gamma": "ss_min_snr_gamma",
    "debiased_estimation": "ss_debiased_estimation",
    "zero_terminal_snr": "ss_zero_terminal_snr",
    "loss": "ss_loss_type",
    "min_timestep": "ss_min_timestep",
    "max_timestep": "ss_max_timestep",
    "masked_loss": "ss_masked_loss",
    "gradient_checkpointing": "ss_gradient_checkpointing",
    "regularization_weight": "ss_prior_loss_weight",
    "caption_dropout": "ss_caption_dropout_rate",
    "clip_skip": "ss_clip_skip",
    "comment": "ss_training_comment",
}
JSON_FACTS = {
    "tag_frequency": "ss_tag_frequency",
    "bucket_info": "ss_bucket_info",
    "dataset_dirs": "ss_dataset_dirs",
}
# Facts that are put in other words below, or that the modules themselves tell.
OTHER_FACTS = {"base_model", "resolution", "trigger_word", "objective", "training_started_at", "rank", "alpha"}

COVERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")  # how JPEG, PNG and WebP files begin
LARGEST_COVER = 512 * 1024


class Kohya:
    """Writes `<module>.lora_down.weight`, `.lora_up.weight` and `.alpha`; the module's dots become underscores."""

    suffix = ".safetensors"

    def write(self, lora: LoraFile, path: Path, precision: str) -> None:
        """Write the file atomically; `precision` is fp32, fp16 or bf16."""
        check(lora, precision)
        version_of(lora)
        common = file_alpha(lora)
        tensors: dict[str, Tensor] = {}
        for name, module in file_modules(lora).items():
            alpha = module.alpha if lora.family == "flux" else common
            tensors.update(_tensors(module, name, rounded(torch.tensor(alpha), precision), precision))
        metadata = header(lora)
        write(path, to_bytes(tensors, {**metadata, **_hashes(tensors, metadata)}))

    def warnings(self, lora: LoraFile) -> list[str]:
        """Some tools drop, and do not say so, what they cannot read; the keys of this file that they leave out."""
        said = []
        shapes = {name: tuple(module.down.shape) for name, module in file_modules(lora).items()}
        for reading in clients.readings(lora.family, version_of(lora), clients.KOHYA, shapes):
            if reading.ignored and reading.loads:
                count = f"{len(reading.ignored)} of {len(shapes)} modules"
                some = ", ".join(reading.ignored[:4]) + (", ..." if len(reading.ignored) > 4 else "")
                said.append(f"{reading.client} will leave out {count} ({some}): {reading.reason}")
        return said


def file_modules(lora: LoraFile) -> dict[str, LoraModule]:
    """The LoRA's modules by the names they have in the file, those that are one weight in it put together."""
    groups: dict[str, dict[str, LoraModule]] = {}
    for module in lora.modules:
        key = names.to_kohya(lora.family, module.component, module.name)
        if key is None:
            raise ModelError(
                f"{module.component}.{module.name} has no name in kohya's files of the family {lora.family}; "
                "leave it out by train.targets, or export it as peft"
            )
        groups.setdefault(key, {})[module.name] = module
    found = {}
    for key, modules in groups.items():
        first = next(iter(modules.values()))
        members = names.fused_with(lora.family, first.component, first.name)
        if len(members) > 1:
            found[key] = fused.fuse(modules, members, key)
        elif lora.family == "flux" and first.name == names.FLUX_SWAPPED:
            found[key] = fused.with_halves_swapped(first)
        else:
            found[key] = first
    return found


def file_alpha(lora: LoraFile) -> float:
    """The one alpha that a file has: diffusers mixes up the alphas of attention layers when they differ, but FLUX's."""
    return most_common(module.alpha for module in lora.modules)


def _tensors(module: LoraModule, name: str, alpha: Tensor, precision: str) -> dict[str, Tensor]:
    """One module's three tensors; what sets its own alpha apart from the file's (rounding, too) goes into `up`."""
    up = module.up * (torch.tensor(module.alpha) / alpha.float())
    return {
        f"{name}.alpha": alpha.clone(),
        f"{name}.lora_down.weight": rounded(module.down, precision),
        f"{name}.lora_up.weight": rounded(up, precision),
    }


def header(lora: LoraFile) -> dict[str, str]:
    """What the file says about itself: kohya's ss_ names and Stability's modelspec. No clock is read."""
    facts, version = lora.facts, version_of(lora)
    predicts_v = facts.get("objective") == "v_prediction"
    label = LABELS["sd2-v" if version == "sd2" and predicts_v else version]
    name = facts.get("output_name", "LoRA")
    size = sides(facts.get("resolution", ""))
    metadata = {k: v for k, v in facts.items() if k.startswith(FOREIGN)}
    metadata |= {
        "ss_network_module": label.network_module,
        "ss_network_dim": _ranks(lora.modules),
        "ss_network_alpha": f"{file_alpha(lora):g}",
        "ss_network_args": json.dumps(_network_args(lora)),
        "ss_base_model_version": label.base_model_version,
        "ss_v2": label.v2,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": label.architecture,
        "modelspec.implementation": label.implementation,
        "modelspec.title": name,
        "captune.base_version": version,
    }
    if lora.family != "flux":
        metadata["modelspec.prediction_type"] = "v" if predicts_v else "epsilon"
    for fact, value in facts.items():
        if fact in KOHYA_FACTS:
            metadata[KOHYA_FACTS[fact]] = value
        elif fact in JSON_FACTS:
            metadata[JSON_FACTS[fact]] = _json_object(fact, value)
        elif fact not in OTHER_FACTS and not fact.startswith(FOREIGN):
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
    if lora.cover is not None:
        metadata["ssmd_cover_images"] = _cover(lora.cover)
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


def _cover(picture: bytes) -> str:
    """The list of pictures that ComfyUI, Forge and AUTOMATIC1111 look for in the header."""
    if not picture.startswith(COVERS) or len(picture) > LARGEST_COVER:
        raise ModelError(
            f"the cover picture ({len(picture)} bytes) must be a JPEG, PNG or WebP of at most {LARGEST_COVER} bytes: "
            "it is read whenever the file's header is"
        )
    return json.dumps([base64.b64encode(picture).decode("ascii")])


def _hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The two hashes by which web interfaces know the file, over what cannot be edited later (as kohya makes them)."""
    content = to_bytes(tensors, {k: v for k, v in metadata.items() if k.startswith("ss_")})
    begin = 8 + int.from_bytes(content[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(content[begin:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    }
