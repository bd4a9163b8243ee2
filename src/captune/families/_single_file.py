"""Checkpoints in one file, in their makers' original layout: what is in them, and where the rest is found.

Sizes come from `configs/`, so nothing has to be looked up on a hub. What a file does not hold (tokenizers always, and
most of FLUX) is looked for in the folder that it lies in, by the names of a diffusers folder: `tokenizer`, `vae`,
`text_encoder_2`. Their makers' repositories have both side by side. What is not there either comes from the hub's cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    create_diffusers_clip_model_from_ldm,
    create_diffusers_t5_model_from_checkpoint,
)
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from captune.errors import ModelError
from captune.tokens import TOKENIZER_SOURCES

CONFIGS = Path(__file__).parent / "configs"
State = dict[str, Tensor]

_UNET, _FLUX = "model.diffusion_model.", "double_blocks.0.img_attn.norm.key_norm.scale"
_OPEN_CLIP = "cond_stage_model.model."

# Where the tensors of a part begin in a file, by version.
PREFIXES: dict[str, dict[str, str]] = {
    "sd1": {"unet": _UNET, "vae": "first_stage_model.", "text_encoder": "cond_stage_model.transformer.text_model."},
    "sd2": {"unet": _UNET, "vae": "first_stage_model.", "text_encoder": _OPEN_CLIP},
    "sdxl": {
        "unet": _UNET,
        "vae": "first_stage_model.",
        "text_encoder": "conditioner.embedders.0.transformer.text_model.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "flux": {
        "transformer": "",
        "vae": "vae.",
        "text_encoder": "text_encoders.clip_l.transformer.text_model.",
        "text_encoder_2": "text_encoders.t5xxl.transformer.",
    },
}
MODELS: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
}
CONVERTERS: dict[str, Any] = {  # (tensors, config=...) -> tensors under diffusers' names
    "unet": convert_ldm_unet_checkpoint,
    "transformer": convert_flux_transformer_checkpoint_to_diffusers,
    "vae": convert_ldm_vae_checkpoint,
}
SECOND_ENCODERS: dict[str, Any] = {"sdxl": CLIPTextModelWithProjection, "flux": T5EncoderModel}
SOURCES = {  # of models that a file lacks
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "stabilityai/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "flux": "black-forest-labs/FLUX.1-dev",
}
FAMILY_OF = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl", "flux": "flux"}

# Found in .ckpt files beside the weights (a trainer's notes). Each is read as an empty stand-in: none of it is ever run.
NOTES = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.enums.LightningEnum",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)


class _Note:
    """Stands in for an object of a trainer's notes; takes anything, does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def load(path: Path, family: str, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a diffusers pipeline, by name, from a checkpoint file of that family; the VAE in float32."""
    state = read(path)
    version = version_of(state)
    if version is None:
        raise ModelError(
            f"{path} is no checkpoint of Stable Diffusion 1.x, 2.x, XL or FLUX.1 in its original layout; "
            "convert it to a diffusers folder and name that"
        )
    if FAMILY_OF[version] != family:
        raise ModelError(
            f'{path} holds a base of the family {FAMILY_OF[version]}: set base.family = "{FAMILY_OF[version]}"'
        )
    found: dict[str, Any] = {"scheduler": _scheduler(path, version, state)}
    for name, prefix in PREFIXES[version].items():
        stored = torch.float32 if name == "vae" else dtype
        if any(key.startswith(prefix) for key in state):
            found[name] = _model(path, version, name, state, stored)
        else:
            found[name] = _from_elsewhere(path, version, name, stored)
    for name in ("tokenizer", "tokenizer_2"):
        if name.replace("tokenizer", "text_encoder") in found:
            found[name] = _tokenizer(path, version, name)
    return found


def read(path: Path) -> State:
    """The tensors of a .safetensors file, or of a .ckpt or .pt file by weights-only loading: nothing in it is run."""
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    if path.suffix not in (".ckpt", ".pt", ".pth"):
        raise ModelError(f"{path}: a checkpoint's name ends in .safetensors or .ckpt, and {path.suffix!r} is neither")
    try:
        with torch.serialization.safe_globals([(_Note, name) for name in NOTES]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{path} cannot be read as weights alone, and nothing else in it is ever run ({reason}); "
            "take the .safetensors file of the same model"
        ) from error
    while isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds no named weights")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def version_of(state: Mapping[str, Tensor]) -> str | None:
    """sd1, sd2, sdxl or flux, by the names of the tensors; None for anything else."""
    if _FLUX in state or _UNET + _FLUX in state:
        return "flux"
    for version in ("sdxl", "sd2", "sd1"):
        prefixes = [PREFIXES[version]["unet"], list(PREFIXES[version].values())[-1]]
        if all(any(key.startswith(prefix) for key in state) for prefix in prefixes):
            return version
    return None


