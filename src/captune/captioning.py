"""Captions for a folder of pictures without a run: caption files beside them, their origin and history in captions.jsonl."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from captune import captioners, captions, engines, provenance, rules, runs
from captune.captioners import Captioner, Failed
from captune.errors import DataError, ModelError, RecipeError
from captune.ledger import Ledger, of_a_person
from captune.prepare.scan import Picture, list_pictures, relative
from captune.progress import Progress
from captune.provenance import CaptionRecord
from captune.recipe import ArmSection, CaptionerSection, DatasetSection
from captune.rules import Knife
from captune.rules.absorb import FEWEST
from captune.tokens import Tokens
from captune.types import Example

Mode = Literal["fill", "replace", "append", "prepend"]


@dataclass(frozen=True)
class Outcome:
    """What became of the folder's pictures, by their ids."""

    out: Path
    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)  # by a person, since captune wrote them
    failed: dict[str, str] = field(default_factory=dict)  # with the reason
    account: dict[str, float] = field(default_factory=dict)  # of a captioner that costs money


@dataclass(frozen=True)
class _Said:
    """What a captioner said of a picture, or why it could not."""

    example: Example
    text: str = ""
    seconds: float = 0.0
    problem: str = ""


def caption_folder(
    arm: ArmSection,
    dataset: DatasetSection,
    progress: Progress,
    *,
    mode: Mode = "fill",
    out: Path | None = None,
    extension: str = ".txt",
    device: str = "auto",
    load_tokens: Callable[[], Tokens] | None = None,
) -> Outcome:
    """Write a caption file for every picture of the data set's folder, beside it or in `out`.

    `fill` leaves captions that are there; `replace` writes others in their place, `append` and `prepend` add to them; former
    texts stay in the records. A killed run continues where it was. A picture that fails is named and the others go on.
    """
    section = arm.captioner
    if section is None:
        raise ValueError("a folder is captioned by a captioner")
    captioners.check(section)
    if arm.text is not None and arm.text.max_tokens is not None and load_tokens is None:
        raise RecipeError("text.max_tokens counts the base's tokens; name it: --set base.model=...")
    root = dataset.path.expanduser().absolute()
    listed = list_pictures(dataset.path, 1)
    work = _Folder(arm, section, dataset, mode, root, out.absolute() if out else root, captions.dotted(extension))
    work.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger.open(work.out)
    examples, failed = work.examples(listed.pictures)
    words = captioners.Words(dataset.trigger_word, dataset.class_word)
    captioner = captioners.load(section, device, words, work.out / "answers.jsonl")
    work.begin(ledger, examples, captioner.settings)
    todo = [e for e in examples if work.wants(ledger, e)]
    for warning in captioner.sources(todo).warnings:
        progress.say(warning)
    tokens = load_tokens() if load_tokens is not None else None
    written = []
    with progress.track(f"caption {root.name}", len(examples)) as bar:
        bar.move_to(len(examples) - len(todo))
        for batch in engines.load().map_batches(_worker(captioner), todo, captioners.at_a_time(section)):
            good = [said for said in batch if not said.problem]
            failed |= {said.example.id: said.problem for said in batch if said.problem}
            ledger.write(work.records(ledger, good, captioner.settings, tokens))
            written += [said.example.id for said in good]
            bar.advance(len(batch), good[-1].text if good else "")
    work.absorb(ledger, tokens, progress)
    ledger.close()
    for name, reason in failed.items():
        progress.say(f"not captioned: {name}: {reason}")
    account = captioner.account() if isinstance(captioner, captioners.Served) else {}
    if account:
        progress.say(captioners.told_account(account))
    done = set(written) | set(failed)
    kept = [e.id for e in examples if e.id not in done]
    return Outcome(work.out, written, kept, list(ledger.edited), failed, account)


def undo(folder: Path) -> tuple[list[str], list[str]]:
    """Give the pictures of the folder's last run their former captions; their ids, and those that a person edited since."""
    if not (folder / provenance.LEDGER).is_file():
        raise DataError(f"{folder} has no {provenance.LEDGER}: captune wrote no captions there, so none can be undone")
    undone = Ledger.open(folder.absolute()).undo()
    return undone.restored, undone.edited


