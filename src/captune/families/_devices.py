"""Which device and number format a base model runs in."""

from __future__ import annotations

from typing import Literal

import torch

from captune.errors import RecipeError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device a recipe names; auto takes CUDA, then MPS, then the CPU. A device that is not there is a RecipeError."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecipeError(f"base.device = {name!r}: not a device; use auto, cpu, cuda, cuda:1 or mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise RecipeError(f"base.device = {name!r}: this machine has none that torch can use; use auto or cpu")
    return device


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The number format of the forward pass; auto is bf16 where the hardware computes in it, else fp32."""
    if precision == "fp16" and device.type == "cpu":
        raise RecipeError('base.precision = "fp16": a CPU trains in fp32 or bf16; use auto')
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32
