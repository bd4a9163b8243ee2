"""Stage: prepared pictures -> one arm's captions, by its captioner, with the trigger word put in."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import captune
from captune import captioners, captions, runs
from captune.engines import Engine
from captune.progress import Progress
from captune.recipe import ArmSection, DatasetSection
from captune.runs import StageFolder
from captune.types import Caption, Example

PAUSE_SECONDS = 10.0  # how often the time spent so far is noted


def caption_examples(
    arm: ArmSection,
    dataset: DatasetSection,
    examples: Sequence[Example],
    folder: StageFolder,
    progress: Progress,
    engine: Engine,
    device: str = "auto",
) -> list[Caption]:
    """Caption the examples: captions.jsonl, and captions/<id>.txt as other trainers read them.

    A killed run continues after its last whole batch, so every picture is captioned in the batch it always is in.
    """
    captioners.check(arm.captioner)
    captioner = captioners.load(arm.captioner, device)
    sources = captioner.sources(examples)
    inputs = _inputs(arm, dataset, examples, captioner.settings, sources)
    records, texts = folder.path / "captions.jsonl", folder.path / "captions"
    for warning in sources.warnings:
        progress.say(f"arm {arm.name}: {warning}")
    if folder.done(inputs):
        found = runs.read_records(records, Caption)
        _tell_changed(arm, captions.changed(texts, found), progress)
        return found
    folder.begin(inputs, keep=True)
    said = _say_all(captioner, arm, examples, folder, inputs, progress, engine)
    made = _with_trigger(arm, dataset, examples, said)
    facts = _facts(arm, dataset, examples, said, made)
    for line in facts["warnings"]:
        progress.say(f"arm {arm.name}: {line}")
    facts["warnings"] = [*sources.warnings, *facts["warnings"]]
    captions.write(texts, made)
    runs.write_records(records, made)
    folder.finish(inputs, [records], captioner={"name": arm.captioner.name, **captioner.settings}, **facts)
    _partial(folder).unlink(missing_ok=True)
    return made


def _inputs(
    arm: ArmSection,
    dataset: DatasetSection,
    examples: Sequence[Example],
    settings: dict[str, object],
    sources: captioners.Sources,
) -> dict[str, Any]:
    """All that the captions depend on: settings, the pictures' hashes and the caption files' hashes."""
    return {
        "captune": captune.__version__,
        "captioner": arm.captioner.model_dump(mode="json"),
        "settings": settings,
        "sources": dict(sources.hashes),
        "trigger_word": dataset.trigger_word,
        "class_word": dataset.class_word,
        "examples": [[e.id, e.sha256] for e in examples],
    }


def _partial(folder: StageFolder) -> Path:
    return folder.path / "said.jsonl"


def _say_all(
    captioner: captioners.Captioner,
    arm: ArmSection,
    examples: Sequence[Example],
    folder: StageFolder,
    inputs: dict[str, Any],
    progress: Progress,
    engine: Engine,
) -> list[str]:
    """What the captioner says of every example; each batch is on disk as soon as it is there."""
    batch_size = arm.captioner.batch_size
    said = _said_before(_partial(folder), examples, batch_size)
    runs.write_records(_partial(folder), [{"id": e.id, "text": t} for e, t in zip(examples, said, strict=False)])
    noted = time.monotonic()
    with (
        progress.track(f"caption {arm.name}", len(examples)) as bar,
        open(_partial(folder), "a", encoding="utf-8") as partial,
    ):
        bar.move_to(len(said))
        for texts in engine.map_batches(captioner.caption, examples[len(said) :], batch_size):
            batch = examples[len(said) : len(said) + len(texts)]
            rows = [{"id": e.id, "text": t} for e, t in zip(batch, texts, strict=True)]
            partial.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            partial.flush()
            said += texts
            bar.advance(len(texts), texts[-1])
            if time.monotonic() - noted > PAUSE_SECONDS:
                folder.pause(inputs)
                noted = time.monotonic()
    return said


def _said_before(path: Path, examples: Sequence[Example], batch_size: int) -> list[str]:
    """What a killed run left, in whole batches; its last line may be torn."""
    said: list[str] = []
    if not path.is_file():
        return said
    for line, example in zip(path.read_bytes().split(b"\n"), examples, strict=False):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if row["id"] != example.id:
            break
        said.append(row["text"])
    return said[: len(said) if len(said) == len(examples) else len(said) // batch_size * batch_size]


def _with_trigger(
    arm: ArmSection, dataset: DatasetSection, examples: Sequence[Example], said: Sequence[str]
) -> list[Caption]:
    return [
        Caption(
            example.id,
            captions.with_trigger_word(text, dataset.trigger_word, dataset.class_word, arm.captioner.trigger),
            arm.captioner.name,
        )
        for example, text in zip(examples, said, strict=True)
    ]


def _facts(
    arm: ArmSection,
    dataset: DatasetSection,
    examples: Sequence[Example],
    said: Sequence[str],
    made: Sequence[Caption],
) -> dict[str, Any]:
    """Counts for the report, and what should be known before training, by name."""
    word, class_word = dataset.trigger_word, dataset.class_word
    warnings = []
    empty = [e.id for e, text in zip(examples, said, strict=True) if not text.strip()]
    if empty:
        warnings.append(f"the captioner said nothing about {captions.some(empty)}")
    without = [c.example_id for c in made if word.strip() and not captions.has_word(c.text, word)]
    if without:
        warnings.append(f"{len(without)} captions lack the trigger word {word!r}: {captions.some(without)}")
    if arm.captioner.trigger == "replace_class" and word.strip():
        lacking = [
            e.id
            for e, text in zip(examples, said, strict=True)
            if not captions.has_word(text, word) and not captions.has_word(text, class_word)
        ]
        if lacking:
            warnings.append(
                f"{len(lacking)} captions do not say {class_word!r}, so {word!r} was put in front: "
                f"{captions.some(lacking)}"
            )
    return {
        "captions": len(made),
        "trigger_word_added": sum(c.text != text for c, text in zip(made, said, strict=True)),
        "warnings": warnings,
    }


def _tell_changed(arm: ArmSection, files: Sequence[Path], progress: Progress) -> None:
    """Say which text files were edited by hand: they are copies, and editing them changes no training."""
    if files:
        names = captions.some([path.name for path in files])
        progress.say(
            f"arm {arm.name}: edited by hand and not read: {names} in {files[0].parent}; to train on your own words, "
            f'copy the folder and give it to an arm with captioner = {{ name = "sidecar", folder = "..." }}'
        )
