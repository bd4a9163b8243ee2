"""What lint says: one sentence about one file, how bad it is, and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from captune import captions

Severity = Literal["error", "warning", "info"]
ORDER: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """`file` is relative to the data set's folder, or "" where it is about all of them."""

    code: str
    severity: Severity
    file: str
    message: str
    way_out: str

    @property
    def sentence(self) -> str:
        """What is wrong, where, and what to do."""
        return f"{f'{self.file}: ' if self.file else ''}{self.message}; {self.way_out}"


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, each once, then by kind and file."""
    return sorted(dict.fromkeys(findings), key=lambda f: (ORDER.index(f.severity), f.code, f.file))


def in_few_lines(findings: Iterable[Finding]) -> list[str]:
    """One line for every kind of finding, with the files that it is about."""
    kinds: dict[str, list[Finding]] = {}
    for finding in ordered(findings):
        kinds.setdefault(finding.code, []).append(finding)
    lines = []
    for found in kinds.values():
        others = [f.file for f in found[1:] if f.file]
        also = f" (so it is with {captions.some(others)})" if others else ""
        lines.append(found[0].sentence + also)
    return lines
