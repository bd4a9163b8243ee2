"""The command line as a user meets it: quick help, one sentence per mistake, exit codes that scripts can read."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import captune
from captune import cli
from captune.errors import DataError, TrainingError

SOURCE = Path(__file__).parents[2] / "src"
GOOD = """
[dataset]
path = "photos"

[train]
steps = 10

[[arm]]
name = "human"
captioner = { name = "sidecar" }
"""


@dataclass
class Ended:
    code: int
    out: str
    err: str


def captune_in(folder: Path, *arguments: str, **environment: str) -> Ended:
    """Run the command in a process of its own, as a user does."""
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    result = subprocess.run(
        [sys.executable, "-m", "captune", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "NO_COLOR": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ended(result.returncode, result.stdout, result.stderr)


def written(folder: Path, text: str = GOOD) -> Path:
    file = folder / "recipe.toml"
    file.write_text(text, encoding="utf-8")
    return file


@dataclass(frozen=True)
class Outcome:
    verdict: str = "human follows the prompt better"
    report: Path | None = Path("runs/recipe/report/index.html")
    already_done: bool = False
    summary: dict[str, Any] = field(default_factory=lambda: {"tokens": 3})
    failures: tuple[Any, ...] = ()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ended]:
    """Run a command in this process, with `story` in the pipeline's place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CAPTUNE_DEBUG", raising=False)
    written(tmp_path)

    def invoke(*arguments: str, story: Callable[..., Outcome] = lambda *_, **__: Outcome()) -> Ended:
        pipeline = ModuleType("captune.pipeline")
        pipeline.run = story  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "captune.pipeline", pipeline)
        monkeypatch.setattr(captune, "pipeline", pipeline, raising=False)
        result = CliRunner().invoke(cli.app, list(arguments))
        return Ended(result.exit_code, result.stdout, result.stderr)

    return invoke


def failing(error: BaseException) -> Callable[..., Outcome]:
    def story(*_: Any, **__: Any) -> Outcome:
        raise error

    return story


def test_help_and_a_recipes_mistakes_load_no_heavy_library(tmp_path: Path) -> None:
    written(tmp_path, GOOD.replace("steps", "stesp"))
    script = f"""
import sys
from captune import cli
for arguments in (["--help"], ["run", "--help"], [], ["run", {str(tmp_path / "recipe.toml")!r}]):
    try:
        cli.app(arguments)
    except SystemExit:
        pass
heavy = {{"torch", "diffusers", "transformers", "PIL", "numpy", "peft", "accelerate"}}
print("heavy:", sorted(heavy & set(sys.modules)))
"""
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "heavy: []"
    assert "did you mean 'steps'?" in result.stderr


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_names_every_command(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ended = captune_in(tmp_path, *arguments)
    assert ended.code == 0
    for command in (
        "run",
        "demo",
        "plan",
        *cli.STAGES,
        "export",
        "doctor",
        "study",
        "inspect",
        "import",
        "score-captions",
    ):
        assert f" {command} " in ended.out


def test_every_option_and_argument_of_every_command_says_what_it_is() -> None:
    def commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            yield f"{above}{name}", command
            if hasattr(command, "commands"):
                yield from commands(command, f"{above}{name} ")

    found = list(commands(typer.main.get_command(cli.app)))
    silent = [
        f"{name} {parameter.opts[0]}"
        for name, command in found
        for parameter in command.params
        if not (getattr(parameter, "help", None) or "").strip().endswith((".", "..."))
    ]
    assert len(found) > 15 and silent == []


def test_version(tmp_path: Path) -> None:
    assert captune_in(tmp_path, "--version").out == f"captune {captune.__version__}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("[train]", "[trian]"), ["trian: unknown key; did you mean 'train'?"]),
        (GOOD.replace("steps", "rnak = 4\nsteps"), ["train.rnak: unknown key; did you mean 'rank'?"]),
        (GOOD.replace("steps", "rank = 0\nsteps"), ["train.rank = 0", "greater than or equal to 1"]),
        (
            GOOD.replace("steps", "rank = 0\nrnak = 4\nsteps").replace("path", "paht"),
            ["4 problems", "dataset.path: is missing", "dataset.paht: unknown key", "train.rank = 0", "train.rnak"],
        ),
        (GOOD.replace("[train]", "[train"), ["recipe.toml is not valid TOML"]),
        (None, ["there is no recipe"]),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_mistake_in_the_recipe_is_told_and_nothing_is_made(
    tmp_path: Path, command: str, text: str | None, expected: list[str]
) -> None:
    if text is not None:
        written(tmp_path, text)
    before = sorted(tmp_path.iterdir())
    ended = captune_in(tmp_path, command, "recipe.toml")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert [words for words in expected if words not in ended.err] == []
    assert "Traceback" not in ended.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run",), "Missing argument"),
        (("rnu", "recipe.toml"), "No such command"),
        (("run", "recipe.toml", "--otu", "x"), "No such option"),
        (("run", "recipe.toml", "--set", "rank"), "write it as section.key=value"),
    ],
)
def test_mistake_on_the_command_line_is_told(
    run: Callable[..., Ended], arguments: tuple[str, ...], expected: str
) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert expected in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("command", ["run", *cli.STAGES, "export"])
def test_command_runs_the_story_up_to_its_stage(run: Callable[..., Ended], command: str) -> None:
    seen: list[Any] = []

    def story(recipe: Any, folder: Any, progress: Any, *, upto: str | None, command: str, processes: int) -> Outcome:
        seen.append((recipe, folder.path, upto))
        return Outcome()

    ended = run(command, "recipe.toml", "--set", "train.rank=3", "--device", "cuda:1", story=story)
    assert ended.code == 0, ended.err
    ((recipe, folder, upto),) = seen
    assert (recipe.train.rank, recipe.base.device) == (3, "cuda:1")
    assert folder == Path("runs/recipe")
    assert upto == (None if command == "run" else command)


