"""What is done to an arm's captions after its captioner: texts in, texts out; doing it again changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from captune import captions
from captune.captions import Trigger
from captune.errors import RecipeError
from captune.recipe import TextSection
from captune.rules import absorb, leftovers
from captune.rules.absorb import Absorbed
from captune.rules.phrases import HEDGES, LISTS, OPENERS, WATERMARKS


class Knife(Protocol):
    """Cuts a text to a number of the base's tokens (captune.tokens.Tokens)."""

    def cut(self, text: str, count: int) -> str: ...


@dataclass(frozen=True)
class Words:
    """The subject's words, and how the trigger word is put in."""

    trigger_word: str = ""
    class_word: str = ""
    how: Trigger = "prefix"


@dataclass(frozen=True)
class Ruled:
    """The texts after the rules, in their order, and what is to be known of them."""

    texts: list[str]
    facts: dict[str, Any] = field(default_factory=dict)


def apply(section: TextSection, texts: Sequence[str], subject: Words, load_tokens: Callable[[], Knife]) -> Ruled:
    """All texts of an arm after the section's rules.

    Raises RecipeError where the rules would change their own result, since a caption must not depend on how often they ran.
    """
    ruler = _Ruler(section, subject, load_tokens)
    plain = [ruler.before_absorbing(text) for text in texts]
    absorbed = None
    if section.absorb is not None:
        kept = (subject.trigger_word, subject.class_word)
        absorbed = absorb.common(plain, section.absorb, kept)

    def whole(text: str) -> str:
        return ruler.finish(ruler.before_absorbing(text), absorbed)

    # Cutting and mending may bring together what a rule before them looks for.
    done = [_settled(whole, ruler.finish(text, absorbed), 4) for text in plain]
    for text in done:
        again = whole(text)
        if again != text:
            raise RecipeError(
                f"text: these rules change their own result, from {text!r} to {again!r}; write regex and replace so that "
                "what they put in is not found again"
            )
    facts: dict[str, Any] = {"changed": sum(a != b for a, b in zip(texts, done, strict=True))}
    if absorbed is not None:
        facts["absorbed"] = {word: round(share, 3) for word, share in absorbed.words.items()}
        facts["absorbed_phrases"] = dict(absorbed.phrases)
    if section.max_tokens is not None:
        facts["max_tokens"] = section.max_tokens
    return Ruled(done, facts)


def told(section: TextSection, facts: Mapping[str, Any]) -> list[str]:
    """What the rules did to an arm, in sentences."""
    if section.absorb is None:
        return []
    found = [f"{word} ({share:.0%})" for word, share in facts["absorbed"].items()]
    if not found:
        return [
            f"text.absorb: no word stands in {section.absorb:.0%} of the captions, so nothing is left to the trigger word"
        ]
    return [
        f"left to the trigger word, as they stand in {section.absorb:.0%} of the captions: {captions.some(found, 12)}"
    ]


class _Ruler:
    """One section's rules for one caption at a time."""

    def __init__(self, section: TextSection, subject: Words, load_tokens: Callable[[], Knife]) -> None:
        self._section, self._subject, self._load_tokens = section, subject, load_tokens
        self._start = section.filled_start(subject.trigger_word, subject.class_word)
        self._regex = [(re.compile(pattern), put) for pattern, put in section.regex.items()]
        self._replace = [(captions.whole_word(find), put) for find, put in section.replace.items()]
        self._banned = [captions.whole_word(phrase) for phrase in section.ban if phrase not in LISTS]

    def before_absorbing(self, text: str) -> str:
        """The text without its beginning, after regex, replace, ban and case."""
        text = _without_start(captions.one_line(text), self._start)
        for pattern, put in self._regex:
            text = captions.one_line(pattern.sub(put, text))
        for pattern, put in self._replace:
            text = _put_in(text, pattern, put)
        text = _settled(self._without_banned, text)
        if self._section.case == "lower":
            text = text.lower()
            word = self._subject.trigger_word
            if word.strip():
                text = captions.whole_word(word).sub(lambda _: " ".join(word.split()), text)
        return text

    def finish(self, text: str, absorbed: Absorbed | None) -> str:
        """The text without what is absorbed and repeated, with the subject's words and its beginning, cut to its length."""
        if absorbed is not None:
            head = self._subject.class_word if self._subject.how == "none" else self._subject.trigger_word
            text = absorb.without(text, absorbed, " ".join(head.split()))
        if self._section.no_repetition:
            text = _settled(without_repetition, text)
        text = self._with_subject(text)
        return self._within(f"{self._start} {text}".strip() if self._start else text)

    def _without_banned(self, text: str) -> str:
        lists = self._section.ban
        if "openers" in lists:
            text = _without_openers(text, self._subject.trigger_word)
        if "watermarks" in lists:
            text = _without_watermarks(text)
        if "hedges" in lists:
            text = leftovers.without(text, HEDGES)
        for pattern in self._banned:
            text = leftovers.without(text, pattern)
        return text

    def _with_subject(self, text: str) -> str:
        word, class_word = " ".join(self._subject.trigger_word.split()), " ".join(self._subject.class_word.split())
        if not captions.has_word(self._start, word):
            text = captions.with_trigger_word(text, word, class_word, self._subject.how)
        whole = f"{self._start} {text}"
        if (
            self._section.add_class_word
            and word
            and captions.has_word(text, word)
            and not captions.has_word(whole, class_word)
        ):
            text = captions.whole_word(word).sub(lambda match: f"{match[0]} {class_word}", text, count=1)
        return text

    def _within(self, text: str) -> str:
        """The text cut to max_tokens; the trigger word is never cut away."""
        most, word = self._section.max_tokens, " ".join(self._subject.trigger_word.split())
        if most is None:
            return text
        tokens = self._load_tokens()
        short = tokens.cut(text, most)
        if not captions.has_word(text, word) or captions.has_word(short, word):
            return short
        moved = captions.whole_word(word).sub("", text, count=1)
        short = tokens.cut(leftovers.punctuated(f"{word}, {moved}"), most)
        if not captions.has_word(short, word):
            raise RecipeError(f"text.max_tokens = {most}: has no room for the trigger word {word!r}; give more")
        return short


