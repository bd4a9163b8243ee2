"""WebDataset: tar files whose members with one name before the first dot are one sample (picture, .txt, .json)."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from captune import captions, images, runs
from captune.errors import DataError
from captune.formats import Options, Row, Written
from captune.formats.metadata import ENCODING

TEXTS = ("txt", "caption", "cap", "text")


def shards(source: Path) -> list[Path]:
    """The shards of a folder, or the one that `source` is."""
    if source.is_file() and source.suffix == ".tar":
        return [source]
    return sorted(source.glob("*.tar")) if source.is_dir() else []


def read(tars: Sequence[Path]) -> Iterator[Row]:
    """The samples of the shards, one in memory at a time.

    The picture's own name is taken from the sample's .json (`file_name`) where that has one.
    """
    for path in tars:
        try:
            with tarfile.open(path) as tar:
                yield from _samples(tar, path)
        except (tarfile.TarError, EOFError) as error:
            raise DataError(f"the shard {path} cannot be read: {error}") from error


def _samples(tar: tarfile.TarFile, path: Path) -> Iterator[Row]:
    key, parts = "", dict[str, bytes]()
    for member in tar:
        if not member.isfile():
            continue
        pure = PurePosixPath(member.name)
        stem, _, extension = pure.name.partition(".")
        name = (pure.parent / stem).as_posix()
        if name != key and parts:
            yield from _sample(key, parts, path)
            parts = {}
        file = tar.extractfile(member)
        key, parts[extension.lower()] = name, file.read() if file is not None else b""
    if parts:
        yield from _sample(key, parts, path)


def _sample(key: str, parts: dict[str, bytes], path: Path) -> Iterator[Row]:
    """The row of one sample; none where it has no picture."""
    extension = next((e for e in parts if f".{e}" in images.extensions()), None)
    if extension is None:
        return
    place = f"{path.name}: {key}"
    facts: dict[str, object] = {}
    if "json" in parts:
        try:
            loaded = json.loads(parts["json"])
        except ValueError as error:
            raise DataError(f"{path}: {key}.json is not JSON ({error})") from error
        facts = loaded if isinstance(loaded, dict) else {}
    said = next((captions.decoded(parts[e], f"{place}.{e}") for e in TEXTS if e in parts), None)
    if said is None:
        said = next((str(facts[k]) for k in captions.CAPTION_KEYS if isinstance(facts.get(k), str)), None)
    name = facts.get("file_name")
    encoding = str(facts.get(ENCODING) or captions.UTF8)
    named = name if isinstance(name, str) else f"{key}.{extension}"
    yield Row(named, said, content=parts[extension], encoding=encoding)


def write(rows: Iterable[Row], out: Path, options: Options) -> Written:
    """Write shards 00000.tar, 00001.tar, ... of `options.per_shard` samples; equal rows give equal bytes."""
    if shards(out) and not options.replace:
        raise DataError(f"{out} has shards already; use --replace to write over them, or choose another folder")
    without: list[str] = []
    waiting, number, count = iter(rows), 0, 0
    while batch := list(islice(waiting, options.per_shard)):
        with runs.atomic(out / f"{number:05}.tar") as part, tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
            for index, row in enumerate(batch, number * options.per_shard):
                _add(tar, f"{index:08}", row, without)
                count += row.text is not None
        number += 1
    for old in shards(out)[number:]:
        old.unlink()
    return Written(count, out, tuple(without))


def _add(tar: tarfile.TarFile, key: str, row: Row, without: list[str]) -> None:
    # A number as the key: a name with a dot in it would be cut at the dot by whoever reads it.
    extension = PurePosixPath(row.name).suffix.lower().lstrip(".") or "png"
    members = {extension: row.read()}
    if row.text is None:
        without.append(row.name)
    else:
        members["txt"] = row.text.encode()
    facts = {"file_name": row.name} | ({ENCODING: row.encoding} if row.encoding != captions.UTF8 else {})
    members["json"] = json.dumps(facts, ensure_ascii=False).encode()
    for ending, data in members.items():
        member = tarfile.TarInfo(f"{key}.{ending}")
        member.size, member.mode = len(data), 0o644
        tar.addfile(member, io.BytesIO(data))
