"""How a training step is computed, not what: activations computed twice to save memory, blocks compiled to save time."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from captune.errors import RecipeError
from captune.families import Family
from captune.recipe import TrainSection
from captune.train import low_rank

# glibc's mallopt: give nothing back to the system below so many bytes, and take more at a time than is asked for
KEEPING = {-3: 32 << 20, -1: 1 << 30, -2: 64 << 20}  # M_MMAP_THRESHOLD (its highest value), M_TRIM_THRESHOLD, M_TOP_PAD
RECOMPILES = 64  # of one block's code, for its widths and the buckets; torch gives up, and says little, after 8


@contextmanager
def executed(section: TrainSection, family: Family) -> Iterator[None]:
    """The family's modules run as the section says meanwhile, and as before afterwards."""
    denoiser = family.components[family.denoiser]
    if family.device.type == "cpu":
        _keep_freed_memory()
    with ExitStack() as stack:
        if section.gradient_checkpointing:
            stack.enter_context(_checkpointed(denoiser))
            if section.text_encoder_learning_rate is not None:
                encoders = [module for name, module in family.components.items() if name != family.denoiser]
                stack.enter_context(layers_checkpointed(encoders))
        if section.compile:  # the compiler joins operations itself
            stack.enter_context(_compiled(denoiser, family.device))
        else:
            stack.enter_context(low_rank.joined(family.components))
        yield


@cache
def _keep_freed_memory() -> None:
    """Let every step use the memory of the one before: to get it from the system again costs a small model a tenth."""
    if platform.libc_ver()[0] == "glibc":
        for parameter, value in KEEPING.items():
            ctypes.CDLL(None).mallopt(parameter, value)


@contextmanager
def _checkpointed(denoiser: Any) -> Iterator[None]:
    denoiser.enable_gradient_checkpointing()
    try:
        yield
    finally:
        denoiser.disable_gradient_checkpointing()


@contextmanager
def layers_checkpointed(encoders: list[Any]) -> Iterator[None]:
    """transformers does so only in layers that are in training; only their own flag is set, and a dropout that is no module
    of its own (OPT's) is held at 0, so no dropout wakes up."""
    layers = [layer for e in encoders for layer in e.modules() if isinstance(layer, GradientCheckpointingLayer)]
    shares = [(layer, layer.dropout) for layer in layers if isinstance(getattr(layer, "dropout", None), float)]
    for encoder in encoders:
        encoder.activation_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
    for layer, _ in shares:
        layer.dropout = 0.0
    try:
        yield
    finally:
        for layer, share in shares:
            layer.dropout = share
        for layer in layers:
            layer.training = False
        for encoder in encoders:
            encoder.activation_checkpointing_disable()


@contextmanager
def _compiled(denoiser: Any, device: torch.device) -> Iterator[None]:
    _check_compiler(device)
    with torch._dynamo.config.patch(recompile_limit=RECOMPILES):
        denoiser.compile_repeated_blocks()
        try:
            yield
        finally:
            for module in denoiser.modules():
                module._compiled_call_impl = None
            torch.compiler.reset()


def _check_compiler(device: torch.device) -> None:
    """Raise a RecipeError where torch has no working compiler for the device."""
    try:
        torch.compile(nn.Linear(8, 8).to(device))(torch.ones(2, 8, device=device))
    except Exception as error:  # anything, from a missing g++ to a missing triton
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        needs = "a C++ compiler such as g++" if device.type == "cpu" else "triton"
        raise RecipeError(
            f"train.compile = true: torch cannot compile for {device.type} here, which needs {needs} ({reason}); "
            "leave compile out"
        ) from error
