"""Captioners: whoever writes captions for pictures, and the table to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from captune import parts
from captune.errors import RecipeError
from captune.recipe import CaptionerSection
from captune.types import Example

if TYPE_CHECKING:
    from captune.captioners._model import PictureModel

CAPTIONERS: dict[str, str] = {
    "blip": "captune.captioners.blip:Blip",
    "blip2": "captune.captioners.blip2:Blip2",
    "sidecar": "captune.captioners.sidecar:Sidecar",
}

# What each reads of its section, beside `name`, `trigger` and `batch_size`, which all honour.
OPTIONS: dict[str, frozenset[str]] = {
    "blip": frozenset({"model", "adapter", "prompt", "max_new_tokens", "beams"}),
    "blip2": frozenset({"model", "adapter", "prompt", "max_new_tokens", "beams"}),
    "sidecar": frozenset({"extension", "folder"}),
}

# The captioners that a LoRA can be trained for: the network, and where a section's model is.
TUNABLE: dict[str, str] = {"blip": "captune.captioners.blip:BlipModel", "blip2": "captune.captioners.blip2:Blip2Model"}


@dataclass(frozen=True)
class Sources:
    """The hashes of the files that captions are read from, beside the pictures, and what should be known of them."""

    hashes: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Captioner(Protocol):
    """Writes one caption per example; `settings` and `sources` are what a caption depends on, for manifests."""

    @property
    def settings(self) -> dict[str, object]:
        """Everything that shapes a caption whatever the picture: model, decode settings."""

    def sources(self, examples: Sequence[Example]) -> Sources:
        """What is read for these pictures; a DataError tells what is missing for any of them. Loads no model."""

    def caption(self, examples: Sequence[Example]) -> list[str]:
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


def load_tunable(section: CaptionerSection, device: str, precision: str, quantize: str | None = None) -> PictureModel:
    """The network behind the captioner, ready to write and to learn."""
    check_tunable(section)
    return _network(section, device, precision, quantize)


def load_tuned(
    section: CaptionerSection, adapter: Path, device: str, precision: str, quantize: str | None = None
) -> PictureModel:
    """The same with a LoRA in it, ready to write."""
    return _network(section.model_copy(update={"adapter": adapter}), device, precision, quantize)


def _network(section: CaptionerSection, device: str, precision: str, quantize: str | None) -> PictureModel:
    from captune.captioners._model import loading

    network: Any = parts.load("captioner", TUNABLE, section.name)
    return cast("PictureModel", network(section, network.locate(section), loading(device, precision, quantize)))


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
                f"(which reads {', '.join(sorted(honoured))}); leave it out"
            )


def load(section: CaptionerSection, device: str = "auto") -> Captioner:
    """The captioner that the section names, ready to caption."""
    loader: Any = parts.load("captioner", CAPTIONERS, section.name)
    return cast(Captioner, loader.load(section, device))
