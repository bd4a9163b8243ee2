"""The adapter's dropout with masks of its own for every visit, so that neither batch layout nor processes change them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from captune import adapters, randomness

Who = tuple[int, str, int]  # training seed, example id, number of the visit


class Visits:
    """Whose rows the modules are about to see, in order."""

    def __init__(self) -> None:
        self.rows: Sequence[Who] = ()


class KeyedDropout(nn.Module):
    """Dropout by a mask that is keyed by (seed, example id, visit, module): drawn again, it is the same again."""

    def __init__(self, share: float, name: str, visits: Visits) -> None:
        super().__init__()
        self.share, self.name, self.visits = share, name, visits

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, ...) with a share of its values zeroed and the others scaled up; a visit may have several rows."""
        if not self.training:
            return x
        each = max(1, len(x) // len(self.visits.rows))
        masks = []
        for row in range(len(x)):
            key = randomness.key(*self.visits.rows[row // each], "dropout", self.name, row % each)
            draw = torch.Generator(x.device).manual_seed(key)
            masks.append(torch.rand(x.shape[1:], generator=draw, device=x.device) >= self.share)
        return x * torch.stack(masks) / (1 - self.share)


def key_dropout(components: Mapping[str, nn.Module], share: float) -> Visits:
    """Put keyed dropout in the place of the injected layers' own; the visits that it reads are set before each forward."""
    visits = Visits()
    if not share:
        return visits  # a module that does nothing would still cost its call
    for component, module in components.items():
        for name, layer in adapters.lora_layers(module).items():
            held = getattr(layer, "lora_dropout", {})
            if adapters.ADAPTER in held:
                keyed = KeyedDropout(share, f"{component}.{name}", visits)
                held[adapters.ADAPTER] = keyed.train(layer.training)
    return visits