def test_run_prints_verdict_and_report(run: Callable[..., Ended]) -> None:
    ended = run("run", "recipe.toml")
    assert ended.out.splitlines() == ["human follows the prompt better", "report: runs/recipe/report/index.html"]


def test_second_run_says_that_all_is_done(run: Callable[..., Ended]) -> None:
    ended = run("run", "recipe.toml", story=lambda *_, **__: Outcome(already_done=True))
    assert ended.out.startswith("nothing to do: all of this was done before, in runs/recipe\n")


def test_json_is_all_that_is_on_stdout(run: Callable[..., Ended]) -> None:
    def story(recipe: Any, folder: Any, progress: Any, **_: Any) -> Outcome:
        progress.say("a line for people")
        return Outcome()

    ended = run("run", "recipe.toml", "--json", "--out", "here", story=story)
    found = json.loads(ended.out)
    assert found["run"] == "here"
    assert (found["verdict"], found["summary"]) == ("human follows the prompt better", {"tokens": 3})
    assert "a line for people" in ended.err


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (DataError("photos holds no picture [yet]"), 2, "error: photos holds no picture [yet]\n"),
        (TrainingError("the loss is not a number at step 3"), 1, "error: the loss is not a number at step 3\n"),
        (KeyboardInterrupt(), 130, "stopped; run the same command again to continue\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.pt"), 2, "error: the disk is full ("),
        (RuntimeError(f"[enforce fail] {os.strerror(errno.ENOSPC)}"), 2, "error: the disk is full ("),
        (MemoryError(), 1, "error: out of memory (MemoryError); try a smaller train.batch_size"),
    ],
)
def test_trouble_is_told_in_a_sentence(
    run: Callable[..., Ended], error: BaseException, code: int, expected: str
) -> None:
    ended = run("run", "recipe.toml", story=failing(error))
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith(expected)
    assert "Traceback" not in ended.err


def test_unexpected_error_leaves_its_details_in_the_run_folder(run: Callable[..., Ended], tmp_path: Path) -> None:
    ended = run("run", "recipe.toml", story=failing(ValueError("odd value\nsecond line")))
    assert ended.code == 1
    assert ended.err.startswith("error: unexpected ValueError: odd value (details: runs/recipe/error.log)")
    assert "Traceback" not in ended.err
    log = (tmp_path / "runs/recipe/error.log").read_text()
    assert "Traceback" in log
    assert "second line" in log


