"""oracle_prompt: whether an ordinary picture still shows all that its prompt asks for (mini world only).

Definition: 1 if the oracle sees every thing that the prompt names, with its shape and colour (each a different thing of
the picture), and the background if the prompt names one; else 0. Other things in the picture do not matter. None if the
prompt names no shape of the mini world. It judges ordinary prompts: what the training made the base forget.
Range: 0 or 1; its mean is a share of pictures. Higher is better.
Source: the mini world's own oracle (captune.mini.oracle) and its caption grammar.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from captune.metrics import Context, Item, _oracle
from captune.mini.oracle import Reading


def shows(reading: Reading, things: Sequence[_oracle.Asked], background: str | None) -> bool:
    """Whether the picture shows the things asked for, each as a thing of its own, before the background asked for."""
    if background is not None and reading.background != background:
        return False
    return any(
        all(a.shape == s.shape and a.color in (None, s.color) for a, s in zip(things, seen, strict=True))
        for seen in permutations(reading.things, len(things))
    )


class OraclePrompt:
    """1 where shape, colour and background are all as asked, else 0."""

    name = "oracle_prompt"
    title = "Ordinary prompts as asked"
    meaning = (
        "Share of the ordinary pictures in which shape, colour and background are all as the prompt says, seen by the "
        "oracle; higher is better, and a fall below the base is what the training made it forget."
    )
    higher_is_better = True
    judges = "ordinary"
    ceiling = False
    encoder = _oracle.ENCODER

    def __init__(self, context: Context) -> None:
        self.warnings: list[str] = []
        self._batch_size = context.batch_size

    def score(self, items: Sequence[Item]) -> list[float | None]:
        readings = _oracle.load().read([item.image for item in items], self._batch_size)
        values: list[float | None] = []
        for item, reading in zip(items, readings, strict=True):
            things = _oracle.asked_things(item.prompt)
            asked = shows(reading, things, _oracle.asked_background(item.prompt))
            values.append(float(asked) if things else None)
        return values
