"""A captioner's tuning from end to end on the embedded BLIP: held-out captions get better, and the same bytes after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from captune import captioners, recipe, tuning
from captune.cli import app
from captune.demo import draw_captioned
from captune.errors import DataError, RecipeError
from captune.evaluate.captioning import compare_captions
from captune.metrics.captions import Scored
from captune.mini import grammar, subjects
from captune.progress import Silent
from captune.recipe import CaptionerSection
from captune.types import BETTER, NO_DIFFERENCE, WORSE

ROOT = Path(__file__).parents[2]
FILES = ("adapter_model.safetensors", "adapter_config.json")


@pytest.fixture(scope="module")
def data() -> Path:
    return ROOT / "examples/caption_style"


@pytest.fixture(scope="module")
def tuned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tuned on 50 pairs through the command line, with a model merged."""
    out = tmp_path_factory.mktemp("captions") / "tuned"
    command = [
        "tune-captioner",
        str(data),
        str(out),
        "--rank",
        "8",
        "--alpha",
        "16",
        "--dropout",
        "0.05",
        "--epochs",
        "4",
    ]
    command += ["--learning-rate", "1e-3", "--weight-decay", "0", "--batch-size", "8", "--target-modules", "text"]
    command += ["--device", "cpu", "--model", "mini", "--merged", "--json"]
    result = CliRunner().invoke(app, [*command, "--set", "tune.test=0.25", "--set", "tune.validation=0.125"])
    assert result.exit_code == 0, result.output
    return out


def test_held_out_captions_get_better_and_end(tuned: Path) -> None:
    told = json.loads((tuned / "report/summary.json").read_text())
    (cider,) = [d for d in told["differences"] if d["primary"]]
    assert cider["metric"] == "CIDEr" and cider["low"] > 0 and cider["verdict"] == BETTER and cider["pictures"] == 20
    assert told["ended"]["tuned"] == 1.0
    assert told["facts"]["decode"] == {"max_new_tokens": 40, "beams": 1, "prompt": ""}
    assert told["settings"]["rank"] == 8 and told["settings"]["alpha"] == 16


def test_folder_is_the_adapter_with_its_card(tuned: Path) -> None:
    from peft import PeftModel

    plain = captioners.load_tunable(CaptionerSection(name="blip"), "cpu", "fp32")
    wrapped = PeftModel.from_pretrained(plain.model, str(tuned))
    assert wrapped.peft_config["default"].r == 8
    told = json.loads((tuned / "report/summary.json").read_text())
    card = (tuned / "README.md").read_text()
    assert told["verdict"] in card and "| CIDEr |" in card and "library_name" in card


def test_merged_model_says_the_same(tuned: Path) -> None:
    told = json.loads((tuned / "report/summary.json").read_text())["captions"]
    rows = [json.loads(line) for line in (tuned / "data/pictures.jsonl").read_text().splitlines()]
    images = {row["id"]: tuned / "data" / row["image"] for row in rows}
    merged = captioners.load_tunable(CaptionerSection(name="blip", model=str(tuned / "merged")), "cpu", "fp32")
    said = merged.write(merged.look([images[row["id"]] for row in told]))
    assert [w.text for w in said] == [row["tuned"]["text"] for row in told]


def test_page_shows_what_gained_and_what_was_said(tuned: Path) -> None:
    page = (tuned / "report/index.html").read_text()
    told = json.loads((tuned / "report/summary.json").read_text())
    best = max(told["captions"], key=lambda row: row["change"])
    assert "Gained most" in page and best["base"]["text"] in page and best["tuned"]["text"] in page
    assert best["references"][0] in page and "data:image/png" in page and "http" not in page.split("<main>")[1]
    rows = [json.loads(line) for line in (tuned / "train/samples.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4] and rows[0]["text"] in page


def test_second_run_does_nothing(tuned: Path) -> None:
    chosen = recipe.read_tuning(tuned / "recipe.toml")
    before = (tuned / "train/manifest.json").read_bytes()
    assert tuning.tune(chosen, tuned, Silent()).already_done
    assert (tuned / "train/manifest.json").read_bytes() == before


def test_targets_of_another_architecture_are_refused_with_the_presets(data: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["tune-captioner", str(data), str(tmp_path / "out"), "--target-modules", "q_proj,k_proj"]
    )
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert "'q_proj', 'k_proj' hit no module" in said and "text, cross_attention, vision, all_linear" in said
    assert not (tmp_path / "out/base/captions.jsonl").exists()  # refused before any work


def test_killed_and_resumed_the_adapter_is_the_same(data: Path, tmp_path: Path) -> None:
    changes = ["tune.checkpoint_every_steps=1", "tune.test=0", "tune.count=40", "tune.epochs=3", "tune.rank=4"]
    options = [part for change in changes for part in ("--set", change)]

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "captune", "tune-captioner", str(data), str(out), *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, **quiet)  # type: ignore[call-overload, no-any-return]

    def steps(out: Path) -> int:
        losses = out / "train/losses.jsonl"
        return losses.read_bytes().count(b"\n") if losses.exists() else 0

    killed = start(tmp_path / "killed")
    while steps(tmp_path / "killed") < 7 and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it was over before it could be killed"
    assert (tmp_path / "killed/train/checkpoint.pt").exists()
    assert start(tmp_path / "killed").wait() == 0
    chosen = recipe.tuning_of(str(data), changes)
    tuning.tune(chosen, tmp_path / "whole", Silent())
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "killed/train/losses.jsonl").read_text() == (tmp_path / "whole/train/losses.jsonl").read_text()


