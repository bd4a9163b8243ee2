"""What is wrong with captions as texts: trigger word, repetition, wording, language, length."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from captune import captions
from captune.captions import has_word
from captune.lint.finding import Finding
from captune.mini.subjects import SUBJECTS
from captune.recipe import TrainSection
from captune.rules.phrases import COMMON_NOUNS, FUNCTION_WORDS, HANDED_ON, HEDGES, SUBJECTIVE, words
from captune.tokens import Tokens

ENOUGH = 4  # captions, before what they have in common is worth a word
LONG_TRIGGER = 8  # tokens; a word of more is learnt slowly and takes room from the caption
CLIP_READS = 75  # tokens of a text, beside its start and end
_SPELT_IN_DIGITS = re.compile(r"[a-z]+\d+[a-z]{2,}")  # p3rson, v1ctor: made so that no base knows them
_PIECE = re.compile(r"\w+|[^\w\s]")

# Words that mark a language, of those whose letters are Latin's.
_LANGUAGES = {
    "English": "the a an of with in on and is at to its his her under near",
    "German": "der die das ein eine einen einem einer und mit auf im ist dem den von vor",
    "French": "le la les un une des et avec dans sur est du au devant",
    "Spanish": "el la los las un una con y en de del sobre es",
    "Italian": "il lo gli un una con su nel nella della di sulla e",
    "Portuguese": "um uma com em no na do da ao os",
    "Dutch": "de het een en met op van voor naar",
}
_MARKS = {name: frozenset(text.split()) for name, text in _LANGUAGES.items()}


@dataclass(frozen=True)
class Told:
    """One set of captions, by the picture's id, as they are trained on."""

    texts: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)  # id -> the file to name
    trigger_word: str = ""
    class_word: str = ""
    other_triggers: Mapping[str, frozenset[str]] = field(default_factory=dict)  # id -> words that call other subjects
    train: TrainSection = TrainSection()
    tokens: Tokens | None = None
    by_a_person: bool = True

    def file(self, name: str) -> str:
        return self.files.get(name, name)


def examine(told: Told) -> Iterator[Finding]:
    """All findings about one set of captions."""
    for check in (_cut, _trigger, _other_triggers, _sides, _same, _in_every, _languages):
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


def _trigger(told: Told) -> Iterator[Finding]:
    word = " ".join(told.trigger_word.split())
    if not word:
        return
    yield from _known(told, word)
    lacking = [name for name, text in told.texts.items() if not has_word(text, word)]
    for name in lacking:
        yield Finding(
            "trigger_missing", "error" if len(lacking) < len(told.texts) else "warning", told.file(name),
            f"the caption lacks the trigger word {word!r}", 'write it in, or let trigger = "prefix" put it in',
        )  # fmt: skip
    kept = told.train.keep_tokens
    if captions.varies(told.train):
        for name, text in told.texts.items():
            behind = ", ".join(captions.split_parts(text, kept)[1])
            if has_word(text, word) and has_word(behind, word):
                yield Finding(
                    "trigger_place", "warning", told.file(name),
                    f"the trigger word {word!r} is not among the {kept} kept parts, so shuffling moves or drops it",
                    "put it in front, and set train.keep_tokens = 1",
                )  # fmt: skip
        return
    holding = {name: text for name, text in told.texts.items() if has_word(text, word)}
    begins = [name for name, text in holding.items() if captions.whole_word(word).match(text.lstrip())]
    if len(holding) >= ENOUGH and 0.7 * len(holding) <= len(begins) < len(holding):
        for name in sorted(set(holding) - set(begins)):
            yield Finding(
                "trigger_place", "warning", told.file(name),
                f"the trigger word {word!r} is not at its place: {len(begins)} of {len(holding)} captions begin with it",
                "put it in front here too",
            )  # fmt: skip