def _heard(example: Example, text: str | Failed, seconds: float) -> _Said:
    if isinstance(text, Failed):
        return _Said(example, problem=text.reason)
    return _Said(example, text, seconds, "" if text.strip() else "the captioner said nothing about it")


def _worker(captioner: Captioner) -> Callable[[Sequence[Example]], list[_Said]]:
    """Captions a batch; where that fails, its pictures one by one, so that only the one that cannot be captioned is lost."""

    def say(batch: Sequence[Example]) -> list[_Said]:
        began = time.monotonic()
        try:
            known = [_hashed(example) for example in batch]
            texts = captioner.caption(known)
        except (ModelError, RecipeError, MemoryError):
            raise  # every other picture would fail in the same way
        except Exception as error:  # pictures and servers fail in many ways, and the others are to go on
            if type(error).__name__ == "OutOfMemoryError":
                raise
            if isinstance(captioner, captioners.Served) and not isinstance(error, OSError):
                raise  # it names the pictures that fail by itself, and what it has sent is not to be sent again
            if len(batch) > 1:
                return [said for example in batch for said in say([example])]
            return [_Said(batch[0], problem=str(error).strip() or type(error).__name__)]
        seconds = round((time.monotonic() - began) / len(batch), 4)
        return [_heard(e, text, seconds) for e, text in zip(known, texts, strict=True)]

    return say


def _hashed(example: Example) -> Example:
    """The picture with its hash, by which a server's answers to it are known again."""
    return replace(example, sha256=example.sha256 or runs.sha256_of(example.source))