def test_push_takes_the_token_from_the_environment_alone(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe.read_tuning(tuned / "recipe.toml", ["tune.push=me/captions"])
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(RecipeError, match="needs a token of the hub in the environment: HF_TOKEN"):
        tuning.tune(chosen, tuned, Silent())
    calls: dict[str, Any] = {}

    class Hub:
        def __init__(self, token: str) -> None:
            calls["token"] = token

        def create_repo(self, name: str, exist_ok: bool) -> None:
            calls["made"] = name, exist_ok

        def upload_folder(self, **values: Any) -> None:
            calls["sent"] = values
            if calls.get("refuse"):
                raise RuntimeError("401 for secret-token")

    monkeypatch.setenv("HF_TOKEN", "secret-token")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    tuning.tune(chosen, tuned, Silent())
    assert calls["token"] == "secret-token" and calls["made"] == ("me/captions", True)
    assert set(calls["sent"]["allow_patterns"]) == {*FILES, "README.md"}
    calls["refuse"] = True
    with pytest.raises(DataError, match="the hub did not take the adapter .401 for ...") as raised:
        tuning.tune(chosen, tuned, Silent())
    assert "secret" not in str(raised.value)
    assert all(b"secret" not in path.read_bytes() for path in tuned.rglob("*") if path.is_file())


# the verdicts


def scored(values: list[float]) -> Scored:
    per = {str(i): {"CIDEr": v, "ROUGE_L": v / 2} for i, v in enumerate(values)}
    mean = sum(values) / len(values)
    return Scored({"CIDEr": mean, "ROUGE_L": mean / 2}, per, [], {})


def test_worse_is_said_as_plainly_as_better() -> None:
    rng = random.Random(0)
    low = [0.5 + rng.random() / 10 for _ in range(20)]
    high = [value + 0.3 + rng.random() / 10 for value in low]
    better, worse = compare_captions(scored(low), scored(high)), compare_captions(scored(high), scored(low))
    assert [d.verdict for d in better] == [BETTER] * 2 and [d.verdict for d in worse] == [WORSE] * 2
    assert worse[0].sentence.startswith("The tuned captioner is worse than its base in CIDEr, by 0.3")
    assert worse[0].difference == pytest.approx(-better[0].difference) and worse[0].high < 0
    same = compare_captions(scored(low), scored(low[::-1]))[0]
    assert same.verdict == NO_DIFFERENCE and same.low <= 0 <= same.high
    few = compare_captions(scored(low[:4]), scored(high[:4]))[0]
    assert few.verdict == NO_DIFFERENCE and few.sentence.startswith("Too few test pictures (below 6)")


# the loop


def test_examples_of_the_loop_are_what_the_code_draws(tmp_path: Path) -> None:
    examples = ROOT / "examples"
    rng = random.Random("captions of jefpajot in style tags")
    for index, scene in enumerate(subjects.training_scenes("jefpajot", 14)):
        said = (examples / f"jefpajot_tags/{index:02d}.txt").read_text().strip()
        assert said == grammar.describe(scene, "tags", rng, name="jefpajot")
    draw_captioned(tmp_path, 3, "tags")
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (examples / "caption_style" / path.name).read_bytes()


def test_arms_with_a_tuned_captioner_are_checked() -> None:
    values: dict[str, Any] = {
        "dataset": {"path": "photos"},
        "train": {"steps": 1},
        "arm": [{"name": "a", "captioner": {"name": "blip"}, "tune": {"path": "x"}}],
    }
    assert recipe.from_values(values).arm[0].tune is not None
    for change, told in (
        ({"captioner": {"name": "blip", "adapter": "x"}}, "give captioner.adapter .* or tune, not both"),
        ({"tune": {"path": "x", "device": "cpu"}}, "tune.device: within an arm"),
        ({"tune": {"path": "x", "captioner": {"name": "blip2"}}}, "tune.captioner: within an arm"),
    ):
        with pytest.raises(RecipeError, match=told):
            recipe.from_values({**values, "arm": [{**values["arm"][0], **change}]})
    with pytest.raises(RecipeError, match="study.caption_references = 'b': no such arm"):
        recipe.from_values({**values, "study": {"caption_references": "b"}})
