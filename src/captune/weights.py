"""Where a model's files are: embedded in the package, in a folder, or on the Hugging Face hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

from captune.errors import ModelError

EMBEDDED = Path(__file__).parent / "mini" / "weights"
MINI = "mini"
ENDS = 4 << 20  # bytes read at either end of a weights file to tell it from another


def locate(model: str, kind: str) -> str:
    """The path or hub name behind a recipe's `model`; `kind` is the embedded folder's name (sd, clip, blip).

    Raises ModelError for a folder that does not exist; a hub name is only looked up when it is loaded.
    """
    if model == MINI:
        return str(EMBEDDED / kind)
    path = Path(model).expanduser()
    if path.exists():
        return str(path)
    a_file = path.suffix in (".safetensors", ".ckpt")
    looks_local = a_file or path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1
    if looks_local:
        raise ModelError(
            f"there is no model at {model!r}: give `mini` (embedded), a folder or file that exists, or a hub name like "
            "owner/name"
        )
    return model


def check_file(model: str) -> None:
    """Raise a ModelError for a single file that is no checkpoint, by its first bytes: before other files are asked for."""
    path = Path(model).expanduser()
    if not path.is_file():
        return
    if path.suffix not in (".safetensors", ".ckpt", ".pt", ".pth"):
        raise ModelError(f"{path}: a checkpoint's name ends in .safetensors or .ckpt, and {path.suffix!r} is neither")
    try:
        with open(path, "rb") as file:
            begin = file.read(9)
    except OSError as error:
        raise ModelError(f"the base {path} cannot be read: {error.strerror}") from error
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        sound = len(begin) == 9 and int.from_bytes(begin[:8], "little") + 8 <= size and begin[8:] == b"{"
    else:
        sound = begin.startswith((b"PK\x03\x04", b"\x80"))  # torch's archives, and its older pickles
    if not sound:
        raise ModelError(
            f"the base {path} ({size} bytes) is no checkpoint: it was cut off, or is something else under that name; "
            "copy or download it again"
        )


def loading_failed(model: str, what: str, error: Exception) -> ModelError:
    """One sentence for a model that could not be loaded: offline, unknown, gated, or broken."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(model).expanduser().exists():
        return ModelError(f"the {what} in {model} could not be loaded: {reason}")
    return ModelError(
        f"the {what} {model!r} is not on this machine and the hub did not give it ({reason}); with a network, run "
        f"`hf download {model}` once (log in with `hf auth login` if it is gated), or name a local folder instead"
    )


def identity(model: str, kind: str, revision: str | None = None) -> str:
    """What a model is, without loading it: a hash of a folder's files (long ones by size and ends), or name@revision."""
    place = locate(model, kind)
    root = Path(place)
    if not root.exists():
        return f"{place}@{revision or 'main'}"
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root).as_posix()} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(ENDS))
            if size > ENDS:
                file.seek(max(ENDS, size - ENDS))
                digest.update(file.read(ENDS))
    return digest.hexdigest()
