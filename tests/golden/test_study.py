"""A study of several arms and training seeds on a small model: what it makes, shares, survives and says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from captune import pipeline, recipe
from captune.progress import Progress, Silent
from captune.recipe import Recipe
from captune.runs import RunFolder
from tests import tiny_base, tiny_clip

SOURCE = Path(__file__).parents[2] / "src"
RECIPE = """
[dataset]
path = "{folder}/photos"
trigger_word = "zorblax"
class_word = "ball"
resolution = 16

[base]
model = "{folder}/base"
device = "cpu"
precision = "fp32"

[train]
rank = 2
alpha = 2
learning_rate = 1e-2
steps = 4
batch_size = 2
checkpoint_every_steps = 1

[[arm]]
name = "human"
captioner = {{ name = "sidecar" }}

[[arm]]
name = "dealt"
shuffled = "human"

[[arm]]
name = "word"
trigger_only = true

[study]
training_seeds = [0, 1]
held_out = 1
repeat = true

[sample]
prompts = ["a zorblax ball", "zorblax, a red ball", "a blue ball"]
seeds = [0, 1]
steps = 2

[evaluate]
encoder = "{folder}/clip"
dino_encoder = ""
resamples = 200
"""


class Heard(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    tiny_base.write_tiny_base(folder / "base")
    tiny_base.write_photos(folder / "photos")
    tiny_clip.write_tiny_clip(folder / "clip")
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    return folder


def read(made: Path, *overrides: str) -> Recipe:
    return recipe.read(made / "recipe.toml", overrides)


@pytest.fixture(scope="module")
def told() -> Heard:
    return Heard()


@pytest.fixture(scope="module")
def run(made: Path, told: Progress) -> Path:
    pipeline.run(read(made), RunFolder(made / "run"), told, command="captune run recipe.toml")
    return made / "run"


def summary(run: Path) -> dict[str, Any]:
    """The summary without what depends on the machine's speed."""
    content: dict[str, Any] = json.loads((run / "report" / "summary.json").read_text())
    del content["timings"]
    return content


def said(run: Path, arm: str, part: str = "caption") -> dict[str, str]:
    rows = [json.loads(line) for line in (run / "arms" / arm / part / "captions.jsonl").read_text().splitlines()]
    return {row["example_id"]: row["text"] for row in rows}


def test_every_arm_is_trained_once_per_seed_and_pictures_are_encoded_once(run: Path) -> None:
    trained = sorted(p.relative_to(run).as_posix() for p in run.glob("arms/*/*/train/adapter.safetensors"))
    assert trained == [
        f"arms/{arm}/seed-{seed}/train/adapter.safetensors" for arm in ("dealt", "human", "word") for seed in (0, 1)
    ]
    assert [p.relative_to(run).as_posix() for p in run.rglob("latents.safetensors")] == ["latents/latents.safetensors"]


def test_a_held_out_picture_is_trained_by_no_arm_and_captioned_by_all(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "denoising" / "losses.jsonl").read_text().splitlines()]
    held = {row["example_id"] for row in rows}
    assert len(held) == 1 and all(row["held_out"] for row in rows)
    inputs = json.loads((run / "arms/human/seed-0/train/manifest.json").read_text())["inputs"]
    assert held.isdisjoint(row[0] for row in inputs["examples"]) and len(inputs["examples"]) == 4
    # base and six LoRAs, each on three arms' captions
    assert len(rows) == 7 * 3


def test_shuffled_captions_are_all_of_other_pictures(run: Path) -> None:
    right, wrong = said(run, "human"), said(run, "dealt")
    trained = {key: right[key] for key in wrong}
    assert sorted(trained.values()) == sorted(wrong.values())
    assert all(trained[key] != wrong[key] for key in wrong)


def test_the_word_alone_is_the_same_for_every_picture(run: Path) -> None:
    assert set(said(run, "word").values()) == {"zorblax ball"}


def test_a_repeated_training_is_equal_byte_by_byte(run: Path) -> None:
    assert list(summary(run)["repeated"].values()) == [True, True]


def test_every_comparison_says_how_sure_it_is(run: Path) -> None:
    comparisons = summary(run)["comparisons"]
    pairs = {(c["first"], c["second"]) for c in comparisons}
    assert {("human", "dealt"), ("human", "word"), ("dealt", "word"), ("human", "base")} <= pairs
    for c in comparisons:
        assert c["low"] <= c["difference"] <= c["high"]
        assert c["verdict"] in ("better", "worse", "no detectable difference")
        assert c["training_runs"] == 2 and c["pairs"] > 0
        # six prompts are the fewest with which any difference could be told
        assert (c["minimal_detectable_difference"] is None) == (c["prompts"] < 6)
    assert {c["metric"] for c in comparisons if c["primary"]} == {"clip_i"}


def test_a_prompt_that_stands_in_the_captions_is_marked(run: Path) -> None:
    known = read_known(run)
    assert known == {"zorblax, a red ball": ["human"]} or known == {"zorblax, a red ball": ["human", "dealt"]}


def read_known(run: Path) -> dict[str, list[str]]:
    captions = {arm: set(said(run, arm).values()) for arm in ("human", "dealt")}
    return {"zorblax, a red ball": [arm for arm, texts in captions.items() if "zorblax, a red ball" in texts]}


def test_a_second_run_does_nothing(made: Path, run: Path) -> None:
    assert pipeline.run(read(made), RunFolder(run), Silent(), command="captune run recipe.toml").already_done


