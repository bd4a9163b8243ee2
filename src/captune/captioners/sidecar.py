"""The captions that a person wrote: text files beside the pictures, or a metadata.jsonl in the data set's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from captune import captions, runs
from captune.captioners import Sources
from captune.errors import DataError
from captune.recipe import CaptionerSection
from captune.types import Example


@dataclass
class Search:
    """What a search through caption files has found so far."""

    texts: dict[str, str] = field(default_factory=dict)  # by example id
    used: dict[Path, str] = field(default_factory=dict)  # file -> id of the last picture that it was read for
    missing: list[Path] = field(default_factory=list)  # pictures
    empty: list[Path] = field(default_factory=list)  # caption files
    differing: list[Path] = field(default_factory=list)  # pictures whose metadata row says something else
    metadata: dict[Path, dict[str, str]] = field(default_factory=dict)  # every metadata.jsonl looked at


class Sidecar:
    """Reads captions; a picture's sidecar is preferred to its row in metadata.jsonl."""

    def __init__(self, extension: str, folder: Path | None) -> None:
        self.extension = captions.dotted(extension)
        self.folder = folder
        self._texts: dict[str, str] = {}

    @classmethod
    def load(cls, section: CaptionerSection, device: str = "auto") -> Sidecar:
        """The reader that the section describes. Raises DataError for a folder that does not exist."""
        folder = section.folder.expanduser().absolute() if section.folder is not None else None
        if folder is not None and not folder.is_dir():
            raise DataError(f"captioner.folder = {str(section.folder)!r}: there is no such folder of caption files")
        return cls(section.extension, folder)

    @property
    def settings(self) -> dict[str, object]:
        return {"extension": self.extension, "folder": str(self.folder) if self.folder is not None else None}

    def sources(self, examples: Sequence[Example]) -> Sources:
        """The caption files' hashes. Raises one DataError naming the pictures without a caption and empty captions."""
        search = Search()
        for example in examples:
            self._find(example, search)
        problems = self._missing(search, len(examples)) + _empty(search)
        if problems:
            raise DataError("; ".join(problems))
        self._texts.update(search.texts)
        hashes = {str(path): runs.sha256_of(path) for path in sorted(search.used)}
        return Sources(hashes, tuple(self._warnings(search, examples)))

    def caption(self, examples: Sequence[Example]) -> list[str]:
        """The captions as they stand in the files, on one line."""
        if any(example.id not in self._texts for example in examples):
            self.sources(examples)
        return [self._texts[example.id] for example in examples]

    def _find(self, example: Example, search: Search) -> None:
        """Note one picture's caption, its absence or its emptiness."""
        file = next((path for path in self._places(example) if path.is_file()), None)
        listed = self._in_metadata(example, search)
        if file is not None:
            self._refuse_shared(file, example, search)
            text = captions.read_text(file)
            if listed is not None and listed[1] != text:
                search.differing.append(example.source)
        elif listed is not None:
            file, text = listed
        else:
            search.missing.append(example.source)
            return
        search.used[file] = example.id
        search.texts[example.id] = text
        if not text:
            search.empty.append(file)

    def _places(self, example: Example) -> list[Path]:
        """Where a picture's sidecar may lie, the likeliest first."""
        flat = captions.sidecar_path(example.source, self.extension, self.folder)
        if self.folder is None:
            return [flat]
        return [self.folder / f"{example.id}{self.extension}", flat]  # by id: with the picture's subfolder

    def _refuse_shared(self, file: Path, example: Example, search: Search) -> None:
        """In a separate folder one file may not serve two subfolders' pictures: one of them would be miscaptioned."""
        other = search.used.get(file)
        if self.folder is None or other is None or PurePosixPath(other).parent == PurePosixPath(example.id).parent:
            return
        raise DataError(
            f"the caption file {file} fits two pictures, {other} and {example.id}; "
            f"put it into the subfolder of the one it belongs to, and one for the other beside it"
        )

    def _in_metadata(self, example: Example, search: Search) -> tuple[Path, str] | None:
        """The nearest metadata.jsonl that has a caption for the picture, and that caption."""
        levels = len(PurePosixPath(example.id).parts)  # an id is a relative path: so far up is the data set's folder
        for parent in [self.folder] if self.folder is not None else list(example.source.parents)[:levels]:
            path = parent / captions.METADATA
            if path not in search.metadata:
                search.metadata[path] = captions.read_metadata(path) if path.is_file() else {}
            inside = example.source.parent == parent or parent in example.source.parents
            name = example.source.relative_to(parent).as_posix() if inside else example.id + example.source.suffix
            text = search.metadata[path].get(captions.file_key(name))
            if text is not None:
                return path, text
        return None

    def _another_picture(self, example: Example) -> bool:
        """Whether the separate folder of captions holds a picture of this name that is not this one."""
        if self.folder is None:
            return False
        places = (self.folder / f"{example.id}{example.source.suffix}", self.folder / example.source.name)
        beside = next((path for path in places if path.is_file()), None)
        return beside is not None and beside.stat().st_size != example.source.stat().st_size

    def _missing(self, search: Search, count: int) -> list[str]:
        """The sentence about pictures without a caption, with other caption files that lie there."""
        if not search.missing:
            return []
        where = f"in {self.folder}" if self.folder is not None else "beside the pictures"
        verb = "has" if len(search.missing) == 1 else "have"
        sentence = (
            f"{len(search.missing)} of {count} pictures {verb} no caption: {_names(search.missing)} "
            f"(looked for {self.extension} files {where}, and for {captions.METADATA})"
        )
        for other in captions.KNOWN_EXTENSIONS:
            lying = [p for p in search.missing if captions.sidecar_path(p, other, self.folder).is_file()]
            if lying and other != self.extension:
                files = f"a {other} file lies" if len(lying) == 1 else f"{len(lying)} {other} files lie"
                sentence += f'; {files} there, which captioner.extension = "{other}" would read'
        return [sentence]

    def _warnings(self, search: Search, examples: Sequence[Example]) -> list[str]:
        """What lies there and is not read: caption files without a picture, rows that sidecars overrule."""
        warnings = []
        if search.differing:
            warnings.append(
                f"{captions.METADATA} and the {self.extension} files differ for {_names(search.differing)}: "
                f"the {self.extension} files are read"
            )
        other = [e.source for e in examples if self._another_picture(e)]
        if other:
            warnings.append(
                f"{self.folder} has other pictures under the same names as {_names(other)}: "
                "its captions may be of those, not of the data set's"
            )
        folders = {self.folder} if self.folder is not None else {e.source.parent for e in examples}
        lying = {p for parent in folders for p in parent.iterdir() if p.suffix == self.extension and p.is_file()}
        unread = sorted(p for p in lying - set(search.used) if not p.name.startswith("."))
        if unread:
            files = f"{len(unread)} {self.extension} files" if len(unread) > 1 else f"a {self.extension} file"
            warnings.append(f"{files} of no picture {'are' if len(unread) > 1 else 'is'} not read: {_names(unread)}")
        return warnings


def _empty(search: Search) -> list[str]:
    """The sentence about caption files without text."""
    if not search.empty:
        return []
    many = len(search.empty) > 1
    files = f"{len(search.empty)} caption files are empty" if many else "a caption file is empty"
    rest = "write their captions or take their pictures" if many else "write its caption or take its picture"
    return [f"{files}: {_names(search.empty)}; {rest} out of the folder"]


def _names(paths: Sequence[Path]) -> str:
    return captions.some([path.name for path in paths])