def test_debugging_shows_the_traceback(run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTUNE_DEBUG", "1")
    ended = run("run", "recipe.toml", story=failing(ValueError("odd value")))
    assert ended.code == 1
    assert "Traceback" in ended.err


def test_unwritable_run_folder_is_told_before_any_work(run: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = run("run", "recipe.toml", "--out", "file/run", story=failing(AssertionError("work was begun")))
    assert ended.code == 2
    assert ended.err.startswith("error: cannot write the run folder file/run: ")
    assert ended.err.endswith("choose another --out\n")


def test_plan_prints_every_figure(run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    planning = ModuleType("captune.planning")
    figures = {"images": 11, "total_steps": 1200, "buckets": {"64x64": 11}, "warnings": ["a.png has no caption"]}
    planning.plan = lambda recipe, processes: figures  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "captune.planning", planning)
    monkeypatch.setattr(captune, "planning", planning, raising=False)
    lines = run("plan", "recipe.toml").out.splitlines()
    rows = [line.split() for line in lines]
    assert ["total", "steps", "1,200"] in rows
    assert ["buckets", "64x64:", "11"] in rows
    assert lines[-1] == "warning: a.png has no caption"
    assert json.loads(run("plan", "recipe.toml", "--json").out) == figures


def test_demo_teaches_the_subject_asked_for(
    run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    demo = ModuleType("captune.demo")
    seen: list[Any] = []

    def run_demo(folder: Any, progress: Any, subject: str = "jefpajot", command: str = "") -> Outcome:
        seen.append((folder.path, subject))
        return Outcome()

    demo.run_demo = run_demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "captune.demo", demo)
    assert run("demo").code == 0
    assert run("demo", "--subject", "zimbol", "--out", "elsewhere").code == 0
    assert seen == [(Path("runs/demo"), "jefpajot"), (Path("elsewhere"), "zimbol")]


def test_a_failed_training_is_told_and_ends_with_1(run: Callable[..., Ended]) -> None:
    @dataclass
    class Failure:
        arm: str = "blip"
        training_seed: int = 2
        reason: str = "loss is nan in step 7"

    def story(*_: Any, **__: Any) -> Outcome:
        return Outcome(failures=(Failure(),))

    ended = run("run", "recipe.toml", story=story)
    assert ended.code == 1
    assert "not trained: blip, seed 2: loss is nan in step 7" in ended.out


def test_a_design_is_planned_and_more_prompts_find_less(tmp_path: Path) -> None:
    few, many = (
        json.loads(captune_in(tmp_path, "study", "--prompts", n, "--json").out)["detectable"]["this design"][
            "difference"
        ]
        for n in ("12", "48")
    )
    assert many < few


def test_a_lora_file_is_converted_and_inspected(tmp_path: Path) -> None:
    from captune.exporters.kohya import Kohya
    from tests import tiny_sd

    Kohya().write(tiny_sd.lora({"unet": tiny_sd.unet(False)}), tmp_path / "a.safetensors", "fp32")
    ended = captune_in(tmp_path, "export", "a.safetensors", "--format", "peft", "--json")
    assert ended.code == 0, ended.err
    written = json.loads(ended.out)["file"]
    found = json.loads(captune_in(tmp_path, "inspect", written, "--json").out)
    assert (found["family"], found["spelling"]) == ("sd", "diffusers")
    assert captune_in(tmp_path, "export", "a.safetensors", "--format", "merged").code == 2


def test_flags_of_kohya_become_a_recipe(tmp_path: Path) -> None:
    ended = captune_in(tmp_path, "import", "kohya", "--network_dim", "16", "--min_snr_gamma", "5")
    assert ended.code == 0, ended.err
    assert tomllib.loads(ended.out)["train"]["rank"] == 16
    assert "--network_dim 16 -> train.rank = 16" in ended.err
