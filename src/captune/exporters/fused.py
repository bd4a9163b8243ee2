"""One weight made of several modules' rows, as FLUX's q, k, v: their LoRAs put together, and taken apart again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from captune.errors import ModelError
from captune.exporters import LoraModule
from captune.exporters.names import FLUX_SWAPPED

FLUX_MLP_RATIO = 4  # rows of a single block's mlp, in widths of the model


def fuse(modules: Mapping[str, LoraModule], members: Sequence[str], name: str) -> LoraModule:
    """One LoRA for the weight that has the members' rows in this order; rows of members without a LoRA stay unchanged.

    Members that share one `down` keep their rank. Others are stacked: the downs above each other, the ups along a
    diagonal, and alpha as many times larger as the rank is, because the scale is alpha / rank.
    """
    present = [modules[member] for member in members if member in modules]
    rows = {member: _rows(member, modules, present) for member in members}
    shared = all(m.down.shape == present[0].down.shape and torch.equal(m.down, present[0].down) for m in present)
    down = present[0].down if shared else torch.cat([m.down for m in present])
    rank = down.shape[0]
    alpha = present[0].alpha * rank / present[0].rank
    up = torch.zeros(sum(rows.values()), rank)
    row = column = 0
    for member in members:
        if member in modules:
            module = modules[member]
            factor = module.alpha * rank / (module.rank * alpha)
            up[row : row + rows[member], column : column + module.rank] = module.up * factor
            column += 0 if shared else module.rank
        row += rows[member]
    return LoraModule(present[0].component, name, down, up, alpha)


def _rows(member: str, modules: Mapping[str, LoraModule], present: Sequence[LoraModule]) -> int:
    if member in modules:
        return int(modules[member].up.shape[0])
    width = int(present[0].down.shape[1])
    return width * FLUX_MLP_RATIO if member.endswith("proj_mlp") else width


def split(whole: LoraModule, members: Sequence[str]) -> list[LoraModule]:
    """The LoRAs of the members of one weight, their changes exactly its rows; members without a change are left out.

    Members that use different columns of `up` get their own rank back, others share the whole `down`.
    """
    width = int(whole.down.shape[1])
    rows = [width] * len(members)
    if members[-1].endswith("proj_mlp"):
        rows[-1] = whole.up.shape[0] - sum(rows[:-1])
    if sum(rows) != whole.up.shape[0] or min(rows) <= 0:
        raise ModelError(f"{whole.name}: its {whole.up.shape[0]} rows are not those of {', '.join(members)}")
    ups = dict(zip(members, torch.split(whole.up, rows), strict=True))
    changed = {member: up for member, up in ups.items() if up.any()} or ups
    columns = {member: up.any(dim=0) for member, up in changed.items()}
    used = torch.stack(list(columns.values())).sum(dim=0)
    ranks = {int(own.sum()) for own in columns.values()}
    apart = bool((used == 1).all()) and len(ranks) == 1 and len(columns) > 1
    parts = []
    for member, up in changed.items():
        own = columns[member] if apart else torch.ones(whole.rank, dtype=torch.bool)
        alpha = whole.alpha * int(own.sum()) / whole.rank
        parts.append(LoraModule(whole.component, member, whole.down[own].contiguous(), up[:, own].contiguous(), alpha))
    return parts


def with_halves_swapped(module: LoraModule) -> LoraModule:
    """FLUX's last modulation, whose shift and scale diffusers and the original hold in opposite order."""
    assert module.name == FLUX_SWAPPED or module.name.endswith("adaLN_modulation.1")
    first, second = module.up.chunk(2)
    return LoraModule(module.component, module.name, module.down, torch.cat([second, first]), module.alpha)
