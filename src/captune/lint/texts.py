"""What is wrong with captions as texts: trigger word, repetition, wording, language, length."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from captune import captions
from captune.lint import languages
from captune.lint.finding import Finding
from captune.lint.told import ENOUGH, Told
from captune.lint.triggers import assumed, trigger
from captune.mini.subjects import SUBJECTS
from captune.rules.phrases import COMMON_WORDS, FUNCTION_WORDS, HANDED_ON, SUBJECTIVE, UNCERTAIN, words
from captune.tokens import Tokens

LONG_CAPTION = 8  # words; two people do not write as many alike by chance
CLIP_READS = 75  # tokens of a text, beside its start and end
_SPELT_IN_DIGITS = re.compile(r"[a-z]+\d+[a-z][a-z\d]+")  # p3rson, v1ctor: made so that no base knows them
_CARRIERS = frozenset(("style", "photograph", "shot"))  # "in the style of": what a name is told with, beside "photo of"
_PIECE = re.compile(r"\w+|[^\w\s]")


def examine(told: Told) -> Iterator[Finding]:
    """All findings about one set of captions."""
    for check in (_cut, trigger, _other_triggers, _sides, _same, _in_every, _languages):
        yield from check(told)
    if told.by_a_person:
        yield from _wording(told)


def _cut(told: Told) -> Iterator[Finding]:
    for name, text in told.texts.items():
        count, limit, lost = _length(told.tokens, text)
        if lost:
            yield Finding(
                "cut_caption", "warning", told.file(name),
                f"the caption is cut: {count} tokens, {limit} are read, lost is {lost[:80]!r}",
                "shorten it, or set train.caption_chunks or text.max_tokens",
            )  # fmt: skip


def _length(tokens: Tokens | None, text: str) -> tuple[str, int, str]:
    """How long a caption is and what of it is lost; without a base by CLIP's limit, every word and mark taken for one token."""
    if tokens is not None:
        length = tokens.measure(text)
        return str(length.count), length.limit, length.lost
    pieces = list(_PIECE.finditer(text))
    lost = text[pieces[CLIP_READS].start() :] if len(pieces) > CLIP_READS else ""
    return f"at least {len(pieces) + 2}", CLIP_READS + 2, lost


def _other_triggers(told: Told) -> Iterator[Finding]:
    own = {word.lower() for word in assumed(told)}
    for name, text in told.texts.items():
        others = (told.other_triggers.get(name, frozenset()) | HANDED_ON | SUBJECTS.keys()) - own
        for word in sorted({w.lower() for w in words(text)} - own):
            near = len(told.trigger_word) > 4 and _misspelt(word, told.trigger_word.lower())
            if word in others or near or _SPELT_IN_DIGITS.fullmatch(word):
                yield Finding(
                    "other_trigger", "warning", told.file(name),
                    f"the caption says {word!r}, which {'is nearly the' if near else 'is another'} trigger word"
                    + (f" {told.trigger_word!r}" if near else ""),
                    "write the right one, or take it out",
                )  # fmt: skip


def _misspelt(word: str, trigger_word: str) -> bool:
    alike = difflib.SequenceMatcher(None, word, trigger_word).ratio() >= 0.8
    return alike and word not in COMMON_WORDS and word.removesuffix("s").removesuffix("'") != trigger_word


def _sides(told: Told) -> Iterator[Finding]:
    if told.train.flip:
        for name, text in told.texts.items():
            if captions.says_side(text):
                yield Finding(
                    "side_while_flipped", "warning", told.file(name),
                    "the caption says left or right, and train.flip mirrors the picture in half of its visits",
                    "set train.flip = false, or take the side out of the caption",
                )  # fmt: skip


def _same(told: Told) -> Iterator[Finding]:
    groups: dict[str, list[str]] = {}
    for name, text in told.texts.items():
        groups.setdefault(" ".join(words(text.lower())), []).append(name)
    for text, names in groups.items():
        if text and (
            len(names) >= 3 or (len(names) == 2 and (len(told.texts) <= 10 or text.count(" ") >= LONG_CAPTION))
        ):
            files = captions.some([told.file(name) for name in names[1:]])
            yield Finding(
                "same_caption", "warning", told.file(names[0]),
                f"{len(names)} pictures have one caption, {told.texts[names[0]][:60]!r} (also {files})",
                "say what differs between them",
            )  # fmt: skip


def _in_every(told: Told) -> Iterator[Finding]:
    if len(told.texts) < ENOUGH:
        return
    name = assumed(told)
    known = {w.lower() for w in name} | _CARRIERS
    subject = told.trigger_word or next(iter(name), "")
    beside = f" beside {subject!r}" if subject else ""
    shared = set.intersection(*({w.lower() for w in words(text)} for text in told.texts.values()))
    for word in sorted(shared - known - FUNCTION_WORDS):
        if any(c.isalpha() for c in word):
            yield Finding(
                "in_every_caption", "warning", "",
                f"{word!r} stands in every caption, so it becomes a trigger word{beside}",
                'take it out (text = { absorb = 0.9 } does) or name it as dataset.class_word',
            )  # fmt: skip


def _wording(told: Told) -> Iterator[Finding]:
    for name, text in told.texts.items():
        for code, pattern, what in (
            ("uncertain_wording", UNCERTAIN, "is uncertain; a model learns it as if it were seen"),
            ("subjective_wording", SUBJECTIVE, "is a matter of taste and describes nothing in the picture"),
        ):
            found = pattern.search(text)
            if found:
                yield Finding(
                    code, "info", told.file(name), f"{found[0]!r} {what}", "say what is to be seen, or leave it out"
                )


def _languages(told: Told) -> Iterator[Finding]:
    if len(told.texts) < 3:
        return
    most, others = languages.others(told.texts, frozenset(words(told.trigger_word.lower())))
    for name, tongue in others.items():
        yield Finding(
            "other_language", "warning", told.file(name),
            f"the caption is in another language ({tongue}) than the rest ({most})",
            "translate it; a base reads few languages, and one set of captions should keep to one",
        )  # fmt: skip
