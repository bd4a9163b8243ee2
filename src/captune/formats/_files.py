"""Files of a format: pictures copied once, nothing overwritten without being asked to."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

from captune import runs
from captune.errors import DataError
from captune.formats import Row


def inside(out: Path, name: str) -> Path:
    """The file of that relative name below `out`; a DataError for a name that leads out of it."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.name:
        raise DataError(f"the file name {name!r} leads out of the folder; rename it where it comes from")
    return out / pure


def put_picture(row: Row, target: Path) -> None:
    """Copy the picture to the target, unless it is there."""
    if row.path is not None and target.exists() and target.samefile(row.path):
        return
    if target.is_file():
        if target.read_bytes() != row.read():
            raise DataError(f"{target} is another picture already; choose another folder to write to")
        return
    with runs.atomic(target) as part:
        if row.path is not None and row.content is None:
            shutil.copyfile(row.path, part)
        else:
            part.write_bytes(row.read())


def put_text(data: bytes, target: Path, *, replace: bool) -> None:
    """Write a caption file's bytes; a DataError where another text would be overwritten."""
    if target.is_file():
        if target.read_bytes() == data:
            return
        if not replace:
            raise DataError(f"{target} says something else already; use --replace to write over it")
    with runs.atomic(target) as part:
        part.write_bytes(data)
