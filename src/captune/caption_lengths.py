"""How long an arm's captions are in the base's tokens, and which are cut."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence

from captune import runs
from captune.progress import Progress
from captune.runs import StageFolder
from captune.tokens import Length, Tokens
from captune.types import Caption


def measure_captions(
    arm: str,
    said: Sequence[Caption],
    load_tokens: Callable[[], Tokens],
    base: str,
    folder: StageFolder,
    progress: Progress,
) -> dict[str, Length]:
    """Every caption's length in the base's tokens, by example id; each one that will be cut is told by name."""
    inputs = {"base": base, "captions": [[c.example_id, c.text] for c in said]}
    path = folder.path / "tokens.json"
    if folder.done(inputs):
        found = {row.pop("id"): Length(**row) for row in json.loads(path.read_text(encoding="utf-8"))}
    else:
        folder.begin(inputs)
        tokens = load_tokens()
        found = {c.example_id: tokens.measure(c.text) for c in said}
        runs.write_json(path, [{"id": key, **runs.plain(length)} for key, length in found.items()])
        counts = [length.count for length in found.values()]
        folder.finish(
            inputs,
            [path],
            mean=round(statistics.fmean(counts), 2),
            longest=max(counts),
            limit=next(iter(found.values())).limit,
            cut=sum(length.over > 0 for length in found.values()),
            lost=sum(length.over for length in found.values()),
        )
    for line in told_cuts(arm, found):
        progress.say(line)
    return found


def told_cuts(arm: str, lengths: Mapping[str, Length]) -> list[str]:
    """A sentence for every caption that is longer than the base reads."""
    return [
        f"arm {arm}: the caption of {name} is cut: {length.count} tokens, {length.limit} are read, {length.over} are lost "
        f"({_shortened(length.lost)!r})"
        for name, length in lengths.items()
        if length.over
    ]


def _shortened(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"
