"""oracle_subject: whether the subject is in a picture that asks for it (mini world only).

Definition: 1 if the mini world's oracle sees the subject that the trigger word names anywhere in the picture, else 0.
Range: 0 or 1; its mean is the share of pictures that show the subject. Higher is better. The ceiling is the oracle's
reading of the training pictures (the arm named "real").
Source: the mini world's own oracle (captune.mini.oracle), trained on renders whose truth is known.
"""

from __future__ import annotations

from collections.abc import Sequence

from captune.metrics import Context, Item, _oracle, mini_subject


class OracleSubject:
    """1 where the oracle sees the subject, else 0."""

    name = "oracle_subject"
    title = "Subject drawn"
    meaning = "Share of the pictures asking for the subject in which the oracle sees it; higher is better."
    higher_is_better = True
    judges = "subject"
    ceiling = True
    encoder = _oracle.ENCODER

    def __init__(self, context: Context) -> None:
        self.warnings: list[str] = []
        self._subject = mini_subject(context.trigger_word, self.name)
        self._batch_size = context.batch_size

    def score(self, items: Sequence[Item]) -> list[float | None]:
        readings = _oracle.load().read([item.image for item in items], self._batch_size)
        return [float(any(thing.shape == self._subject for thing in reading.things)) for reading in readings]
