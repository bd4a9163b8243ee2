"""Caption files beside pictures, with metadata for those that have none; and kohya's folders `N_token class`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from captune import captions
from captune.errors import DataError
from captune.formats import TABLES, Options, Row, Written, _files, metadata
from captune.formats.metadata import Listed
from captune.prepare.scan import KOHYA_FOLDER, list_pictures, relative


def read(source: Path, options: Options) -> Iterator[Row]:
    """The folder's pictures, each with its caption file's text, else that of the nearest metadata file."""
    root = source.expanduser().absolute()
    tables: dict[Path, Mapping[str, Listed]] = {}
    for picture in list_pictures(source, 1).pictures:
        beside = captions.sidecar_path(picture.path, options.extension)
        if beside.is_file():
            said: Listed | None = Listed(*captions.read_encoded(beside))
        else:
            said = listed(picture.path, root, tables)
        text, encoding = said or (None, captions.UTF8)
        yield Row(relative(picture.path, root), text, picture.path, repeats=picture.repeats, encoding=encoding)


def write(rows: Iterable[Row], out: Path, options: Options) -> Written:
    """Write a caption file beside every picture; the pictures are copied to `out` where they are elsewhere."""
    count, without = 0, list[str]()
    taken: dict[Path, str] = {}
    for row in rows:
        picture = _files.inside(out, row.name)
        _files.put_picture(row, picture)
        count += _caption(row, picture, taken, without, options)
    return Written(count, out, tuple(without))


def write_kohya(rows: Iterable[Row], out: Path, options: Options) -> Written:
    """Write folders that kohya's scripts read: `<repeats>_<trigger word> <class word>`, pictures and caption files in them."""
    words = f"{options.trigger_word} {options.class_word}".strip()
    if not words:
        raise DataError("kohya's folders are named by the subject: give --trigger-word and --class-word")
    count, without = 0, list[str]()
    taken: dict[Path, str] = {}
    for row in rows:
        folder = f"{options.repeats or row.repeats}_{words}"
        parts = [p for p in PurePosixPath(row.name).parts if not KOHYA_FOLDER.match(p)]
        picture = _files.inside(out, f"{folder}/{'_'.join(parts)}")  # kohya's scripts do not look into subfolders
        _files.put_picture(row, picture)
        count += _caption(row, picture, taken, without, options)
    return Written(count, out, tuple(without))


def _caption(row: Row, picture: Path, taken: dict[Path, str], without: list[str], options: Options) -> int:
    """Write one picture's caption file; how many were written."""
    if row.text is None:
        without.append(row.name)
        return 0
    target = captions.sidecar_path(picture, options.extension)
    if target in taken:
        raise DataError(f"{taken[target]} and {row.name} would share the caption file {target}; rename one of them")
    taken[target] = row.name
    _files.put_text(captions.encoded(row.text, row.encoding), target, replace=options.replace)
    return 1


def listed(picture: Path, root: Path, tables: dict[Path, Mapping[str, Listed]]) -> Listed | None:
    """The picture's caption in the nearest metadata file, up to the data set's folder."""
    for parent in [p for p in picture.parents if p == root or root in p.parents]:
        for name in TABLES.values():
            path = parent / name
            if path not in tables:
                tables[path] = metadata.read(path) if path.is_file() else {}
            said = tables[path].get(captions.file_key(picture.relative_to(parent).as_posix()))
            if said is not None:
                return said
    return None
