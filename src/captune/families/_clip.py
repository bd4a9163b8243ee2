"""CLIP's text encoders, as the families that have them read their layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captune.families import LoraTargets

TARGETS = LoraTargets(
    {"attention": r".*\.self_attn\.(q|k|v|out)_proj", "all": r".*\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"}
)


def tokenize(tokenizer: Any, prompts: Sequence[str], chunks: int = 1) -> Tensor:
    """Token ids (batch * chunks, length): every chunk with its own start and end, padded; what is beyond is cut off."""
    length = int(tokenizer.model_max_length)
    room = length - 2
    rows = []
    for words in tokenizer(list(prompts), add_special_tokens=False, verbose=False).input_ids:
        for begin in range(0, room * chunks, room):
            row = [tokenizer.bos_token_id, *words[begin : min(begin + room, len(words))], tokenizer.eos_token_id]
            rows.append(row + [tokenizer.pad_token_id] * (length - len(row)))
    return torch.tensor(rows)


def join_chunks(hidden: Tensor, chunks: int) -> Tensor:
    """Hidden states (batch * chunks, length, width) as one text's: (batch, 2 + chunks * (length - 2), width).

    The first chunk's start, all that stands between starts and ends, and the last chunk's end, as in kohya's scripts.
    """
    if chunks == 1:
        return hidden
    split = hidden.reshape(-1, chunks, *hidden.shape[1:])
    return torch.cat([split[:, 0, :1], split[:, :, 1:-1].flatten(1, 2), split[:, -1, -1:]], dim=1)
