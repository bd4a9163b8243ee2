"""Captioners: whoever writes captions for pictures, and the table to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from captune import parts
from captune.captioners import _instructions as instructions
from captune.captioners._instructions import filled as filled
from captune.errors import RecipeError
from captune.recipe import CaptionerSection
from captune.types import Example

if TYPE_CHECKING:
    from captune.captioners._model import PictureModel

CAPTIONERS: dict[str, str] = {
    "blip": "captune.captioners.blip:Blip",
    "blip2": "captune.captioners.blip2:Blip2",
    "constant": "captune.captioners.constant:Constant",
    "filename": "captune.captioners.filename:Filename",
    "openai_api": "captune.captioners.openai_api:OpenaiApi",
    "sidecar": "captune.captioners.sidecar:Sidecar",
    "tagger": "captune.captioners.tagger:Tagger",
    "vlm": "captune.captioners.vlm:Vlm",
}

# What each reads of its section, beside `name`, `trigger` and `batch_size`, which all honour.
OPTIONS: dict[str, frozenset[str]] = {
    "blip": frozenset({"model", "adapter", "prompt", "max_new_tokens", "beams"}),
    "blip2": frozenset({"model", "adapter", "prompt", "max_new_tokens", "beams"}),
    "constant": frozenset({"text"}),
    "filename": frozenset(),
    "openai_api": frozenset(
        {"model", "prompt", "prompt_file", "extension", "folder", "max_new_tokens"}
        | {"base_url", "api_key_env", "image_size", "image_format", "temperature", "seed", "request"}
        | {"timeout", "retries", "price_in", "price_out", "spending_limit"}
    ),
    "sidecar": frozenset({"extension", "folder"}),
    "tagger": frozenset({"model", "threshold", "character_threshold", "underscores", "exclude_tags", "first_tags"}),
    "vlm": frozenset(
        {"model", "adapter", "prompt", "prompt_file", "extension", "folder", "max_new_tokens", "beams"}
        | {"precision", "quantize"}
    ),
}

# The captioners that a LoRA can be trained for: the network, and where a section's model is.
TUNABLE: dict[str, str] = {
    "blip": "captune.captioners.blip:BlipModel",
    "blip2": "captune.captioners.blip2:Blip2Model",
    "vlm": "captune.captioners._chat:ChatModel",
}

# The option without which it cannot do anything.
NEEDED: dict[str, str] = {"constant": "text", "openai_api": "model", "tagger": "model", "vlm": "model"}

# Asked over a network: answers cost money, so they are kept, and some may fail.
SERVED = frozenset({"openai_api"})
BLOCK = 8  # batches handed over at a time, so that requests under way do not wait for the slowest each time


@dataclass(frozen=True)
class Sources:
    """The hashes of the files that captions are read from, beside the pictures, and what should be known of them."""

    hashes: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """In place of a caption: why there is none."""

    reason: str


@dataclass(frozen=True)
class Words:
    """The words that instructions and texts may name."""

    trigger_word: str = ""
    class_word: str = ""


NO_WORDS = Words()


class Captioner(Protocol):
    """Writes one caption per example; `settings` and `sources` are what a caption depends on, for manifests."""

    @property
    def settings(self) -> dict[str, object]:
        """Everything that shapes a caption whatever the picture: model, decode settings."""

    def sources(self, examples: Sequence[Example]) -> Sources:
        """What is read for these pictures; a DataError tells what is missing for any of them. Loads no model."""

    def caption(self, examples: Sequence[Example]) -> Sequence[str | Failed]:
        """One caption per example, as the captioner says it: no trigger word is added here."""


@dataclass(frozen=True)
class Written:
    """What a network said of a picture, and whether it ended by itself or ran into max_new_tokens."""

    text: str
    ended: bool


def check_tunable(section: CaptionerSection) -> None:
    """Raise a RecipeError unless this captioner can be tuned, before anything is loaded."""
    check(section)
    if section.name not in TUNABLE:
        raise RecipeError(f"the captioner {section.name!r} cannot be tuned (these can: {', '.join(sorted(TUNABLE))})")
    if section.adapter is not None:
        raise RecipeError("captioner.adapter: a captioner is tuned from its base; leave the adapter out")
    instructions.check_same_for_all(section)


def load_tunable(section: CaptionerSection, device: str, precision: str, quantize: str | None = None) -> PictureModel:
    """The network behind the captioner, ready to write and to learn."""
    check_tunable(section)
    network = _network(section, device, precision, quantize)
    network.words("a word")  # a chat template that writes no answers is refused before any work
    return network


def load_tuned(
    section: CaptionerSection, adapter: Path, device: str, precision: str, quantize: str | None = None
) -> PictureModel:
    """The same with a LoRA in it, ready to write."""
    return _network(section.model_copy(update={"adapter": adapter}), device, precision, quantize)


def _network(section: CaptionerSection, device: str, precision: str, quantize: str | None) -> PictureModel:
    from captune.captioners._model import loading

    network: Any = parts.load("captioner", TUNABLE, section.name)
    return cast("PictureModel", network(section, network.locate(section), loading(device, precision, quantize)))


@runtime_checkable
class Served(Protocol):
    """A captioner whose captions cost money."""

    def account(self) -> dict[str, float]:
        """What was asked and answered by now, and what that cost."""


def told_account(account: Mapping[str, float]) -> str:
    """An account in a sentence; money only where prices are known."""
    told = "{asked} requests, {kept} answers kept from before, {tokens_in} tokens read and {tokens_out} written"
    spent = f", {account['spent']:.4f} spent in all" if account["spent"] else ""
    return told.format(**account) + spent


def check(section: CaptionerSection) -> None:
    """Raise a RecipeError for an unknown captioner or an option that it does not read, before anything is loaded."""
    if section.name not in CAPTIONERS:
        raise parts.unknown("captioner", section.name, CAPTIONERS)
    honoured = OPTIONS[section.name]
    for option in sorted(frozenset().union(*OPTIONS.values()) - honoured):
        value = getattr(section, option)
        if value != type(section).model_fields[option].default:
            raise RecipeError(
                f"captioner.{option} = {str(value)!r} is not read by {section.name!r} "
                f"(which reads {', '.join(sorted(honoured)) or 'no option'}); leave it out"
            )
    needed = NEEDED.get(section.name)
    if needed is not None and needed not in section.set_apart:
        raise RecipeError(f"captioner.{needed} is missing: {section.name!r} needs it")
    instructions.check(section)


def at_a_time(section: CaptionerSection) -> int:
    """How many pictures the captioner is handed at once."""
    return section.batch_size * (BLOCK if section.name in SERVED else 1)


def load(
    section: CaptionerSection, device: str = "auto", words: Words = NO_WORDS, answers: Path | None = None
) -> Captioner:
    """The captioner that the section names, ready to caption; `answers` is where those that cost money are kept."""
    loader: Any = parts.load("captioner", CAPTIONERS, section.name)
    filled = instructions.filled(section, words.trigger_word, words.class_word)
    if section.name in SERVED:
        return cast(Captioner, loader.load(filled, device, answers))
    return cast(Captioner, loader.load(filled, device))
