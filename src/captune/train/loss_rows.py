"""losses.jsonl: a row a step, and its numbers on their way from the device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from captune.errors import DataError
from captune.runs import atomic


class Reading:
    """A number on its way from the device; asking for it waits for that number alone, not for what was begun since."""

    def __init__(self, number: Tensor | None) -> None:
        self._there: torch.cuda.Event | None = None
        if number is None:
            number = torch.zeros(())
        elif number.is_cuda:
            number = number.to("cpu", non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record()
        else:
            number = number.cpu()
        self._number = number

    def value(self) -> float:
        if self._there is not None:
            self._there.synchronize()
        return self._number.item()


class LossRows:
    """The file: a row a step, written at once; the rows after the checkpoint are dropped, those steps are done again."""

    def __init__(self, path: Path, step: int, *, written: bool) -> None:
        self._path, self._written = path, written
        if written:
            _keep_rows(path, step)

    def __enter__(self) -> LossRows:
        self._file = self._opened() if self._written else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, row: Mapping[str, float]) -> None:
        if self._file is None:
            return
        try:
            self._file.write((json.dumps(row) + "\n").encode())
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def _opened(self) -> FileIO:
        try:
            return FileIO(self._path, "a")
        except OSError as error:
            raise _unwritable(self._path, error) from error


def _keep_rows(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break  # the kill came while this line was written
        if row["step"] <= step:
            kept.append(line)
    with atomic(path) as part:
        part.write_text("".join(line + "\n" for line in kept))


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot write {path}: {error.strerror}; free space or choose another --out")
