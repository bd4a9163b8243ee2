"""Another user's mistakes: one clear sentence each, the right exit code, no traceback, nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny_base

SOURCE = Path(__file__).parents[2] / "src"
RECIPE = """
[dataset]
path = "photos"
trigger_word = "zorblax"
resolution = 16

[base]
model = "base"
device = "cpu"

[train]
rank = 2
alpha = 2
steps = {steps}
batch_size = 2
checkpoint_every_steps = 50

[[arm]]
name = "human"
captioner = {{ name = "sidecar" }}

[evaluate]
metrics = []
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_base.write_tiny_base(tmp_path_factory.mktemp("base")))


@pytest.fixture
def place(tmp_path: Path, base: Path) -> Path:
    """A folder with photographs, a base model and a recipe that works."""
    tiny_base.write_photos(tmp_path / "photos")
    (tmp_path / "base").symlink_to(base)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(steps=2))
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "captune", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(SOURCE), "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "500"}


def told(place: Path, *arguments: str, code: int = 2) -> str:
    """What the command says on stderr; checks its exit code and that it shows no traceback."""
    ended = subprocess.run(
        command("run", "recipe.toml", *arguments),
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    return ended.stderr


def test_a_recipe_that_works_ends_well_and_a_second_run_says_so(place: Path) -> None:
    told(place, code=0)
    again = subprocess.run(command("run", "recipe.toml"), cwd=place, env=environment(), capture_output=True, text=True)
    assert again.returncode == 0 and "nothing to do" in again.stdout


def test_an_empty_folder(place: Path) -> None:
    (place / "nothing").mkdir()
    assert "nothing" in told(place, "--set", "dataset.path=nothing")


def test_a_folder_that_is_not_there(place: Path) -> None:
    assert "nowhere" in told(place, "--set", "dataset.path=nowhere")


def test_pictures_without_captions_are_named(place: Path) -> None:
    for name in ("0.txt", "3.txt"):
        (place / "photos" / name).unlink()
    text = told(place)
    assert "0.png" in text and "3.png" in text and ".txt" in text


def test_a_text_file_named_jpg_is_skipped_by_name_and_the_rest_is_used(place: Path) -> None:
    (place / "photos" / "notes.jpg").write_text("not a picture")
    assert "notes.jpg" in told(place, code=0)


def test_a_missing_model_folder(place: Path) -> None:
    assert "./models/none" in told(place, "--set", "base.model=./models/none")


def test_a_folder_that_is_no_model(place: Path) -> None:
    assert "model_index.json" in told(place, "--set", "base.model=photos")


def test_a_hub_model_without_a_network_says_how_to_get_it(place: Path) -> None:
    text = told(place, "--set", "base.model=someone/some-model")
    assert "someone/some-model" in text and "hf download someone/some-model" in text


def test_all_recipe_errors_at_once(place: Path) -> None:
    text = (place / "recipe.toml").read_text().replace("rank = 2", "rnak = 2\nrank = 0") + "\n[trian]\nsteps = 3\n"
    (place / "recipe.toml").write_text(text)
    errors = told(place)
    assert "did you mean 'rank'" in errors and "did you mean 'train'" in errors and "train.rank = 0" in errors


def test_an_unknown_part_is_told_before_anything_is_done(place: Path) -> None:
    errors = told(place, "--set", 'evaluate.metrics=["clip_x"]', "--set", "base.family=sdd")
    assert "clip_x" in errors and "sdd" in errors
    assert not (place / "runs" / "recipe" / "prepare").exists()


def test_an_unwritable_run_folder(place: Path) -> None:
    (place / "file").write_text("in the way")
    assert "cannot write the run folder file/run" in told(place, "--out", "file/run")


def test_ctrl_c_loses_nothing(place: Path) -> None:
    (place / "recipe.toml").write_text(RECIPE.format(steps=400))
    running = subprocess.Popen(
        command("train", "recipe.toml", "--out", "stopped"),
        cwd=place,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # what a shell starts in the background, the tests too, ignores Ctrl-C and hands that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    rows = place / "stopped" / "arms" / "human" / "seed-0" / "train" / "losses.jsonl"
    deadline = time.monotonic() + 240
    while not (rows.exists() and rows.read_text().count("\n") > 60) and time.monotonic() < deadline:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "run the same command again to continue" in errors and "Traceback" not in errors
    for folder in ("stopped", "whole"):
        subprocess.run(command("train", "recipe.toml", "--out", folder), cwd=place, env=environment(), check=True)
    adapters = [place / f / "arms" / "human" / "seed-0" / "train" / "adapter.safetensors" for f in ("stopped", "whole")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