def _known(told: Told, word: str) -> Iterator[Finding]:
    """Whether the base has a meaning for the trigger word already, and how many tokens it makes."""
    count = told.tokens.measure(word).count - told.tokens.measure("").count if told.tokens is not None else None
    common = {part.lower() for part in word.split()} <= COMMON_NOUNS | FUNCTION_WORDS
    if common or count == 1 or word.lower() in HANDED_ON:
        why = (
            "a common word" if common else "one whole token of its vocabulary" if count == 1 else "handed on by guides"
        )
        tokens = f", {count} token{'s' if count != 1 else ''}" if count is not None else ""
        yield Finding(
            "trigger_known", "warning", "",
            f"the base already means something by the trigger word {word!r} ({why}{tokens})",
            "take a word that means nothing, such as jefpajot",
        )  # fmt: skip
    elif count is not None and count > LONG_TRIGGER:
        yield Finding(
            "trigger_long", "info", "", f"the trigger word {word!r} makes {count} tokens of every caption",
            "a shorter one leaves more room and is learnt sooner",
        )  # fmt: skip


def _other_triggers(told: Told) -> Iterator[Finding]:
    own = {part.lower() for part in told.trigger_word.split()}
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
    return alike and word not in COMMON_NOUNS and word.removesuffix("s").removesuffix("'") != trigger_word


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
        groups.setdefault(captions.one_line(text).lower(), []).append(name)
    for text, names in groups.items():
        if text and (len(names) >= 3 or (len(names) == 2 and len(told.texts) <= 10)):
            files = captions.some([told.file(name) for name in names[1:]])
            yield Finding(
                "same_caption", "warning", told.file(names[0]),
                f"{len(names)} pictures have one caption, {text[:60]!r} (also {files})",
                "say what differs between them",
            )  # fmt: skip


def _in_every(told: Told) -> Iterator[Finding]:
    if len(told.texts) < ENOUGH:
        return
    known = {w.lower() for w in words(f"{told.trigger_word} {told.class_word}")}
    shared = set.intersection(*({w.lower() for w in words(text)} for text in told.texts.values()))
    for word in sorted(shared - known - FUNCTION_WORDS):
        if any(c.isalpha() for c in word):
            yield Finding(
                "in_every_caption", "warning", "",
                f"{word!r} stands in every caption, so it becomes a trigger word beside {told.trigger_word or 'none'!r}",
                'take it out (text = { absorb = 0.9 } does) or name it as dataset.class_word',
            )  # fmt: skip


def _wording(told: Told) -> Iterator[Finding]:
    for name, text in told.texts.items():
        for code, pattern, what in (
            ("uncertain_wording", HEDGES, "is uncertain; a model learns it as if it were seen"),
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
    scripts = {name: _script(text) for name, text in told.texts.items()}
    usual = _most(scripts.values())
    tongues = Counter(tongue for text in told.texts.values() if (tongue := _language(text)))
    spoken = tongues.most_common(1)[0][0] if tongues else ""
    for name, text in told.texts.items():
        other = scripts[name] if scripts[name] and scripts[name] != usual else ""
        if not other and usual == "LATIN" and spoken:
            tongue = _language(text)
            other = tongue if tongue != spoken and _said(text, tongue) >= _said(text, spoken) + 2 else ""
        if other:
            most = spoken if usual == "LATIN" and spoken else usual.capitalize()
            yield Finding(
                "other_language", "warning", told.file(name),
                f"the caption is in another language ({other.capitalize()}) than the rest ({most})",
                "translate it; a base reads few languages, and one set of captions should keep to one",
            )  # fmt: skip


def _script(text: str) -> str:
    """The script of most letters, as Unicode names it: LATIN, CYRILLIC, CJK."""
    return _most(unicodedata.name(c, "").split(" ")[0] for c in text if c.isalpha())


def _most(names: Iterable[str]) -> str:
    counted = Counter(name for name in names if name)
    return counted.most_common(1)[0][0] if counted else ""


def _said(text: str, language: str) -> int:
    return len(_MARKS.get(language, frozenset()) & {w.lower() for w in words(text)})


def _language(text: str) -> str:
    """The language whose small words the text has most of; "" if it has fewer than two."""
    counts = {name: _said(text, name) for name in _MARKS}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] >= 2 else ""
