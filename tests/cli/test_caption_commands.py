"""The commands around captions as a user meets them: a folder captioned, undone, compiled, linted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from captune import cli


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, words in enumerate(["a red ball", "a blue ball in the snow", "two balls", "a ball on grass"]):
        blocks = np.random.default_rng(index).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(blocks).resize((32, 32)).save(folder / f"{index}.png")
        (folder / f"{index}.caption").write_text(words)
    return folder


def said(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_folder_is_captioned_and_undone(photos: Path) -> None:
    (photos / "0.txt").write_text("mine")
    options = ("--captioner", "sidecar", "--set", "captioner.extension=.caption", "--trigger-word", "zorblax")
    code, out, _ = said("caption", photos, *options, "--set", "text.replace={ball='toy'}", "--json")
    assert code == 0 and json.loads(out)["written"] == ["1", "2", "3"]
    assert (photos / "1.txt").read_text() == "zorblax, a blue toy in the snow\n"
    assert (photos / "0.txt").read_text() == "mine"
    assert said("caption", photos, *options, "--replace")[0] == 0
    assert (photos / "0.txt").read_text() == "zorblax, a red ball\n"
    code, out, _ = said("captions", "undo", photos)
    assert code == 0 and "3 captions restored" in out  # "two balls" said the same both times
    assert (photos / "0.txt").read_text() == "mine"
    assert (photos / "1.txt").read_text() == "zorblax, a blue toy in the snow\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "say who captions it with --captioner"),
        (["--captioner", "blop"], "unknown captioner 'blop'; did you mean 'blip'?"),
        (["--captioner", "sidecar", "--append", "--replace"], "--replace and --append say different things"),
        (["--captioner", "blip", "--set", "text.max_tokens=9"], "name it: --set base.model="),
        (["--captioner", "blip", "--set", "text.absorb=0.5"], "give dataset.trigger_word"),
    ],
)
def test_mistakes_are_told(photos: Path, options: list[str], sentence: str) -> None:
    code, _, err = said("caption", photos, *options)
    assert code == 2 and sentence in " ".join(err.split())
    assert not (photos / "captions.jsonl").exists()


@pytest.mark.parametrize(
    ("command", "options", "refused"),
    [
        ("caption", ["--replace"], "--replace is not read for a recipe"),
        ("caption", ["--extension", ".caption"], "--extension is not read for a recipe"),
        ("lint", ["--family", "sdxl"], "--family is not read for a recipe"),
        ("export", ["--precision", "bf16"], "--precision is not read for a recipe"),
    ],
)
def test_options_that_a_recipe_does_not_read_are_refused(
    tmp_path: Path, command: str, options: list[str], refused: str
) -> None:
    (tmp_path / "recipe.toml").write_text("")
    code, _, err = said(command, tmp_path / "recipe.toml", *options)
    assert code == 2 and refused in err


@pytest.mark.parametrize(
    ("command", "source", "options", "refused"),
    [
        ("lint", "photos", ["--set", "sample.steps=2"], "of a folder's lint only train.* can be set"),
        ("lint", "photos", ["--family", "sdxl"], "--family is not read for a folder without --base"),
        ("export", "a.safetensors", ["--device", "cpu"], "--device is not read for a LoRA file"),
        ("export", "a.safetensors", ["--base", "mini"], "--base is not read for --format kohya"),
        ("compile-captions", "photos", ["--split", "test"], "--split is not read for a folder"),
        ("compile-captions", "photos", ["--repeats", "2"], "--repeats is not read for --format jsonl"),
        ("compile-captions", "photos", ["--per-shard", "2"], "--per-shard is not read for --format jsonl"),
    ],
)
def test_options_that_nothing_else_reads_are_refused(
    photos: Path, command: str, source: str, options: list[str], refused: str
) -> None:
    code, _, err = said(command, photos.parent / source, *options)
    assert code == 2 and refused in err


def test_captions_are_compiled_and_back(photos: Path, tmp_path: Path) -> None:
    code, out, _ = said("compile-captions", photos, "--extension", ".caption")
    assert code == 0 and "4 captions in" in out
    assert len((photos / "metadata.jsonl").read_text().splitlines()) == 4
    for form in ("webdataset", "csv", "sidecars"):
        target = tmp_path / form
        assert said("compile-captions", photos, target, "--format", form, "--extension", ".caption")[0] == 0
    back = tmp_path / "back"
    assert said("compile-captions", tmp_path / "webdataset", back, "--format", "sidecars", "--count", "2")[0] == 0
    assert sorted(p.name for p in back.iterdir()) == ["0.png", "0.txt", "1.png", "1.txt"]
    code, _, err = said("compile-captions", photos, "--format", "kohya")
    assert code == 2 and "name the folder to write" in err


def test_lint_tells_what_is_wrong_and_leaves_with_it(photos: Path) -> None:
    code, out, _ = said("lint", photos, "--extension", ".caption", "--class-word", "ball", "--json")
    assert (code, json.loads(out)) == (0, {"ok": True, "findings": []})
    code, out, _ = said("lint", photos, "--class-word", "ball", "--json")
    found = json.loads(out)["findings"]
    assert code == 1 and {row["code"] for row in found} == {"missing_caption"}
    assert {"code", "file", "message", "severity", "way_out"} == set(found[0])
    assert 'extension = ".caption" would read' in found[0]["message"]
    code, out, _ = said("lint", photos, "--resolution", "64", "--extension", ".caption", "--class-word", "ball")
    assert code == 0 and "4 findings" in out and "enlarged 2.00 times" in out
