"""What is wrong with the trigger word: known to the base, too long, not there, not at its place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from captune import captions
from captune.captions import has_word
from captune.lint.finding import Finding
from captune.lint.told import ENOUGH, Told
from captune.rules.phrases import ARTICLES, COMMON_WORDS, FUNCTION_WORDS, HANDED_ON, OPENERS, words

LONG_TRIGGER = 8  # tokens; a word of more is learnt slowly and takes room from the caption
USUAL = 0.7  # of the captions, before what they do is how it is done
# What captions do with the trigger word, and the way out for those that do not.
_WAYS_OUT = {
    "begin with": "put it in front here too",
    "end with": "put it at the end here too",
    "do not end with": "put it in front, or into the sentence",
}
OPENING = 7  # words, in which a caption may say first what kind of picture it is
FAR = 4  # words in front of a name that a sentence does not lead to


def trigger(told: Told) -> Iterator[Finding]:
    """All findings about the trigger word, where there is one."""
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
    if captions.varies(told.train):
        yield from _shuffled(told, word)
    else:
        yield from _misplaced(told, word)


def _shuffled(told: Told, word: str) -> Iterator[Finding]:
    kept = told.train.keep_tokens
    for name, text in told.texts.items():
        behind = ", ".join(captions.split_parts(text, kept)[1])
        if has_word(text, word) and has_word(behind, word):
            yield Finding(
                "trigger_place", "warning", told.file(name),
                f"the trigger word {word!r} is not among the {kept} kept parts, so shuffling moves or drops it",
                "put it in front, and set train.keep_tokens = 1",
            )  # fmt: skip


def _misplaced(told: Told, word: str) -> Iterator[Finding]:
    """Captions that hold the word elsewhere than nearly all others do; a name within a sentence is at its place."""
    holding = {name: text.strip() for name, text in told.texts.items() if has_word(text, word)}
    if len(holding) < ENOUGH:
        return
    off, does = _off(holding, word, told.class_word)
    count = len(holding) - len(off)
    for name in off:
        yield Finding(
            "trigger_place", "warning", told.file(name),
            f"the trigger word {word!r} is not at its place: {count} of {len(holding)} captions {does} it",
            _WAYS_OUT[does],
        )  # fmt: skip


def _off(holding: Mapping[str, str], word: str, class_word: str) -> tuple[list[str], str]:
    """The captions whose trigger word is out of place, and what the others do with it."""
    enough = USUAL * len(holding)
    found = captions.whole_word(word)
    begins = {name for name, text in holding.items() if found.match(text)}
    alone = {name for name, text in holding.items() if text.partition(",")[0].strip().lower() == word.lower()}
    ends = {name for name, text in holding.items() if _tail(text, word) is not None}
    if len(begins) >= enough and len(alone) >= enough:
        return sorted(set(holding) - begins), "begin with"
    if len(ends) >= enough and len(begins) < enough:
        return sorted(begins - ends), "end with"
    hung = {name for name in set(holding) - begins if _hung_on(holding[name], word, class_word)}
    if len(holding) - len(hung) >= enough:
        return sorted(hung), "do not end with"
    return [], ""


def _tail(text: str, name: str) -> str | None:
    """What stands in front of the name that ends the text, or None if it does not end it."""
    bare = text.rstrip(" .!;:,")
    matches = list(captions.whole_word(name).finditer(bare)) if name.strip() else []
    return bare[: matches[-1].start()] if matches and matches[-1].end() == len(bare) else None


def _hung_on(text: str, word: str, class_word: str) -> bool:
    """Whether the name is put behind a caption that does without it: a last part of its own, or with no word leading to it."""
    before = _tail(text, f"{word} {class_word}")
    before = before if before is not None else _tail(text, word)
    if before is None:
        return False
    part = before.rpartition(",")[2]
    if "," in before and not [w for w in words(OPENERS.sub("", part.lstrip())) if w.lower() not in ARTICLES]:
        return True
    said = words(OPENERS.sub("", before, count=1))
    return len(said) > FAR and said[-1].lower() not in FUNCTION_WORDS and not said[-1].endswith("ing")


def _known(told: Told, word: str) -> Iterator[Finding]:
    """Whether the base has a meaning for the trigger word already, and how many tokens it makes."""
    count = told.tokens.measure(word).count - told.tokens.measure("").count if told.tokens is not None else None
    common = {part.lower() for part in word.split()} <= COMMON_WORDS | FUNCTION_WORDS
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


def assumed(told: Told) -> list[str]:
    """The subject's name: trigger and class word.

    What is not told of it is taken from the captions: for the trigger word what at least half of them are about, for the
    class word what follows the trigger word in nearly all of them; both only where every caption says so.
    """
    if len(told.texts) < ENOUGH:
        return words(f"{told.trigger_word} {told.class_word}")
    said = [[w.lower() for w in words(text)] for text in told.texts.values()]
    shared = set.intersection(*map(set, said)) - FUNCTION_WORDS
    name = told.trigger_word.strip() or next((word for word in sorted(shared) if _is_about(told, said, word)), "")
    kind = told.class_word.strip() or (_behind(told, name, shared) if name else "")
    return words(f"{name} {kind}")


def _is_about(told: Told, said: Sequence[Sequence[str]], word: str) -> bool:
    """Whether at least half of the captions begin with the word, behind an opening, or are in the style of it."""
    first = sum(word in _beginnings(text) for text in said)
    styled = sum(has_word(text, f"style of {word}") for text in told.texts.values())
    return 2 * max(first, styled) >= len(said)


def _beginnings(text: Sequence[str]) -> set[str]:
    """The first words that are no function words, of the text and of what an opening such as "side view of" introduces."""
    starts = [0, *(i + 1 for i, word in enumerate(text[:OPENING]) if word == "of")]
    return {next((word for word in text[start:] if word not in FUNCTION_WORDS), "") for start in starts}


def _behind(told: Told, name: str, shared: set[str]) -> str:
    """The word of every caption that follows the name in nearly all, with no mark between them."""
    follows = re.compile(captions.whole_word(name).pattern + r"\s+([\w-]+)", re.IGNORECASE)
    found = Counter(match[1].lower() for text in told.texts.values() if (match := follows.search(text)))
    word, count = found.most_common(1)[0] if found else ("", 0)
    return word if word in shared and count >= USUAL * len(told.texts) else ""
