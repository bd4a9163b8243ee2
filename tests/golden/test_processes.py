"""Promise 3: N processes give the losses and the LoRA of one, to rounding, and one that fails ends all in a sentence."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from captune import pipeline, recipe
from captune.errors import CaptuneError, RecipeError
from captune.progress import Silent
from captune.runs import RunFolder
from tests import tiny_base, tiny_flux

SOURCE = Path(__file__).parents[2] / "src"
# a short batch in every epoch, one of two processes with fewer pictures than the other, and every option that draws
RECIPE = """
dataset = {{ path = "{photos}", trigger_word = "zorblax", class_word = "ball", resolution = 16, repeats = 3 }}
base = {{ family = "{family}", model = "{base}", device = "cpu", precision = "fp32" }}
study = {{ reproduction_seeds = [] }}

[train]
rank = 2
alpha = 2
targets = "all_linear"
learning_rate = 1e-3
text_encoder_learning_rate = 1e-3
steps = 20
batch_size = 4
gradient_accumulation = 2
flip = true
caption_dropout = 0.2
dropout = 0.2
ema = 0.9
checkpoint_every_steps = 7

[[arm]]
name = "human"
captioner = {{ name = "sidecar" }}
"""


@pytest.fixture(scope="module", params=["sd", "flux"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    base = folder / "base"
    model = tiny_base.write_tiny_base(base) if request.param == "sd" else tiny_flux.write(base)
    photos = tiny_base.write_photos(folder / "photos")
    (folder / "recipe.toml").write_text(RECIPE.format(photos=photos, base=model, family=request.param))
    return folder


def run(made: Path, name: str, processes: int, *overrides: str) -> Path:
    chosen = recipe.read(made / "recipe.toml", overrides)
    pipeline.run(chosen, RunFolder(made / name), Silent(), upto="train", processes=processes)
    return made / name / "arms" / "human" / "seed-0" / "train"


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def difference(first: Path, second: Path) -> float:
    """The norm of what differs between two LoRA files, relative to the first's."""
    a, b = (load_file(folder / "adapter.safetensors") for folder in (first, second))
    assert a.keys() == b.keys()
    apart = sum(float((a[name] - b[name]).double().square().sum()) for name in a)
    whole = sum(float(value.double().square().sum()) for value in a.values())
    return float(torch.tensor(apart / whole).sqrt())


@pytest.fixture(scope="module")
def alone(made: Path) -> Path:
    return run(made, "alone", 1)


def test_two_processes_do_what_one_does(made: Path, alone: Path) -> None:
    two = run(made, "two", 2)
    assert losses(two) == pytest.approx(losses(alone), abs=1e-5)
    assert len(losses(two)) == 20
    assert difference(alone, two) < 1e-4
    facts = [json.loads((folder / "manifest.json").read_text()) for folder in (alone, two)]
    assert [f["processes"] for f in facts] == [1, 2]
    assert facts[0]["total_steps"] == facts[1]["total_steps"] == 20
    assert {p.name for p in alone.iterdir()} == {p.name for p in two.iterdir()}


def test_resumed_with_two_processes_it_goes_on_as_one_would(
    made: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(BaseException):
        """Stands for a kill of the leading process."""

    save = torch.save

    def at_step_14(content: object, file: object, **options: object) -> None:
        save(content, file, **options)  # type: ignore[arg-type]
        if isinstance(content, dict) and content.get("step") == 14:
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", at_step_14)
        with pytest.raises(Stopped):
            run(made, "resumed", 2)
    assert difference(alone, run(made, "resumed", 2)) < 1e-4


def test_a_process_that_cannot_go_on_ends_the_training_in_a_sentence(made: Path) -> None:
    """The step's loss is no number: every process sees it, the leading one tells, and nobody is left waiting."""
    with pytest.raises(CaptuneError, match=r"at step \d+ \(pictures: .*last good checkpoint: (none|step)"):
        run(made, "lost", 2, "train.learning_rate=1e30", "train.max_grad_norm=0")


def test_a_killed_process_ends_the_others_and_the_run_can_be_resumed(made: Path, alone: Path) -> None:
    rows = made / "orphan" / "arms" / "human" / "seed-0" / "train" / "losses.jsonl"

    def kill_the_follower() -> None:
        while not (rows.exists() and rows.read_text().count("\n") >= 9):
            time.sleep(0.01)
        for process in Path(f"/proc/{os.getpid()}/task").rglob("children"):
            for child in process.read_text().split():
                if "crew.serve(" in Path(f"/proc/{child}/cmdline").read_text():
                    os.kill(int(child), signal.SIGKILL)

    thread = threading.Thread(target=kill_the_follower)
    thread.start()
    with pytest.raises(CaptuneError, match="another process of this training is gone"):
        run(made, "orphan", 2)
    thread.join()
    assert difference(alone, run(made, "orphan", 1)) < 1e-4


def test_what_cannot_be_shared_is_refused_before_anything_starts(made: Path) -> None:
    with pytest.raises(RecipeError, match="= 8 is fewer pictures a step than 9 processes: set train.batch_size = 9"):
        run(made, "many", 9)


@pytest.mark.slow  # gloo has aborted processes at their end, once in several runs on a busy machine
def test_under_a_launcher_all_processes_take_part_and_one_writes(made: Path, alone: Path) -> None:
    """As accelerate launch and torchrun start them: the same command in every process, told apart by the environment."""
    folder = made / "launched"
    command = [sys.executable, "-m", "captune", "train", str(made / "recipe.toml"), "--out", str(folder)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        **{"PYTHONPATH": str(SOURCE), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        "GLOO_SOCKET_IFNAME": "lo",
    }
    started = [
        subprocess.Popen(command, env={**common, "RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE)
        for rank in ("0", "1")
    ]
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert b"trained:" in said[0] and said[1] == b""
    assert difference(alone, folder / "arms" / "human" / "seed-0" / "train") < 1e-4


@pytest.mark.slow
def test_the_command_with_two_processes_does_what_one_does(made: Path, alone: Path) -> None:
    """As a person types it: `captune run RECIPE --processes 2`, to the report."""
    ended = subprocess.run(
        [sys.executable, "-m", "captune", "run", "recipe.toml", "--out", "typed", "--processes", "2",
         "--set", "evaluate.metrics=[]"],
        cwd=made,
        env=os.environ | {"PYTHONPATH": str(SOURCE), "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    two = made / "typed" / "arms" / "human" / "seed-0" / "train"
    assert losses(two) == pytest.approx(losses(alone), abs=1e-5)
    assert difference(alone, two) < 1e-4
    assert json.loads((two / "manifest.json").read_text())["processes"] == 2
