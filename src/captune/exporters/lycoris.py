"""LoHa and LoKr as the plain LoRA of exactly the same change, which every tool reads, also where FLUX's weights are fused.

Its rank is larger: a LoHa's rank squared; a LoKr's rank times the smaller side of its first factor.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def as_lora(parts: Mapping[str, Tensor], kernel: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """down and up, in a LoRA's shapes, whose product is the unscaled change that the parts (named as in peft) make.

    `kernel` is a convolution's (height, width), whose change the parts hold flattened; () for a linear layer.
    """
    up, down = _hadamard(parts) if "hada_w1_a" in parts else _kronecker(parts)
    if not kernel:
        return down.contiguous(), up.contiguous()
    return down.reshape(len(down), -1, *kernel).contiguous(), up.reshape(*up.shape, 1, 1).contiguous()


def _hadamard(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(B1 A1) * (B2 A2), value by value: B has every product of columns of B1 and B2, A of rows of A1 and A2."""
    b = torch.einsum("or,os->ors", parts["hada_w1_a"], parts["hada_w2_a"])
    a = torch.einsum("ri,si->rsi", parts["hada_w1_b"], parts["hada_w2_b"])
    return b.flatten(1), a.flatten(0, 1)


def _kronecker(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """C x (B A) = (C x B)(1 x A) = (1 x B)(C x A), of which the one of lower rank is taken."""
    c = parts["lokr_w1"]
    if "lokr_w2" in parts:
        whole = parts["lokr_w2"].flatten(1)
        one = torch.eye(min(whole.shape))
        b, a = (one, whole) if whole.shape[0] <= whole.shape[1] else (whole, one)
    else:
        b, a = parts["lokr_w2_a"], parts["lokr_w2_b"].flatten(1)
    if c.shape[1] <= c.shape[0]:
        return torch.kron(c, b), torch.kron(torch.eye(c.shape[1]), a)
    return torch.kron(torch.eye(c.shape[0]), b), torch.kron(c, a)
