"""Stage: prepared pictures -> one arm's captions, by its captioner, after its text rules, with the trigger word put in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import captune
from captune import captioners, captions, provenance, rules, runs
from captune.captioners import Failed
from captune.engines import Engine
from captune.errors import DataError
from captune.progress import Progress
from captune.provenance import CaptionRecord
from captune.recipe import ArmSection, CaptionerSection, DatasetSection
from captune.runs import StageFolder
from captune.tokens import Tokens
from captune.types import Caption, Example

PAUSE_SECONDS = 10.0  # how often the time spent so far is noted


@dataclass(frozen=True)
class Said:
    """What a captioner said of a picture, and the picture's share of the time that its batch took."""

    text: str
    seconds: float | None = None


def caption_examples(
    arm: ArmSection,
    dataset: DatasetSection,
    examples: Sequence[Example],
    folder: StageFolder,
    progress: Progress,
    engine: Engine,
    device: str = "auto",
    load_tokens: Callable[[], Tokens] | None = None,
    base: str = "",
) -> list[Caption]:
    """Caption the examples: captions.jsonl, and captions/<id>.txt as other trainers read them.

    A killed run continues after its last whole batch, so every picture is captioned in the batch it always is in. Where only
    rules or the trigger word changed, the captioner is not asked again. `base` is the identity of the base model whose tokens
    `load_tokens` counts.
    """
    section = _captioner_of(arm)
    captioners.check(section)
    words = captioners.Words(dataset.trigger_word, dataset.class_word)
    captioner = captioners.load(section, device, words, _answers(folder))
    sources = captioner.sources(examples)
    inputs = _inputs(arm, dataset, examples, captioner.settings, sources)
    if arm.text is not None and arm.text.max_tokens is not None:
        inputs["base"] = base
    records, texts = folder.path / provenance.LEDGER, folder.path / "captions"
    for warning in sources.warnings:
        progress.say(f"arm {arm.name}: {warning}")
    if folder.done(inputs):
        _clear(folder)
        found = [record.caption for record in provenance.read(records)]
        _tell_changed(arm, captions.changed(texts, found), progress)
        return found
    former = _begin(folder, inputs, examples)
    spoken = _say_all(captioner, arm, examples, folder, inputs, progress, engine)
    if isinstance(captioner, captioners.Served):
        progress.say(f"arm {arm.name}: {captioners.told_account(captioner.account())}")
    have, said = _captioned(examples, spoken)
    made, ruled = _ruled(arm, dataset, have, said, load_tokens) if have else ([], {})
    captions.write(texts, made)
    tokens = load_tokens() if load_tokens is not None else None
    origin = provenance.origin(captioner.settings)
    rows = [_record(*one, origin, tokens) for one in zip(made, have, said, strict=True)]
    runs.write_records(records, [row.after(former.get(row.example_id)) for row in rows])
    _check_whole(arm, examples, spoken, folder)
    facts = _facts(arm, dataset, examples, said, made)
    for line in [*facts["warnings"], *(rules.told(arm.text, ruled) if arm.text is not None else [])]:
        progress.say(f"arm {arm.name}: {line}")
    facts["warnings"] = [*sources.warnings, *facts["warnings"]]
    if isinstance(captioner, captioners.Served):
        facts["account"] = captioner.account()
    if ruled:
        facts["text"] = ruled
    facts["captioning"] = _captioning(inputs)
    folder.finish(inputs, [records], captioner={"name": section.name, **captioner.settings}, **facts)
    _clear(folder)
    return made


def _record(
    caption: Caption, example: Example, told: Said, origin: Mapping[str, Any], tokens: Tokens | None
) -> CaptionRecord:
    return CaptionRecord(
        caption.example_id,
        caption.text,
        caption.captioner,
        image=example.source.name,
        image_sha256=example.sha256,
        said=told.text,
        seconds=told.seconds,
        tokens=tokens.measure(caption.text).count if tokens is not None else None,
        edited_by=provenance.RULES if caption.text != told.text else "",
        **origin,
    )


