"""The optimizer and the learning rate's curve. Loads no library before an optimizer is chosen."""

from __future__ import annotations

import importlib.util
import inspect
import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from captune import parts
from captune.errors import RecipeError
from captune.recipe import TrainSection

if TYPE_CHECKING:  # a plan refuses optimizers without loading torch
    import torch
    from torch import nn


@dataclass(frozen=True)
class Choice:
    """An optimizer that a recipe can name: where its class is, and what it is called with beside the recipe's own."""

    place: str
    extra: str = ""  # the optional dependency that brings it
    arguments: Mapping[str, Any] = field(default_factory=dict)


# relative_step and scale_parameter would put Adafactor's own learning rates in the place of the recipe's
_FIXED_RATE = {"relative_step": False, "scale_parameter": False, "warmup_init": False}
OPTIMIZERS: dict[str, Choice] = {
    "adamw": Choice("torch.optim:AdamW"),
    "adafactor": Choice("transformers.optimization:Adafactor", arguments=_FIXED_RATE),
    "prodigy": Choice("prodigyopt:Prodigy", "optimizers"),
    "lion": Choice("lion_pytorch:Lion", "optimizers"),
    "schedule_free_adamw": Choice("schedulefree:AdamWScheduleFree", "optimizers"),
    "adamw8bit": Choice("bitsandbytes.optim:AdamW8bit", "bitsandbytes"),
    "paged_adamw8bit": Choice("bitsandbytes.optim:PagedAdamW8bit", "bitsandbytes"),
    "lion8bit": Choice("bitsandbytes.optim:Lion8bit", "bitsandbytes"),
}
OF_THE_RECIPE = {
    "lr": "train.learning_rate",
    "betas": "train.betas",
    "weight_decay": "train.weight_decay",
    "fused": "nothing, it is on where the device has it",
}
SMALLEST_PRODIGY_RATE = 0.1  # below, the rate that it finds comes to nothing; sd-scripts warns at the same number


def lr_factor(section: TrainSection, step: int, total_steps: int) -> float:
    """The learning rate's factor at a step (counted from 0): linear warm-up, then the scheduler's curve.

    With p the progress after warm-up: linear is 1 - p, polynomial (1 - p)^power, cosine (1 + cos(pi p)) / 2,
    cosine_with_restarts max(0, (1 + cos(pi ((cycles p) mod 1))) / 2), as in kohya (whose polynomial ends at 1e-7).
    """
    warmup = section.lr_warmup_steps
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if section.lr_scheduler == "constant":
        return 1.0
    if section.lr_scheduler in ("linear", "polynomial"):
        power = section.lr_power if section.lr_scheduler == "polynomial" else 1.0
        return float(max(0.0, 1 - progress) ** power)
    cycles = section.lr_scheduler_cycles if section.lr_scheduler == "cosine_with_restarts" else 1
    if progress >= 1:
        return 0.0
    return max(0.0, 0.5 * (1 + math.cos(math.pi * ((cycles * progress) % 1.0))))


def check(section: TrainSection) -> None:
    """Raise a RecipeError for an optimizer that is unknown, not installed or not to be had with these settings."""
    if section.optimizer == "adamw" and not section.optimizer_options:
        return  # without a library
    _class_and_arguments(section)
    if OPTIMIZERS.get(section.optimizer, Choice("")).extra == "bitsandbytes":
        import torch

        if not torch.cuda.is_available():
            raise _needs_cuda(section, "this machine has none that torch can use")


