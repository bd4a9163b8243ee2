"""Captioners: whoever writes captions for pictures, and the table to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from captune import parts
from captune.errors import RecipeError
from captune.recipe import CaptionerSection
from captune.types import Example

CAPTIONERS: dict[str, str] = {
    "blip": "captune.captioners.blip:Blip",
    "sidecar": "captune.captioners.sidecar:Sidecar",
}

# What each reads of its section, beside `name`, `trigger` and `batch_size`, which all honour.
OPTIONS: dict[str, frozenset[str]] = {
    "blip": frozenset({"model", "prompt", "max_new_tokens", "beams"}),
    "sidecar": frozenset({"extension", "folder"}),
}


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
