"""oracle_background: whether a picture has the background that its prompt names (mini world only).

Definition: 1 if the background that the oracle sees is the one named in the prompt, else 0; None if the prompt names no
background of the mini world, or several.
Range: 0 or 1; its mean is a share of pictures. Higher is better.
Source: the mini world's own oracle (captune.mini.oracle) and its caption grammar.
"""

from __future__ import annotations

from collections.abc import Sequence

from captune.metrics import Context, Item, _oracle


class OracleBackground:
    """1 where the background is the one asked for, 0 where not, None where none was asked for."""

    name = "oracle_background"
    title = "Background as asked"
    meaning = (
        "Share of the pictures whose background is the one the prompt names, seen by the oracle; higher is better."
    )
    higher_is_better = True
    judges = "all"
    ceiling = False
    encoder = _oracle.ENCODER

    def __init__(self, context: Context) -> None:
        self.warnings: list[str] = []
        self._batch_size = context.batch_size

    def score(self, items: Sequence[Item]) -> list[float | None]:
        readings = _oracle.load().read([item.image for item in items], self._batch_size)
        asked = [_oracle.asked_background(item.prompt) for item in items]
        return [
            None if background is None else float(background == reading.background)
            for background, reading in zip(asked, readings, strict=True)
        ]
