"""Captions of arms that are made of other arms' captions: shuffled, cut to another's lengths, the trigger word alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

from captune import captions, runs
from captune.errors import DataError
from captune.recipe import ArmSection, DatasetSection
from captune.runs import StageFolder
from captune.tokens import Tokens
from captune.types import Caption, Example


def derive_captions(
    arm: ArmSection,
    dataset: DatasetSection,
    examples: Sequence[Example],
    said: Mapping[str, Sequence[Caption]],
    load_tokens: Callable[[], Tokens],
    base: str,
    folder: StageFolder,
    *,
    wrong: Sequence[Caption] = (),
) -> list[Caption]:
    """The captions of an arm that is made of others: shuffled, cut to another's lengths, or the trigger word alone.

    `said` holds the captions of the arms it is made of, `base` is the base model's identity, whose tokens are counted.
    Shuffled captions are the examples' own, dealt to each other, or are dealt from `wrong` if that is given.
    """
    sources = {name: [c.text for c in said[name]] for name in arm.derived_from}
    inputs = {
        "source": arm.source,
        "captions": sources,
        "examples": [e.id for e in examples],
        "words": [dataset.trigger_word, dataset.class_word] if arm.trigger_only else [],
        "base": base if arm.length_matched else "",
        "wrong": [c.text for c in wrong] if arm.shuffled else [],
    }
    records = folder.path / "captions.jsonl"
    if folder.done(inputs):
        return runs.read_records(records, Caption)
    folder.begin(inputs)
    if arm.trigger_only:
        texts = [f"{dataset.trigger_word} {dataset.class_word}".strip()] * len(examples)
    elif arm.length_matched is not None:
        tokens = load_tokens()
        long, short = (sources[name] for name in arm.derived_from)
        texts = [tokens.cut(text, tokens.measure(other).count) for text, other in zip(long, short, strict=True)]
    elif wrong:
        texts = [wrong[_mark(example) % len(wrong)].text for example in examples]
    else:
        texts = _dealt(arm.name, examples, sources[arm.derived_from[0]])
    made = [Caption(e.id, text, arm.source) for e, text in zip(examples, texts, strict=True)]
    captions.write(folder.path / "captions", made)
    runs.write_records(records, made)
    word = dataset.trigger_word.strip()
    without = [c.example_id for c in made if word and not captions.has_word(c.text, word)]
    warnings = [f"{len(without)} captions lack the trigger word {word!r}: {captions.some(without)}"] if without else []
    folder.finish(inputs, [records], captioner={"name": arm.source}, captions=len(made), warnings=warnings)
    return made


def _dealt(arm: str, examples: Sequence[Example], texts: Sequence[str]) -> list[str]:
    """Every picture gets another's caption: in a random circle, keyed by the picture, each takes its neighbour's."""
    if len(set(texts)) < 2:
        raise DataError(f"arm {arm}: captions that are all alike cannot be dealt to the wrong pictures")
    circle = sorted(range(len(texts)), key=lambda i: _mark(examples[i]))
    dealt = [""] * len(texts)
    for place, index in enumerate(circle):
        dealt[index] = texts[circle[(place + 1) % len(circle)]]
    return dealt


def _mark(example: Example) -> int:
    """A number that is the picture's own and says nothing about it."""
    return int.from_bytes(hashlib.sha256(example.id.encode()).digest()[:8], "big")
