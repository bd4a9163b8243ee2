"""What a training keeps in memory: activations computed twice instead of kept, freed memory used again.

The base's parts that have done their work (VAE, text encoders) leave the device in the families, which know when.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from captune.families import Family
from captune.recipe import TrainSection

# glibc's mallopt: give nothing back to the system below so many bytes, and take more at a time than is asked for
KEEPING = {-3: 32 << 20, -1: 1 << 30, -2: 64 << 20}  # M_MMAP_THRESHOLD (its highest value), M_TRIM_THRESHOLD, M_TOP_PAD


@contextmanager
def spared(section: TrainSection, family: Family) -> Iterator[None]:
    """The family's modules use the memory that the section says meanwhile."""
    if family.device.type == "cpu":
        _keep_freed_memory()
    with ExitStack() as stack:
        if section.gradient_checkpointing:
            stack.enter_context(checkpointed(family.components[family.denoiser]))
            if section.text_encoder_learning_rate is not None:
                encoders = [module for name, module in family.components.items() if name != family.denoiser]
                stack.enter_context(layers_checkpointed(encoders))
        yield


@cache
def _keep_freed_memory() -> None:
    """Let every step use the memory of the one before: to get it from the system again costs a small model a tenth."""
    if platform.libc_ver()[0] == "glibc":
        for parameter, value in KEEPING.items():
            ctypes.CDLL(None).mallopt(parameter, value)


@contextmanager
def checkpointed(denoiser: Any) -> Iterator[None]:
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