def _settled(rule: Callable[[str], str], text: str, rounds: int = 20) -> str:
    """The text that the rule leaves as it is: what it takes out may bring together what it takes out next."""
    for _ in range(rounds):
        before, text = text, rule(text)
        if text == before:
            break
    return text


def _put_in(text: str, pattern: re.Pattern[str], put: str) -> str:
    """The text with `put`, letter by letter, in the place of the finds; they are taken out where it is empty."""
    return pattern.sub(lambda _: put, text) if put else leftovers.without(text, pattern)


def _without_start(text: str, start: str) -> str:
    while start and text.lower().startswith(start.lower()) and not text[len(start) : len(start) + 1].isalnum():
        text = text[len(start) :].strip()
    return text


def _without_openers(text: str, trigger_word: str) -> str:
    """The text whose sentences, and whatever follows a trigger word in front, do not begin by saying that this is a picture."""
    word = r"\s+".join(re.escape(part) for part in trigger_word.split())
    behind_trigger = rf"|^{word}[,:]?\s+" if word else ""
    place = rf"(^|[.!?]\s+{behind_trigger})"
    return re.sub(place + f"(?:{OPENERS.pattern})", r"\1", text, flags=re.IGNORECASE).strip()


def _without_watermarks(text: str) -> str:
    """The text without its talk of watermarks: from the connecting word on, or the whole part between marks."""
    parts = re.split(r"([,.;]\s*)", text)
    for index in range(0, len(parts), 2):
        if WATERMARKS.search(parts[index]):
            parts[index] = _before_watermark(parts[index])
    kept = "".join(parts)
    return leftovers.punctuated(kept) if kept != text else text


def _before_watermark(part: str) -> str:
    connector = r"\s+(?:with|and|has|having|featuring|bearing|including|that has|that says)\s+"
    head = re.match(rf"(.*?){connector}(?:(?!{connector}).)*?{WATERMARKS.pattern}", part, re.IGNORECASE)
    return head[1] if head and not WATERMARKS.search(head[1]) else ""


_AGAIN = re.compile(r"(?<!\w)(\w[\w'-]*(?:[\s,]+\w[\w'-]*){0,7}?)(?:[\s,]+\1(?!\w))+", re.IGNORECASE)


def without_repetition(text: str) -> str:
    """The text without words or phrases said again at once, and without parts between marks that stood there before.

    >>> without_repetition("a dog, a dog on on the grass, a dog. a dog")
    'a dog on the grass, a dog.'
    """
    text = _AGAIN.sub(lambda match: match[1], text)
    pieces = re.split(r"([,.;]\s*)", text)
    seen: set[str] = set()
    kept = []
    for index in range(0, len(pieces), 2):
        bare = " ".join(pieces[index].lower().split())
        mark = pieces[index + 1] if index + 1 < len(pieces) else ""
        if bare and bare in seen:
            continue
        seen.add(bare)
        kept.append(pieces[index] + mark)
    whole = "".join(kept)
    return leftovers.punctuated(whole) if whole != text else text
