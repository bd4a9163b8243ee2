"""A captioner's LoRA on disk: the folder that peft reads, and how it gets into a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from captune import captions, runs, weights
from captune.errors import DataError, ModelError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # peft's name for the network that the LoRA is in


def identity(folder: Path) -> str:
    """What an adapter is: its weights' hash."""
    return runs.sha256_of(_file(folder, TENSORS))


def put_in(model: Any, folder: Path, name: str, *, merged: bool = True) -> Any:
    """The network with the folder's LoRA in it, added to its weights if `merged`. Refuses a LoRA of another model."""
    from peft import PeftModel
    from safetensors import safe_open

    try:
        config = json.loads(_file(folder, CONFIG).read_text(encoding="utf-8"))
        with safe_open(_file(folder, TENSORS), "pt") as file:
            stored = set(file.keys())
    except (ValueError, OSError) as error:
        raise DataError(f"captioner.adapter = {str(folder)!r} cannot be read: {error}") from error
    base = config.get("base_model_name_or_path")
    if base and name not in (base, str(weights.locate(base, "blip"))):
        raise ModelError(
            f"captioner.adapter = {str(folder)!r} was trained on {base!r}, and captioner.model is {name!r}; "
            f"set captioner.model = {base!r}"
        )
    modules = {key: value.shape for key, value in model.state_dict().items()}
    strange = sorted(key for key in stored if f"{_module(key)}.weight" not in modules)
    if strange or not stored:
        raise ModelError(
            f"captioner.adapter = {str(folder)!r} does not fit {name!r}: the model has no "
            f"{captions.some([_module(key) for key in strange], 3) or 'module of it'}"
        )
    try:
        tuned: Any = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"captioner.adapter = {str(folder)!r} does not fit {name!r}: {_first_line(error)}") from error
    return (tuned.merge_and_unload() if merged else tuned.base_model.model).eval()


def _module(key: str) -> str:
    return key.removeprefix(PREFIX).rpartition(".lora_")[0]


def _file(folder: Path, name: str) -> Path:
    path = folder.expanduser() / name
    if not path.is_file():
        raise DataError(
            f"captioner.adapter = {str(folder)!r}: there is no {name}; give a folder that captune tune-captioner wrote"
        )
    return path


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
