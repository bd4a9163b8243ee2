"""The optimizer and the learning rate's curve."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from captune.recipe import TrainSection


def lr_factor(section: TrainSection, step: int, total_steps: int) -> float:
    """The learning rate's factor at a step (counted from 0): linear warm-up, then the scheduler's curve.

    cosine_with_restarts is max(0, (1 + cos(pi ((cycles p) mod 1))) / 2) with p the progress after warm-up, as in kohya.
    """
    warmup = section.lr_warmup_steps
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if section.lr_scheduler == "constant":
        return 1.0
    if section.lr_scheduler == "linear":
        return max(0.0, 1 - progress)
    cycles = section.lr_scheduler_cycles if section.lr_scheduler == "cosine_with_restarts" else 1
    if progress >= 1:
        return 0.0
    return max(0.0, 0.5 * (1 + math.cos(math.pi * ((cycles * progress) % 1.0))))


def build_optimizer(section: TrainSection, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with one group per component; each group remembers its own learning rate as `base_lr`."""
    rates = {"unet": section.learning_rate, "text_encoder": section.text_encoder_learning_rate}
    groups = []
    for component, rate in rates.items():
        members = [p for name, p in parameters.items() if name.startswith(f"{component}.")]
        if members and rate is not None:
            groups.append({"params": members, "lr": rate, "base_lr": rate, "component": component})
    return torch.optim.AdamW(groups, betas=section.betas, weight_decay=section.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Scale every group's learning rate; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    first: float = optimizer.param_groups[0]["lr"]
    return first
