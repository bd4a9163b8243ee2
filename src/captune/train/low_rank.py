"""LoRA's linear layers computed in one autograd step: fewer and larger operations than peft's, with the same result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from captune import adapters


@contextmanager
def joined(components: Mapping[str, nn.Module]) -> Iterator[None]:
    """Meanwhile the injected plain LoRA layers over linear ones are computed by `LowRank`; others stay as peft has them."""
    layers = [layer for module in components.values() for layer in adapters.lora_layers(module).values()]
    chosen = [layer for layer in layers if _is_plain(layer)]
    for layer in chosen:
        layer.forward = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in chosen:
            del layer.forward


def _is_plain(layer: Any) -> bool:
    """Whether the layer is y = W x + b + scale B A x and no more: no DoRA, no dropout, no bias of its own."""
    if type(layer) is not Linear or type(layer.get_base_layer()) is not nn.Linear:
        return False
    name = adapters.ADAPTER
    return name not in layer.lora_variant and isinstance(layer.lora_dropout[name], nn.Identity)


def _forward(layer: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    base, name = layer.get_base_layer(), adapters.ADAPTER
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    y: Tensor = LowRank.apply(x, base.weight, base.bias, a, b, layer.scaling[name])  # type: ignore[no-untyped-call]
    return y


class LowRank(torch.autograd.Function):
    """y = x W^T + bias + scale (x A^T) B^T (Hu et al. 2021, arXiv:2106.09685, equation 3), W and bias frozen.

    x (..., inputs), W (outputs, inputs), A (rank, inputs), B (outputs, rank). Under autocast all is computed in its number
    format, as peft's layers are; the gradients of A and B have theirs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        ctx.formats = x.dtype, a.dtype, b.dtype
        with torch.autocast(device, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(dtype)
            weight, a, b = weight.to(dtype), a.to(dtype), b.to(dtype)
            narrow = flat @ a.t()
            y = flat @ weight.t() if bias is None else torch.addmm(bias.to(dtype), flat, weight.t())
            y.addmm_(narrow, b.t(), alpha=scale)
        ctx.save_for_backward(flat, narrow, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, narrow, weight, a, b = ctx.saved_tensors
        of_x, of_a, of_b = ctx.formats
        grad = grad.reshape(-1, grad.shape[-1])
        grad_narrow = (grad @ b).mul_(ctx.scale)
        grad_b = (grad.t() @ narrow).mul_(ctx.scale).to(of_b)
        grad_a = (grad_narrow.t() @ flat).to(of_a)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_narrow, a).view(ctx.shape).to(of_x)
        return grad_x, None, None, grad_a, grad_b, None