def build_optimizer(section: TrainSection, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The section's optimizer with one group per component; each group remembers its learning rate as `base_lr`."""
    groups = []
    components = dict.fromkeys(name.split(".")[0] for name in parameters)
    for component in sorted(components, key=lambda name: name.startswith("text_encoder")):  # the denoiser first
        of_text = component.startswith("text_encoder")
        rate = section.text_encoder_learning_rate if of_text else section.learning_rate
        members = [p for name, p in parameters.items() if name.startswith(f"{component}.")]
        if members and rate is not None:
            groups.append({"params": members, "lr": rate, "base_lr": rate, "component": component})
    made, arguments = _class_and_arguments(section)
    device = next(iter(parameters.values())).device.type
    if OPTIMIZERS.get(section.optimizer, Choice("")).extra == "bitsandbytes" and device != "cuda":
        raise _needs_cuda(section, f"this training is on {device}")
    if section.optimizer == "adamw":
        arguments = {"fused": device in ("cpu", "cuda"), **arguments}
    try:
        with redirect_stdout(io.StringIO()):  # Prodigy prints
            optimizer: torch.optim.Optimizer = made(groups, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise RecipeError(f"train.optimizer = {section.optimizer!r} refuses its options: {error}") from error
    _train(optimizer)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Scale every group's learning rate; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    first: float = optimizer.param_groups[0]["lr"]
    return first


@contextmanager
def result(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The weights are meanwhile those to be used; afterwards those to train on, bit for bit.

    They differ for schedule-free optimizers, which train on a point beside the average that is their result.
    """
    switch = getattr(optimizer, "eval", None)
    if not callable(switch):
        yield
        return
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in weights]
    switch()
    try:
        yield
    finally:
        _train(optimizer)  # computes the weights back, to rounding
        for p, before in zip(weights, kept, strict=True):
            p.data.copy_(before)


def _train(optimizer: torch.optim.Optimizer) -> None:
    switch = getattr(optimizer, "train", None)
    if callable(switch):
        switch()


def _class_and_arguments(section: TrainSection) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The optimizer's class and what it is called with beside the groups; refuses what it would not read."""
    name = section.optimizer
    made, own = _class(name), dict(OPTIMIZERS[name].arguments) if name in OPTIMIZERS else {}
    given = inspect.signature(made).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in given.values())
    for option in section.optimizer_options:
        if option in OF_THE_RECIPE:
            raise RecipeError(f"train.optimizer_options.{option}: give {OF_THE_RECIPE[option]} instead")
        if option not in given and not anything:
            known = ", ".join(n for n in list(given)[1:] if n not in OF_THE_RECIPE)
            raise RecipeError(f"train.optimizer_options.{option}: {name} has no such option (known: {known})")
    for option, value, without in (
        ("weight_decay", section.weight_decay, "set it to 0"),
        ("betas", section.betas, "leave it out"),
    ):
        if option in given or anything:
            own |= {option: value} if value is not None else {}
        elif value:
            raise RecipeError(f"train.{option} = {value} does nothing with the optimizer {name}: {without}")
    _check_prodigy(section)
    if name == "schedule_free_adamw":
        if section.lr_scheduler != "constant":
            raise RecipeError(
                f'train.lr_scheduler = "{section.lr_scheduler}": schedule_free_adamw averages in the place of a schedule; '
                'set "constant" (with lr_warmup_steps, if you like)'
            )
        if section.ema:
            raise RecipeError(f"train.ema = {section.ema}: schedule_free_adamw's result is an average already; set 0")
    return made, own | section.optimizer_options


def _class(name: str) -> Callable[..., Any]:
    """The class behind a name of the table, or behind `module:Class`."""
    if name not in OPTIMIZERS and ":" not in name:
        raise parts.unknown("train.optimizer", name, [*OPTIMIZERS, "module:Class"])
    place, extra = (OPTIMIZERS[name].place, OPTIMIZERS[name].extra) if name in OPTIMIZERS else (name, "")
    module = place.partition(":")[0]
    if extra and importlib.util.find_spec(module.partition(".")[0]) is None:
        raise RecipeError(
            f"train.optimizer = {name!r} needs the package {module.partition('.')[0]}, which is not installed: "
            f"pip install 'captune[{extra}]'"
        )
    try:
        found: Callable[..., Any] = parts.load("train.optimizer", {name: place}, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"train.optimizer = {name!r} cannot be loaded: {error}") from error
    return found


def _check_prodigy(section: TrainSection) -> None:
    if section.optimizer != "prodigy":
        return
    text = section.text_encoder_learning_rate
    if section.learning_rate < SMALLEST_PRODIGY_RATE:
        raise RecipeError(
            f"train.learning_rate = {section.learning_rate:g}: prodigy finds the rate itself and multiplies it by this; "
            "set 1.0"
        )
    if text is not None and text != section.learning_rate:
        raise RecipeError(
            f"train.text_encoder_learning_rate = {text:g}: prodigy has one rate for all; "
            f"set {section.learning_rate:g}, as train.learning_rate"
        )


def _needs_cuda(section: TrainSection, why: str) -> RecipeError:
    return RecipeError(f"train.optimizer = {section.optimizer!r} needs a CUDA GPU, and {why}; take adamw or lion")
