"""How a training step is computed, not what: layers joined or compiled to save time, memory as `memory` says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from captune.errors import RecipeError
from captune.families import Family
from captune.recipe import TrainSection
from captune.train import low_rank, memory

RECOMPILES = 64  # of one block's code, for its widths and the buckets; torch gives up, and says little, after 8


@contextmanager
def executed(section: TrainSection, family: Family) -> Iterator[None]:
    """The family's modules run as the section says meanwhile, and as before afterwards."""
    denoiser = family.components[family.denoiser]
    with ExitStack() as stack:
        stack.enter_context(memory.spared(section, family))
        if section.compile:  # the compiler joins operations itself
            stack.enter_context(_compiled(denoiser, family.device))
        else:
            stack.enter_context(low_rank.joined(family.components))
        yield


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
