"""The run folder: where each stage writes, what it was made from, and whether it is already done.

A stage is done when its manifest names the same inputs (settings, hashes of what it read, code version). Every write is
atomic: a temporary file in the same folder, flushed to disk, then renamed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import captune
from captune.errors import DataError

Record = TypeVar("Record")
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "pillow", "numpy")


def sha256_of(path: Path) -> str:
    """The file's SHA-256 as hexadecimal text."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


_PART = re.compile(r"\..+\.(\d+)\.part")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes its place whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another --out"
        ) from error
    finally:
        with suppress(OSError):  # where nothing could be written, nothing is left to remove
            part.unlink()


def sweep(folder: Path) -> None:
    """Remove the temporary files that processes left below the folder when they were killed while they wrote."""
    for part in folder.rglob(".*.part"):
        match = _PART.fullmatch(part.name)
        if match and not _alive(int(match[1])):
            part.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False  # this process has begun nothing yet: the file is of an earlier one of that number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's process
    return True


def write_text(path: Path, text: str) -> None:
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def write_records(path: Path, records: Iterable[Any]) -> None:
    """One JSON object a line; paths are stored as text, those near the file relative to its folder, others absolute."""
    with atomic(path) as part, open(part, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(plain(record, below=path.parent), ensure_ascii=False) + "\n")


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """The records of a file that `write_records` wrote, as frozen dataclasses of `kind`."""
    hints = {f.name: str(f.type) for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    records = []
    for line in path.read_text(encoding="utf-8").split("\n"):  # not splitlines: texts may hold U+2028
        if not line:
            continue
        row = json.loads(line)
        for name, hint in hints.items():
            if hint in ("Path", "Path | None") and row.get(name) is not None:
                row[name] = Path(os.path.normpath(path.parent / row[name]))
            elif hint.startswith("tuple") and name in row:
                row[name] = tupled(row[name])
        records.append(kind(**row))
    return records


def tupled(value: Any) -> Any:
    """JSON's lists as the tuples that they were in a record."""
    if isinstance(value, dict):
        return {k: tupled(v) for k, v in value.items()}
    return tuple(tupled(v) for v in value) if isinstance(value, list) else value


def plain(value: Any, below: Path | None = None) -> Any:
    """Dataclasses, paths and tuples as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), below) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        if below is None:
            return str(value)
        path, folder = os.path.abspath(value), os.path.abspath(below)
        return os.path.relpath(path, folder) if Path(folder).parent in Path(path).parents else path
    if isinstance(value, Mapping):
        return {str(k): plain(v, below) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v, below) for v in value]
    return value


def fingerprint(value: Any) -> str:
    """A hash of any plain value, the same for equal values."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that shape results."""
    found = {"python": platform.python_version(), "captune": captune.__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def machine() -> str:
    """The machine in words: system, processor, cores."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    return f"{platform.system()}, {processor}, {os.cpu_count()} cores"


def peak_mib() -> float:
    """Peak resident memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / (1 << 10)


class StageFolder:
    """One stage's folder within a run, with its manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._began = time.perf_counter()
        self._spent = 0.0

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def manifest(self) -> dict[str, Any]:
        """The manifest as written, or an empty dict."""
        try:
            value = json.loads(self.manifest_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def done(self, inputs: Mapping[str, Any]) -> bool:
        """Whether this stage already ran on exactly these inputs, and what it made still lies there unchanged."""
        manifest = self.manifest()
        if manifest.get("fingerprint") != fingerprint(inputs):
            return False
        outputs = manifest.get("outputs", {})
        return all((self.path / name).is_file() and sha256_of(self.path / name) == h for name, h in outputs.items())

    def begin(self, inputs: Mapping[str, Any], *, keep: bool = False) -> None:
        """Make the folder ready. What other inputs left there is removed; `keep` keeps what equal inputs left."""
        started = self.path / "started.json"
        mark = fingerprint(inputs)
        try:
            same = keep and json.loads(started.read_text(encoding="utf-8")).get("fingerprint") == mark
        except (OSError, ValueError):
            same = False
        try:
            if not same and self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot write the run folder {self.path}: {error.strerror}; choose another --out"
            ) from error
        before = json.loads(started.read_text(encoding="utf-8")).get("seconds", 0.0) if same else 0.0
        self._spent, self._began = before, time.perf_counter()
        write_json(started, {"fingerprint": mark, "seconds": before})

    def pause(self, inputs: Mapping[str, Any]) -> None:
        """Note the seconds spent so far, so that a run that is killed and continued still knows what it cost."""
        seconds = self._spent + time.perf_counter() - self._began
        write_json(self.path / "started.json", {"fingerprint": fingerprint(inputs), "seconds": seconds})

    def finish(self, inputs: Mapping[str, Any], outputs: Iterable[Path] = (), **facts: Any) -> None:
        """Write the manifest: from now on the stage is done for these inputs. `facts` are kept under their names."""
        manifest = {
            "fingerprint": fingerprint(inputs),
            "inputs": plain(inputs),
            "outputs": {os.path.relpath(p, self.path): sha256_of(p) for p in outputs},
            "seconds": round(self._spent + time.perf_counter() - self._began, 3),
            "peak_mib": round(peak_mib(), 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "machine": machine(),
            **plain(facts),
        }
        write_json(self.manifest_path, manifest)
        (self.path / "started.json").unlink(missing_ok=True)


class RunFolder:
    """`runs/<name>/`: the paths of all stages. Nothing is created before a stage begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    def stage(self, name: str) -> StageFolder:
        """A stage of the whole run: prepare, base/sample, regularization, evaluate, report."""
        return StageFolder(self.path / name)

    def arm(self, arm: str, stage: str) -> StageFolder:
        """A stage of one arm that all its trainings share: caption, tokens."""
        return StageFolder(self.path / "arms" / arm / stage)

    def training(self, arm: str, seed: int, stage: str) -> StageFolder:
        """A stage of one training of an arm: train, sample, reproduction, export."""
        return StageFolder(self.path / "arms" / arm / f"seed-{seed}" / stage)

    def check_writable(self) -> None:
        """Fail early, and in a sentence, when the folder cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable.{os.getpid()}.part"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise DataError(
                f"cannot write the run folder {self.path}: {error.strerror}; choose another --out"
            ) from error
