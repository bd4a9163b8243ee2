"""The base model with the LoRA in its weights: a whole diffusers folder, for tools and people without LoRA support."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from captune import runs
from captune.errors import DataError, ModelError
from captune.exporters import LoraFile, LoraModule, PipelineLoader
from captune.exporters._shared import DTYPES, check
from captune.tensors import to_bytes


class Merged:
    """Writes a diffusers folder; load the base in float32, so that only the sum is rounded."""

    suffix = "-merged"

    def __init__(self, load_pipeline: PipelineLoader):
        self._load_pipeline = load_pipeline

    def write(self, lora: LoraFile, path: Path, precision: str) -> None:
        """Write the folder, replacing one of that name as a whole; `precision` is fp32, fp16 or bf16."""
        check(lora, "fp32")
        pipeline = self._load_pipeline()
        merge(pipeline, lora)
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module) and name != "vae":  # SD's VAE overflows in fp16
                nn.Module.to(part, DTYPES[precision])  # not diffusers' own, which warns that others load it otherwise
        part_path = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pipeline.save_pretrained(part_path)
            for folder in sorted(p for p in part_path.iterdir() if p.is_dir()):
                _fit_older_transformers(folder)
            _tidy_configs(part_path)
            if path.exists():
                shutil.rmtree(path)
            os.replace(part_path, path)
        except OSError as error:
            raise DataError(
                f"cannot write {path}: {error.strerror or error}; free space or choose another place"
            ) from error
        finally:
            shutil.rmtree(part_path, ignore_errors=True)

    def warnings(self, lora: LoraFile) -> list[str]:
        """Nothing of it can be left out."""
        return []


@torch.no_grad()
def merge(pipeline: Any, lora: LoraFile) -> None:
    """Add every change of the LoRA to the pipeline's weights, computed in float32."""
    for module in lora.modules:
        weight = _weight(pipeline, module)
        change = module.change()
        if weight.shape != change.shape:
            raise ModelError(
                f"{module.component}.{module.name} is {tuple(change.shape)} in the LoRA and {tuple(weight.shape)} in the "
                "base: it was trained on another base"
            )
        weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))


def _weight(pipeline: Any, module: LoraModule) -> Tensor:
    root = getattr(pipeline, module.component, None)
    # transformers 5 dropped the level `text_model.` of some encoders, the file formats did not
    for name in (module.name, module.name.removeprefix("text_model.")):
        try:
            found: Tensor = root.get_submodule(name).get_parameter("weight")  # type: ignore[union-attr]
            return found
        except AttributeError:
            continue
    raise ModelError(f"the base has no {module.component}.{module.name}: the LoRA was trained on another base")


def _fit_older_transformers(folder: Path) -> None:
    """Write names and tokenizer files as transformers 4 wrote them.

    It loads nothing from an encoder whose keys lack `text_model.`, and only warns; both versions read these files.
    """
    weights, config = folder / "model.safetensors", folder / "config.json"
    if weights.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == "clip_text_model":
        tensors = load_file(weights)
        if not any(name.startswith("text_model.") for name in tensors):
            named = {f"text_model.{name}": value for name, value in tensors.items()}
            with runs.atomic(weights) as part:
                part.write_bytes(to_bytes(named, {"format": "pt"}))
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file() and not (folder / "vocab.json").exists():
        model = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]
        if model["type"] == "BPE":
            runs.write_text(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))
            merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
            runs.write_text(folder / "merges.txt", "".join(f"{line}\n" for line in ["#version: 0.2", *merges]))


def _tidy_configs(root: Path) -> None:
    """Take out where the base lay on this computer, and say of tokenizers what transformers 4 understands."""
    for path in [root / "model_index.json", *root.glob("*/*config.json")]:
        values = json.loads(path.read_text(encoding="utf-8"))
        for name in ("_name_or_path", "is_local", "local_files_only"):
            values.pop(name, None)
        if isinstance(values.get("extra_special_tokens"), list):  # a table of names there, and a list by another name
            values["additional_special_tokens"] = values.pop("extra_special_tokens")
        for name, value in values.items():
            if value == ["transformers", "T5Tokenizer"] and not (root / name / "spiece.model").exists():
                values[name] = ["transformers", "T5TokenizerFast"]
        runs.write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")
