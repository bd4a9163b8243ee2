"""LoRA's linear layers in one autograd step: the same numbers as peft's own, in every number format."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from captune import adapters
from captune.train import low_rank


class Model(nn.Module):
    """Two linear layers, with and without bias, after one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.wide, self.narrow = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 3, bias=False)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.tanh(self.wide(torch.tanh(self.before(x)))))


def injected(kind: str = "lora", dropout: float = 0.0) -> dict[str, nn.Module]:
    model = {"unet": Model()}
    adapters.inject(model, adapters.LoraSpec(2, 3.0, {"unet": "wide|narrow"}, dropout, kind), seed=0)
    for name, weight in adapters.parameters(model).items():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3)
    return model


def gradients(model: dict[str, nn.Module], dtype: torch.dtype) -> dict[str, Tensor]:
    """The output, and the gradients of all that is trained and of the input."""
    x = torch.linspace(-1, 1, 2 * 4 * 6).reshape(2, 4, 6).requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = model["unet"](x)
    y.float().square().sum().backward()
    found = {name: p.grad for name, p in adapters.parameters(model).items()}
    for p in adapters.parameters(model).values():
        p.grad = None
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad, **found}


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str)
def test_the_numbers_are_those_of_peft(dtype: torch.dtype, near: float) -> None:
    model = injected()
    usual = gradients(model, dtype)
    with low_rank.joined(model):
        joined = gradients(model, dtype)
    again = gradients(model, dtype)
    assert joined.keys() == usual.keys()
    for name, expected in usual.items():
        assert joined[name].dtype == expected.dtype, name
        assert torch.allclose(joined[name].float(), expected.float(), rtol=near, atol=near), name
        assert torch.equal(again[name], expected)  # put back as it was
    assert all(usual[name].abs().max() > 0 for name in usual)


@pytest.mark.parametrize(("kind", "dropout"), [("dora", 0.0), ("lora", 0.1)])
def test_other_layers_stay_as_they_are(kind: str, dropout: float) -> None:
    model = injected(kind, dropout)
    layers = [layer for layer in model["unet"].modules() if isinstance(layer, Linear)]
    with low_rank.joined(model):
        assert len(layers) == 2 and all("forward" not in vars(layer) for layer in layers)
