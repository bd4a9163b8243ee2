"""`captune prepare FOLDER OUT` as a user meets it, and the recipe's form beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from captune import cli, detectors


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for index in range(3):
        cells = np.random.default_rng(index).integers(0, 255, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((120, 90)).save(tmp_path / f"photos/{index}.png")
    return tmp_path / "photos"


def captune(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["prepare", *arguments])


def test_folder_is_prepared_and_told_as_json(photos: Path) -> None:
    told = captune("photos", "out", "--resolution", "64", "--set", "prepare.focus=center", "--json")
    assert told.exit_code == 0, told.stderr
    facts = json.loads(told.stdout)
    assert (facts["pictures"], facts["already_done"], facts["images"]) == (3, False, "out/images")
    assert Image.open("out/images/0.png").size == (64, 64)
    again = captune("photos", "out", "--resolution", "64", "--set", "prepare.focus=center")
    assert again.exit_code == 0 and "nothing to do" in again.stdout


def test_mistakes_are_sentences(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = captune("photos")
    assert missing.exit_code == 2 and "name the new folder" in missing.stderr
    wrong = captune("photos", "out", "--crop", "round")
    assert wrong.exit_code == 2 and "prepare.crop = 'round'" in wrong.stderr
    nowhere = captune("nowhere", "out")
    assert nowhere.exit_code == 2 and "there is no folder nowhere" in nowhere.stderr
    monkeypatch.setattr(detectors, "missing", lambda name: "OpenCV is not installed")
    blind = captune("photos", "out", "--blur-faces", "all")
    assert blind.exit_code == 2 and "no face detector is installed" in blind.stderr
    assert not Path("out").exists()


def test_options_of_one_form_are_not_ignored_in_the_other(photos: Path) -> None:
    lines = ["[dataset]", 'path = "photos"', "resolution = 64", "[train]", "steps = 1"]
    Path("recipe.toml").write_text("\n".join([*lines, "[[arm]]", 'name = "a"', 'captioner = { name = "sidecar" }', ""]))
    done = captune("recipe.toml", "--crop", "bucket", "--set", "prepare.bucket_step=8", "--out", "run")
    assert done.exit_code == 0, done.stderr
    assert Image.open("run/prepare/images/0.png").size == (72, 56)
    for arguments in (
        ("recipe.toml", "--replace"),
        ("recipe.toml", "--workers", "2"),
        ("photos", "out", "--out", "x"),
        ("recipe.toml", "out"),
    ):
        refused = captune(*arguments)
        assert refused.exit_code == 2 and "is not read" in refused.stderr