def _begin(folder: StageFolder, inputs: Mapping[str, Any], examples: Sequence[Example]) -> dict[str, CaptionRecord]:
    """Make the folder ready; the records that were there before, by example, also where this run was killed and continues.

    What the captioner said then is said again where nothing that it depends on has changed.
    """
    whole = folder.manifest()
    found = provenance.read(folder.path / provenance.LEDGER if whole else _former(folder))
    same = bool(found) and whole.get("captioning") == _captioning(inputs)
    same = same and [r.example_id for r in found] == [e.id for e in examples]
    folder.begin(inputs, keep=True)
    if found:
        runs.write_records(_former(folder), found)
        if same:
            rows = [{"id": r.example_id, "text": r.said, "seconds": r.seconds} for r in found]
            runs.write_records(_partial(folder), rows)
    return {record.example_id: record for record in found}


def _captioning(inputs: Mapping[str, Any]) -> str:
    """What the captioner's own words depend on: all but what is done to them afterwards."""
    after = ("text", "base", "trigger_word", "class_word")
    captioner = {name: value for name, value in inputs["captioner"].items() if name != "trigger"}
    return runs.fingerprint({**{k: v for k, v in inputs.items() if k not in after}, "captioner": captioner})


def _clear(folder: StageFolder) -> None:
    """Remove what only an unfinished stage needs; also where it was killed right after its manifest was written."""
    for path in (_partial(folder), _former(folder), folder.path / "started.json"):
        path.unlink(missing_ok=True)


def _former(folder: StageFolder) -> Path:
    return folder.path / "former.jsonl"


def _captioner_of(arm: ArmSection) -> CaptionerSection:
    if arm.captioner is None:
        raise ValueError(f"arm {arm.name} has no captioner: its captions are derived ({arm.source})")
    return arm.captioner


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
        "captioner": _captioner_of(arm).model_dump(mode="json"),
        "settings": settings,
        "sources": dict(sources.hashes),
        "text": arm.text.model_dump(mode="json") if arm.text is not None else None,
        "trigger_word": dataset.trigger_word,
        "class_word": dataset.class_word,
        "examples": [[e.id, e.sha256] for e in examples],
    }


def _partial(folder: StageFolder) -> Path:
    return folder.path / "said.jsonl"


def _answers(folder: StageFolder) -> Path:
    """What was paid for stays when the stage is made anew, so it lies beside the stage's folder."""
    return folder.path.with_name("answers.jsonl")


def _captioned(examples: Sequence[Example], spoken: Sequence[Said | Failed]) -> tuple[list[Example], list[Said]]:
    """The pictures that have a caption, and what was said of them."""
    found = [(example, said) for example, said in zip(examples, spoken, strict=True) if isinstance(said, Said)]
    return [example for example, _ in found], [said for _, said in found]


def _check_whole(
    arm: ArmSection, examples: Sequence[Example], spoken: Sequence[Said | Failed], folder: StageFolder
) -> None:
    """Raise a DataError that names the pictures without a caption: an arm is trained on all pictures or on none."""
    failed = [(e.id, said.reason) for e, said in zip(examples, spoken, strict=True) if isinstance(said, Failed)]
    path = folder.path / "failed.jsonl"
    if not failed:
        path.unlink(missing_ok=True)
        return
    runs.write_records(path, [{"id": name, "reason": reason} for name, reason in failed])
    have = "picture has" if len(failed) == 1 else "pictures have"
    raise DataError(
        f"arm {arm.name}: {len(failed)} of {len(examples)} {have} no caption: "
        f"{captions.some([f'{name} ({reason})' for name, reason in failed])}. All are in {path}. The captions of the "
        "others are kept: run again to caption these alone, or take these pictures out of the folder"
    )