def _beside(path: Path, part: str, file: str) -> Path | None:
    """The folder of the file that holds this part, if there is one."""
    return path.parent if (path.parent / part / file).is_file() else None


def _model(path: Path, version: str, name: str, state: State, dtype: torch.dtype) -> nn.Module:
    """One part from the file's tensors, of the size that a config.json beside it says, or the original's."""
    cls = MODELS.get(name) or SECOND_ENCODERS[version]
    beside = _beside(path, name, "config.json")
    place = str(beside or CONFIGS / version)
    if cls is T5EncoderModel:
        model = create_diffusers_t5_model_from_checkpoint(cls, state, name, place, dtype, True)
        model.tie_weights()
    elif name.startswith("text_encoder"):
        model = create_diffusers_clip_model_from_ldm(cls, state, name, place, dtype, True)
    else:
        config = cls.load_config(place, subfolder=name, local_files_only=True)
        if name == "transformer":
            config["guidance_embeds"] = any("guidance_in." in key for key in state)
        elif (name, version, beside) == ("unet", "sd2", None) and prediction_type(path, version, state) == "epsilon":
            config["sample_size"] = 64  # 2-base draws 512 pixels, the one that predicts v 768
        with torch.device("meta"):
            model = cls.from_config(config)
        # a copy of the table: the converter takes out of it what it has read
        converted = CONVERTERS[name](dict(state), config=config)
        model.load_state_dict({key: value.to(dtype) for key, value in converted.items()}, strict=False, assign=True)
    missing = [key for key, value in model.named_parameters() if value.is_meta]
    if missing:
        raise ModelError(f"{path}: {len(missing)} weights of its {name} are not in it, the first is {missing[0]}")
    part: nn.Module = model
    return part


def _from_elsewhere(path: Path, version: str, name: str, dtype: torch.dtype) -> nn.Module:
    """One part that the file lacks, from the folder it lies in or from the hub."""
    cls = MODELS.get(name) or SECOND_ENCODERS[version]
    place = _beside(path, name, "config.json")
    source = str(place or SOURCES[version])
    try:
        model: nn.Module = cls.from_pretrained(source, subfolder=name, dtype=dtype, local_files_only=place is not None)
    except Exception as error:
        raise _not_found(path, name, source, f"{name}/*", error) from error
    return model


def _tokenizer(path: Path, version: str, name: str) -> Any:
    place = _beside(path, name, "tokenizer_config.json")
    source, folder, pad = TOKENIZER_SOURCES[version, name]
    try:
        if place is not None:
            return AutoTokenizer.from_pretrained(str(place), subfolder=name, local_files_only=True)
        return AutoTokenizer.from_pretrained(source, subfolder=folder, **pad)
    except Exception as error:
        wanted = f"{folder}/*" if folder else "*.json,*.txt"
        raise _not_found(path, name, source, wanted, error) from error


def _not_found(path: Path, name: str, source: str, files: str, error: Exception) -> ModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    wanted = " ".join(f'--include "{pattern}"' for pattern in files.split(","))
    return ModelError(
        f"{path} holds no {name}, and there is none in {path.parent / name} nor on this machine ({reason}); with a network, "
        f"run `hf download {source} {wanted}` once, or copy the {name} folder of such a model beside the file"
    )


def prediction_type(path: Path, version: str, state: Mapping[str, Tensor]) -> str:
    """epsilon or v_prediction: what the file's header says, or a mark in it, or for 2.x what its weights show."""
    said = ""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get("modelspec.prediction_type", "")
    if said:
        return "v_prediction" if said.startswith("v") else "epsilon"
    # ComfyUI's measure (supported_models.py, SD20): this bias is spread wider in all 2.x bases that predict v
    telling = state.get(_UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias")
    spread = version == "sd2" and telling is not None and telling.float().std(correction=0).item() > 0.09
    return "v_prediction" if spread or "v_pred" in state else "epsilon"


def _scheduler(path: Path, version: str, state: Mapping[str, Tensor]) -> Any:
    """The noise schedule: of a scheduler_config.json beside the file, else the original's."""
    file = "scheduler_config.json"
    folder = _beside(path, "scheduler", file) or CONFIGS / version
    config = json.loads((folder / "scheduler" / file).read_text(encoding="utf-8"))
    if version == "flux":
        if folder == CONFIGS / version and not any("guidance_in." in key for key in state):
            config |= {"shift": 1.0, "use_dynamic_shifting": False}  # schnell
        return FlowMatchEulerDiscreteScheduler.from_config(config)
    if folder == CONFIGS / version:
        config["prediction_type"] = prediction_type(path, version, state)
        config["rescale_betas_zero_snr"] = "ztsnr" in state
    return DDIMScheduler.from_config(config)