def test_arms_with_equal_captions_have_equal_files_and_pictures(made: Path, run: Path) -> None:
    folder = made / "twins"
    twins = read(made, "arm.dealt.shuffled=human", "study.repeat=false").model_dump(mode="json", exclude_none=True)
    twins["arm"] = [{"name": name, "captioner": {"name": "sidecar"}} for name in ("human", "twin")]
    pipeline.run(recipe.from_values(twins), RunFolder(folder), Silent())
    for pattern in ("seed-*/train/adapter.safetensors", "seed-*/export/*", "seed-*/sample/pictures/*.png"):
        files = {arm: sorted((folder / "arms" / arm).glob(pattern)) for arm in ("human", "twin")}
        files = {arm: [p for p in found if p.name != "manifest.json"] for arm, found in files.items()}
        assert [p.read_bytes() for p in files["human"]] == [p.read_bytes() for p in files["twin"]] and files["human"]
    between = [c for c in summary(folder)["comparisons"] if c["second"] == "twin"]
    assert between and all(c["difference"] == 0 and c["verdict"] == "no detectable difference" for c in between)


def test_a_study_killed_in_its_third_training_ends_with_the_same_summary(made: Path, run: Path) -> None:
    folder = made / "killed"
    command = [sys.executable, "-m", "captune", "run", str(made / "recipe.toml"), "--out", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    third = folder / "arms" / "word" / "seed-0" / "train" / "losses.jsonl"
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if third.exists() and third.read_text().count("\n") >= 2:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    finished = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and "word" not in p.parts}
    pipeline.run(read(made), RunFolder(folder), Silent(), command="captune run recipe.toml")
    kept = [p for p in finished if "train" in p.parts or "pictures" in p.parts]
    assert kept and all(p.stat().st_mtime_ns == finished[p] for p in kept)
    assert summary(folder) == summary(run)


def test_one_failed_training_is_named_and_the_others_go_on(made: Path, tmp_path: Path) -> None:
    heard = Heard()
    broken = read(made, 'arm.word.train={ targets = ["no_such_module"] }', "study.repeat=false")
    outcome = pipeline.run(broken, RunFolder(tmp_path / "run"), heard)
    assert [(f.arm, f.training_seed) for f in outcome.failures] == [("word", 0), ("word", 1)]
    assert all("no_such_module" in f.reason for f in outcome.failures)
    assert any("word with seed 0 failed" in line for line in heard.lines)
    assert {c["first"] for c in summary(tmp_path / "run")["comparisons"]} == {"human", "dealt"}
    assert [f["arm"] for f in summary(tmp_path / "run")["failures"]] == ["word", "word"]


def test_an_arm_may_have_its_own_training_settings(made: Path, tmp_path: Path) -> None:
    pipeline.run(read(made, "arm.word.train={ rank = 3 }"), RunFolder(tmp_path), Silent(), upto="train")
    ranks = {
        arm: json.loads((tmp_path / f"arms/{arm}/seed-0/train/manifest.json").read_text())["inputs"]["train"]["rank"]
        for arm in ("human", "word")
    }
    assert ranks == {"human": 2, "word": 3}


def test_two_folders_of_the_same_pictures_are_two_arms_and_cuts_are_told_before_training(
    made: Path, tmp_path: Path
) -> None:
    long = tmp_path / "long"
    long.mkdir()
    for picture in sorted((made / "photos").glob("*.png")):
        (long / picture.name).write_bytes(picture.read_bytes())
        (long / f"{picture.stem}.txt").write_text("a zorblax " + "far away " * 12 + picture.stem)
    values = read(made, "study.repeat=false").model_dump(mode="json", exclude_none=True)
    values["arm"] = [
        {"name": "short", "captioner": {"name": "sidecar"}},
        {"name": "long", "captioner": {"name": "sidecar", "folder": str(long)}},
    ]
    values["study"]["held_out"] = 0
    heard = Heard()
    pipeline.run(recipe.from_values(values), RunFolder(tmp_path / "run"), heard, upto="caption")
    cut = [line for line in heard.lines if "is cut" in line]
    assert len(cut) == 5 and all(line.startswith("arm long: the caption of ") for line in cut)
    lengths = json.loads((tmp_path / "run/arms/long/tokens/tokens.json").read_text())
    assert all(f"{row['count'] - row['limit']} are lost" in line for row, line in zip(lengths, cut, strict=True))
    assert all(row["lost"].endswith(f"far away {row['id']}") for row in lengths)


def test_length_matched_captions_are_no_longer_than_the_others(made: Path, tmp_path: Path) -> None:
    values = read(made).model_dump(mode="json", exclude_none=True)
    values["study"] |= {"held_out": 0, "repeat": False}
    values["arm"] = [
        {"name": "short", "captioner": {"name": "sidecar"}},
        {"name": "long", "captioner": {"name": "sidecar", "trigger": "none"}},
        {"name": "cut", "length_matched": {"captions": "short", "lengths": "long"}},
    ]
    pipeline.run(recipe.from_values(values), RunFolder(tmp_path / "run"), Silent(), upto="caption")
    count = {
        arm: {
            row["id"]: row["count"] for row in json.loads((tmp_path / f"run/arms/{arm}/tokens/tokens.json").read_text())
        }
        for arm in ("short", "long", "cut")
    }
    assert all(count["cut"][key] <= count["long"][key] < count["short"][key] for key in count["cut"])
    whole = said(tmp_path / "run", "short")
    assert all(whole[key].startswith(text) for key, text in said(tmp_path / "run", "cut").items())