class _Folder:
    """What is captioned, and how."""

    def __init__(
        self,
        arm: ArmSection,
        section: CaptionerSection,
        dataset: DatasetSection,
        mode: Mode,
        root: Path,
        out: Path,
        extension: str,
    ) -> None:
        self.arm, self.section, self.dataset, self.mode = arm, section, dataset, mode
        self.root, self.out, self.extension = root, out, extension
        self.subject = rules.Words(dataset.trigger_word, dataset.class_word, section.trigger)
        self.run = 0

    def examples(self, pictures: Sequence[Picture]) -> tuple[list[Example], dict[str, str]]:
        """The pictures as captioners know them; two that would share a caption file: the second fails."""
        found, failed, owner = [], {}, dict[str, str]()
        for picture in pictures:
            file = self._file(picture)
            if file in owner:
                failed[picture.id] = f"{file} is the caption file of {owner[file]} already; rename one of the pictures"
                continue
            owner[file] = picture.path.name
            found.append(Example(picture.id, picture.path, picture.path, 0, 0, 0, 0, picture.repeats, ""))
        return found, failed

    def _file(self, picture: Picture) -> str:
        """The caption file, relative to where captions are written."""
        if self.out != self.root:
            return f"{picture.id}{self.extension}"
        return relative(captions.sidecar_path(picture.path, self.extension), self.root)

    def begin(self, ledger: Ledger, examples: Sequence[Example], settings: dict[str, object]) -> None:
        """Take caption files that have no record yet for a person's, and number the run."""
        new = []
        for example in examples:
            file = self._file(Picture(example.source, example.id, 1))
            known = ledger.records.get(example.id)
            if (
                (known is None or known.file != file)
                and (self.out / file).is_file()
                and captions.read_text(self.out / file)
            ):
                empty = CaptionRecord(example.id, "", "sidecar", **self._place(example))
                new.append(of_a_person(empty, self.out / file))
        ledger.note(new)
        if new:
            ledger.close(finished=False)
        made_of = [self.mode, self.extension, self.section.model_dump(mode="json"), settings, runs.plain(self.subject)]
        text = self.arm.text.model_dump(mode="json") if self.arm.text is not None else None
        self.run = ledger.begin(runs.fingerprint([*made_of, text]))

    def wants(self, ledger: Ledger, example: Example) -> bool:
        """Whether the picture is to be captioned in this run, or still."""
        known = ledger.records.get(example.id)
        path = self.out / self._file(Picture(example.source, example.id, 1))
        if known is None or not path.is_file() or not captions.read_text(path):
            return True
        return self.mode != "fill" and known.run != self.run

    def records(
        self, ledger: Ledger, said: Sequence[_Said], settings: dict[str, object], tokens: Tokens | None
    ) -> list[CaptionRecord]:
        """The records of what was said, after the rules that look at one caption at a time."""
        text = self.arm.text.model_copy(update={"absorb": None}) if self.arm.text is not None else None
        made = []
        for one in said:
            former = ledger.records.get(one.example.id)
            old = self._old(ledger, former)
            subject = self._subject_beside(old)
            if text is not None:
                ruled = rules.apply(text, [one.text], subject, _knife(tokens)).texts[0]
            else:
                ruled = captions.with_trigger_word(one.text, subject.trigger_word, subject.class_word, subject.how)
            whole = self._combined(old, ruled)
            record = CaptionRecord(
                one.example.id,
                whole,
                self.section.name,
                said=one.text,
                seconds=one.seconds,
                tokens=tokens.measure(whole).count if tokens is not None else None,
                edited_by=provenance.RULES if whole != one.text else "",
                run=self.run,
                **provenance.origin(settings),
                **self._place(one.example),
            )
            made.append(record.after(former))
        return made

    def absorb(self, ledger: Ledger, tokens: Tokens | None, progress: Progress) -> None:
        """Leave to the trigger word what most of the folder's captions share, in those of this run."""
        text = self.arm.text
        if text is None or text.absorb is None:
            return
        told = [r for r in ledger.records.values() if r.said and r.captioner == self.section.name]
        if len(told) < FEWEST:
            progress.say(f"text.absorb: {len(told)} captions are too few to tell what they share; nothing is absorbed")
            return
        ruled = rules.apply(text, [r.said for r in told], self.subject, _knife(tokens))
        bare = rules.apply(text, [r.said for r in told], replace(self.subject, how="none"), _knife(tokens))
        changed = []
        for record, short, alone in zip(told, ruled.texts, bare.texts, strict=True):
            if record.run != self.run or record.edited_by == provenance.A_PERSON:
                continue
            old = record.previous[-1]["text"] if record.previous else ""
            joined = self._combined(old, alone if self._subject_beside(old).how == "none" else short)
            if joined != record.text:
                count = tokens.measure(joined).count if tokens is not None else None
                values: dict[str, Any] = {"text": joined, "edited_by": provenance.RULES, "tokens": count}
                changed.append(provenance.changed(record, **values))
        ledger.write(changed)
        for line in rules.told(text, ruled.facts):
            progress.say(line)

    def _old(self, ledger: Ledger, former: CaptionRecord | None) -> str:
        """The caption that there is already."""
        there = former is not None and (ledger.folder / former.file).is_file()
        return former.text if former is not None and there else ""

    def _subject_beside(self, old: str) -> rules.Words:
        """The subject's words for a text that stands beside another: the trigger word is not put in twice."""
        beside = self.mode in ("append", "prepend") and captions.has_word(old, self.subject.trigger_word)
        return replace(self.subject, how="none") if beside else self.subject

    def _combined(self, former: str, text: str) -> str:
        old = captions.one_line(former)
        if self.mode not in ("append", "prepend") or not old:
            return text
        first, second = (old, text) if self.mode == "append" else (text, old)
        whole = captions.with_trigger_word(text, self.subject.trigger_word, self.subject.class_word, self.subject.how)
        parts = (f", {text}", f", {whole}") if self.mode == "append" else (f"{text}, ", f"{whole}, ")
        there = old.endswith(parts) if self.mode == "append" else old.startswith(parts)
        return old if there or old in (text, whole) else f"{first}, {second}"

    def _place(self, example: Example) -> dict[str, Any]:
        return {
            "image": relative(example.source, self.root),
            "image_sha256": _hashed(example).sha256,
            "file": self._file(Picture(example.source, example.id, 1)),
        }


def _knife(tokens: Tokens | None) -> Callable[[], Knife]:
    def knife() -> Knife:
        if tokens is None:
            raise ValueError("max_tokens is checked before any work")
        return tokens

    return knife
