"""The tables of Hugging Face's imagefolder: metadata.jsonl, .csv or .parquet with `file_name` and `text`."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from captune import captions, runs
from captune.errors import DataError
from captune.formats import TABLES, Options, Row, Written, _files

COLUMNS = ("file_name", "text")
ENCODING = "encoding"  # a further column, where a caption file has a mark in front


class Listed(NamedTuple):
    """A caption of a table, every byte of it, and the encoding of the caption file that it came from."""

    text: str
    encoding: str = captions.UTF8


def read(path: Path) -> dict[str, Listed]:
    """The captions of a table by file name, every byte of them; rows without a caption are left out."""
    found: dict[str, Listed] = {}
    for place, row in _rows(path):
        name, said = row.get("file_name"), [row[k] for k in captions.CAPTION_KEYS if row.get(k) is not None]
        if not isinstance(name, str) or not name:
            raise DataError(f'{path}, {place}: has no "file_name"')
        if captions.file_key(name) in found:
            raise DataError(f"{path} names {name!r} twice; keep one")
        if said:
            if not isinstance(said[0], str):
                raise DataError(f"{path}, {place}: the caption must be text, not {type(said[0]).__name__}")
            found[captions.file_key(name)] = Listed(said[0], str(row.get(ENCODING) or captions.UTF8))
    return found


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".parquet":
        for number, row in enumerate(_pyarrow(path).read_table(path).to_pylist(), 1):
            yield f"row {number}", row
        return
    text = captions.read_exact(path)
    if path.suffix == ".csv":
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
            yield f"row {number}", row
        return
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: texts may hold U+2028
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: must be an object")
            yield f"line {number}", row


def write_jsonl(rows: Iterable[Row], out: Path, options: Options) -> Written:
    """Write metadata.jsonl, one object a line."""
    return _write("jsonl", _as_jsonl, rows, out, options)


def write_csv(rows: Iterable[Row], out: Path, options: Options) -> Written:
    """Write metadata.csv; line breaks within captions stand in quotes."""
    return _write("csv", _as_csv, rows, out, options)


def write_parquet(rows: Iterable[Row], out: Path, options: Options) -> Written:
    """Write metadata.parquet."""
    return _write("parquet", _as_parquet, rows, out, options)


def _write(form: str, encode: Any, rows: Iterable[Row], out: Path, options: Options) -> Written:
    """A table in the folder `out`, with the pictures; or, if `out` is a file's name, the table alone."""
    alone = bool(out.suffix) and not out.is_dir()
    table, without = list[dict[str, str]](), []
    for row in rows:
        if row.text is None:
            without.append(row.name)
            continue
        if not alone:
            _files.put_picture(row, _files.inside(out, row.name))
        table.append({"file_name": row.name, "text": row.text})
        if row.encoding != captions.UTF8:
            table[-1][ENCODING] = row.encoding
    target = out if alone else out / TABLES[form]
    data = encode(table, target)
    if target.is_file() and target.read_bytes() != data and not options.replace:
        raise DataError(f"{target} is there already; use --replace to write over it")
    with runs.atomic(target) as part:
        part.write_bytes(data)
    return Written(len(table), target, tuple(without))


def _columns(table: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    return (*COLUMNS, ENCODING) if any(ENCODING in row for row in table) else COLUMNS


def _as_jsonl(table: list[Mapping[str, str]], path: Path) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table).encode()


def _as_csv(table: list[Mapping[str, str]], path: Path) -> bytes:
    buffer = io.StringIO(newline="")
    # All in quotes: an unquoted carriage return would end the row for the next reader.
    writer = csv.DictWriter(buffer, _columns(table), restval="", quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return buffer.getvalue().encode()


def _as_parquet(table: list[Mapping[str, str]], path: Path) -> bytes:
    parquet = _pyarrow(path)
    import pyarrow

    columns = {name: pyarrow.array([row.get(name) for row in table], pyarrow.string()) for name in _columns(table)}
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def _pyarrow(path: Path) -> Any:
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"{path} needs the package pyarrow: pip install 'captune[datasets]'")
    import pyarrow.parquet

    return pyarrow.parquet
