"""Bad pictures, captions, checkpoints and disks: each a sentence or a named skip, exit code 2 where it stops, nothing lost."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from captune import cli
from tests import tiny_base

RECIPE = """
dataset = { path = "photos", trigger_word = "zorblax", resolution = 16 }
base = { model = "base", device = "cpu" }
train = { rank = 2, alpha = 2, steps = 4, batch_size = 2, checkpoint_every_steps = 2 }
evaluate = { metrics = [] }

[[arm]]
name = "human"
captioner = { name = "sidecar" }
"""
TRAINED = Path("arms/human/seed-0/train")
Told = Callable[..., str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_base.write_tiny_base(tmp_path_factory.mktemp("base")))


@pytest.fixture
def photos(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pictures beside a recipe that works, in the folder one stands in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(base)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tiny_base.write_photos(tmp_path / "photos")


def told(stage: str, *arguments: str, code: int = 0) -> str:
    """What the command says on stderr; checks its exit code, and that no traceback is shown."""
    ended = CliRunner().invoke(cli.app, [stage, "recipe.toml", "--out", "run", *arguments])
    assert ended.exit_code == code, ended.output
    assert "Traceback" not in ended.output and "unexpected" not in ended.output
    return ended.stderr.replace("\n", " ")


def test_pictures_of_every_kind_are_read_or_skipped_by_name(photos: Path) -> None:
    def save(name: str, picture: Image.Image, **how: object) -> None:
        picture.save(photos / name, **how)  # type: ignore[arg-type]
        (photos / name).with_suffix(".txt").write_text("a ball")

    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8))
    save("cut.jpg", noise)
    (photos / "cut.jpg").write_bytes((photos / "cut.jpg").read_bytes()[:500])
    save("dot.png", Image.new("RGB", (1, 1)))
    (photos / "nothing.png").write_bytes(b"")
    save("print.jpg", noise.convert("CMYK"))
    save("deep.png", Image.fromarray(np.full((20, 20), 65535, np.uint16)))
    save("moving.gif", noise, save_all=True, append_images=[noise.rotate(90)])
    clear = noise.convert("RGBA")
    clear.putalpha(0)
    save("clear.png", clear)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    save("turned.jpg", noise, exif=rotated)
    text = told("prepare", "--set", "prepare.crop=bucket", "--set", "prepare.bucket_step=8")
    assert "skipped cut.jpg: the file is cut off" in text
    assert "skipped dot.png: 1 x 1 pixels are too few" in text
    assert "skipped nothing.png: the file is empty (0 bytes)" in text
    assert "moving.gif has 2 frames or pages; only the first is used" in text
    made = {path.stem: Image.open(path) for path in Path("run/prepare/images").glob("*.png")}
    assert set(made) == {"print", "deep", "moving", "clear", "turned", *"01234"}
    assert all(picture.mode == "RGB" for picture in made.values())
    assert made["turned"].height > made["turned"].width  # as a viewer shows it
    assert made["deep"].getpixel((5, 5)) == made["clear"].getpixel((5, 5)) == (255, 255, 255)


def test_captions_in_other_encodings_are_read_or_refused_by_name(photos: Path) -> None:
    (photos / "0.txt").write_bytes("a bàll".encode("utf-16"))
    (photos / "1.txt").write_bytes("\ufeffa bàll".encode())
    told("caption")
    captions = Path("run/arms/human/caption")
    said = "\n".join(path.read_text(encoding="utf-8") for path in sorted(captions.rglob("*.txt")))
    assert said.count("zorblax, a bàll") == 2
    (photos / "3.txt").write_bytes("a bàll".encode("latin-1"))
    assert "3.txt is not UTF-8 (byte 3); save it as UTF-8" in told("caption", code=2)


def test_an_empty_caption_is_named(photos: Path) -> None:
    (photos / "2.txt").write_bytes(b"")
    assert "a caption file is empty: 2.txt; write its caption or take its picture out" in told("caption", code=2)


def test_a_picture_without_a_caption_is_named(photos: Path) -> None:
    (photos / "3.txt").unlink()
    assert "3.png" in told("caption", code=2)


def test_two_pictures_of_one_name_are_both_kept_and_told(photos: Path) -> None:
    Image.new("RGB", (24, 24), "white").save(photos / "0.jpg")
    text = told("caption")
    assert len(list(Path("run/prepare/images").glob("*.png"))) == 6
    assert "0.jpg and 0.png have the same name and so the same caption file" in text


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.ckpt", "empty.ckpt", "odd.bin"])
def test_a_base_that_cannot_be_read_is_named(photos: Path, name: str) -> None:
    Path(name).write_bytes(b"" if name.startswith("empty") else b"no weights in here at all")
    assert name in told("train", "--set", f"base.model=./{name}", code=2)


def test_a_checkpoint_that_cannot_be_read_is_named_and_kept(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_at(monkeypatch, "adapter.safetensors")
    told("train", code=2)
    monkeypatch.undo()
    monkeypatch.chdir(photos.parent)
    checkpoint = Path("run") / TRAINED / "checkpoint.pt"
    checkpoint.write_bytes(b"torn")
    assert f"the checkpoint {checkpoint} cannot be read" in told("train", code=2)
    assert checkpoint.read_bytes() == b"torn"


def _fail_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The disk is full when a file of that name takes its place."""
    replace = os.replace

    def full(source: object, target: object) -> None:
        if str(target).endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "replace", full)


@pytest.mark.parametrize("name", ["adapter.safetensors", "checkpoint.pt", "manifest.json", "examples.jsonl"])
def test_a_full_disk_is_told_and_what_was_done_is_kept(
    photos: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _fail_at(patch, name)
        text = told("train", code=2)
    assert name in text and "No space left on device" in text and "free space" in text
    told("train")
    ended = CliRunner().invoke(cli.app, ["train", "recipe.toml", "--out", "whole"])
    assert ended.exit_code == 0
    files = [Path(run) / TRAINED / "adapter.safetensors" for run in ("run", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not list(Path("run").rglob("*.part"))


@pytest.mark.skipif(sys.platform != "linux", reason="a place that nobody may write to is known on Linux alone")
def test_a_read_only_folder_is_told_before_any_work(photos: Path) -> None:
    ended = CliRunner().invoke(cli.app, ["run", "recipe.toml", "--out", "/sys/run"])
    assert ended.exit_code == 2 and "cannot write the run folder /sys/run" in ended.stderr.replace("\n", " ")
