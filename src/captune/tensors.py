"""Files of tensors with repeatable bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors.torch
from torch import Tensor


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with keys in sorted order: equal tensors and metadata give equal bytes.

    The library itself writes the metadata in an order that changes from process to process.
    """
    plain = safetensors.torch.save(dict(tensors))
    length = int.from_bytes(plain[:8], "little")
    entries = json.loads(plain[8 : 8 + length])
    header = json.dumps(
        {"__metadata__": dict(sorted(metadata.items())), **entries}, ensure_ascii=False, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % 8)  # the format wants the tensors to begin at a multiple of 8 bytes
    return len(header).to_bytes(8, "little") + header + plain[8 + length :]