def _say_all(
    captioner: captioners.Captioner,
    arm: ArmSection,
    examples: Sequence[Example],
    folder: StageFolder,
    inputs: dict[str, Any],
    progress: Progress,
    engine: Engine,
) -> list[Said | Failed]:
    """What the captioner says of every example; each batch is on disk as soon as it is there."""
    batch_size = captioners.at_a_time(_captioner_of(arm))
    said: list[Said | Failed] = [*_said_before(_partial(folder), examples, batch_size)]
    runs.write_records(_partial(folder), [_as_row(e, s) for e, s in zip(examples, said, strict=False)])
    noted = began = time.monotonic()
    with (
        progress.track(f"caption {arm.name}", len(examples)) as bar,
        open(_partial(folder), "a", encoding="utf-8") as partial,
    ):
        bar.move_to(len(said))
        for texts in engine.map_batches(lambda b: [*captioner.caption(b)], examples[len(said) :], batch_size):
            took, began = time.monotonic() - began, time.monotonic()
            batch = examples[len(said) : len(said) + len(texts)]
            each = round(took / len(texts), 4)
            fresh = [text if isinstance(text, Failed) else Said(text, each) for text in texts]
            rows = [_as_row(e, s) for e, s in zip(batch, fresh, strict=True)]
            partial.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            partial.flush()
            said += fresh
            bar.advance(len(texts), next((text for text in texts[::-1] if isinstance(text, str)), ""))
            if time.monotonic() - noted > PAUSE_SECONDS:
                folder.pause(inputs)
                noted = time.monotonic()
    return said


def _as_row(example: Example, said: Said | Failed) -> dict[str, Any]:
    if isinstance(said, Failed):
        return {"id": example.id, "failed": said.reason}
    return {"id": example.id, "text": said.text, "seconds": said.seconds}


def _said_before(path: Path, examples: Sequence[Example], batch_size: int) -> list[Said]:
    """What a killed run left, in whole batches before the first failure; its last line may be torn."""
    said: list[Said] = []
    if not path.is_file():
        return said
    for line, example in zip(path.read_bytes().split(b"\n"), examples, strict=False):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if row["id"] != example.id or "failed" in row:
            break
        said.append(Said(row["text"], row.get("seconds")))
    return said[: len(said) if len(said) == len(examples) else len(said) // batch_size * batch_size]


def _ruled(
    arm: ArmSection,
    dataset: DatasetSection,
    examples: Sequence[Example],
    said: Sequence[Said],
    load_tokens: Callable[[], Tokens] | None,
) -> tuple[list[Caption], dict[str, Any]]:
    """The captions after the arm's rules, with the trigger word in them, and what the rules did."""
    section = _captioner_of(arm)
    subject = rules.Words(dataset.trigger_word, dataset.class_word, section.trigger)
    texts, facts = [s.text for s in said], {}
    if arm.text is None:
        texts = [captions.with_trigger_word(t, subject.trigger_word, subject.class_word, subject.how) for t in texts]
    else:
        if load_tokens is None and arm.text.max_tokens is not None:
            raise ValueError(f"arm {arm.name}: text.max_tokens needs the base's tokenizer")
        ruled = rules.apply(arm.text, texts, subject, load_tokens or _no_tokens)
        texts, facts = ruled.texts, ruled.facts
    return [Caption(e.id, text, section.name) for e, text in zip(examples, texts, strict=True)], facts


def _no_tokens() -> Tokens:
    raise ValueError("no tokenizer was given")


def _facts(
    arm: ArmSection,
    dataset: DatasetSection,
    examples: Sequence[Example],
    told: Sequence[Said],
    made: Sequence[Caption],
) -> dict[str, Any]:
    """Counts for the report, and what should be known before training, by name."""
    word, class_word, said = dataset.trigger_word, dataset.class_word, [s.text for s in told]
    warnings = []
    empty = [e.id for e, text in zip(examples, said, strict=True) if not text.strip()]
    if empty:
        warnings.append(f"the captioner said nothing about {captions.some(empty)}")
    without = [c.example_id for c in made if word.strip() and not captions.has_word(c.text, word)]
    if without:
        warnings.append(f"{len(without)} captions lack the trigger word {word!r}: {captions.some(without)}")
    if _captioner_of(arm).trigger == "replace_class" and word.strip():
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
