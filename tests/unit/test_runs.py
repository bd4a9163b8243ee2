"""The run folder: nothing half-written, nothing done twice, nothing lost when it is moved."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from captune import runs
from captune.errors import DataError
from captune.types import Example, Sample

INPUTS = {"section": {"crop": "square"}, "pictures": ["a", "b"]}


@pytest.fixture
def folder(tmp_path: Path) -> runs.StageFolder:
    return runs.RunFolder(tmp_path / "run").stage("prepare")


def finished(folder: runs.StageFolder) -> Path:
    """A finished stage with one output."""
    folder.begin(INPUTS)
    output = folder.path / "picture.png"
    output.write_bytes(b"pixels")
    folder.finish(INPUTS, [output], skipped=[])
    return output


def test_broken_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "losses.json"
    runs.write_text(file, "old")
    with pytest.raises(RuntimeError), runs.atomic(file) as part:
        part.write_text("half")
        raise RuntimeError("stopped")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "new" / "summary.json"
    runs.write_json(file, {"a": 1})
    runs.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 2}
    assert list(file.parent.iterdir()) == [file]


def test_write_to_an_impossible_place_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file/below\.txt: .*; free space or choose another --out"):
        runs.write_text(tmp_path / "file" / "below.txt", "x")


def test_finished_stage_is_done_for_its_inputs_only(folder: runs.StageFolder) -> None:
    assert not folder.done(INPUTS)
    finished(folder)
    assert folder.done(INPUTS)
    assert folder.done(dict(reversed(INPUTS.items())))
    assert not folder.done(INPUTS | {"pictures": ["a"]})


def test_begun_stage_is_not_done(folder: runs.StageFolder) -> None:
    folder.begin(INPUTS)
    assert not folder.done(INPUTS)


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_stage_whose_output_was_touched_is_not_done(folder: runs.StageFolder, change: str) -> None:
    output = finished(folder)
    if change == "edit":
        output.write_bytes(b"other")
    else:
        output.unlink()
    assert not folder.done(INPUTS)


def test_stage_with_a_broken_manifest_is_not_done(folder: runs.StageFolder) -> None:
    finished(folder)
    folder.manifest_path.write_text("{")
    assert folder.manifest() == {}
    assert not folder.done(INPUTS)


def test_beginning_with_equal_inputs_keeps_what_is_there_and_with_others_removes_it(folder: runs.StageFolder) -> None:
    folder.begin(INPUTS, keep=True)
    half = folder.path / "half.txt"
    half.write_text("work")
    folder.begin(INPUTS, keep=True)
    assert half.read_text() == "work"
    folder.begin(INPUTS | {"pictures": []}, keep=True)
    assert not half.exists()


def test_beginning_without_keep_starts_from_nothing(folder: runs.StageFolder) -> None:
    output = finished(folder)
    folder.begin(INPUTS)
    assert not output.exists()


def test_seconds_of_a_broken_run_are_counted(folder: runs.StageFolder) -> None:
    folder.begin(INPUTS, keep=True)
    started = folder.path / "started.json"
    started.write_text(json.dumps(json.loads(started.read_text()) | {"seconds": 100.0}))
    again = runs.StageFolder(folder.path)
    again.begin(INPUTS, keep=True)
    again.finish(INPUTS)
    assert 100 <= again.manifest()["seconds"] < 110
    assert not started.exists()


def test_manifest_says_what_a_result_was_made_from(folder: runs.StageFolder) -> None:
    finished(folder)
    manifest = folder.manifest()
    assert manifest["inputs"] == INPUTS
    assert list(manifest["outputs"]) == ["picture.png"]
    assert {"python", "captune"} <= set(manifest["versions"])
    assert manifest["peak_mib"] > 1
    assert manifest["skipped"] == []


def example(stage: runs.StageFolder) -> Example:
    image = stage.path / "images" / "a.png"
    source = Path("/elsewhere/a.jpg")
    return Example("a", image, source, 64, 64, 100, 80, repeats=2, sha256="0" * 64)


def test_records_read_back_equal(folder: runs.StageFolder) -> None:
    folder.begin(INPUTS)
    records = [example(folder)]
    runs.write_records(folder.path / "examples.jsonl", records)
    assert runs.read_records(folder.path / "examples.jsonl", Example) == records


def test_records_without_rows_read_back_empty(tmp_path: Path) -> None:
    runs.write_records(tmp_path / "none.jsonl", [])
    assert runs.read_records(tmp_path / "none.jsonl", Sample) == []


def test_moved_run_folder_finds_its_own_files(tmp_path: Path) -> None:
    stage = runs.RunFolder(tmp_path / "here").stage("prepare")
    output = finished(stage)
    runs.write_records(stage.path / "examples.jsonl", [example(stage)])
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = runs.RunFolder(tmp_path / "there").stage("prepare")
    (found,) = runs.read_records(moved.path / "examples.jsonl", Example)
    assert found.image == moved.path / "images" / "a.png"
    assert found.source == Path("/elsewhere/a.jpg")
    assert moved.done(INPUTS)
    assert not output.exists()


def test_records_in_a_relative_run_folder_stay_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stage = runs.RunFolder(Path("runs/one")).stage("prepare")
    runs.write_records(stage.path / "examples.jsonl", [example(stage)])
    assert json.loads((stage.path / "examples.jsonl").read_text())["image"] == "images/a.png"


def test_relative_path_outside_the_run_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image, source = Path("runs/one/prepare/images/a.png"), Path("photos/a.jpg")
    file = Path("runs/one/prepare/examples.jsonl")
    runs.write_records(file, [Example("a", image, source, 64, 64, 100, 80, repeats=1, sha256="0" * 64)])
    (found,) = runs.read_records(file, Example)
    assert (found.image, found.source.resolve()) == (image, (tmp_path / source).resolve())


def test_record_beside_its_stage_is_found_again_after_a_move(tmp_path: Path) -> None:
    """A stage's record may name a file of another stage of the same run."""
    run = runs.RunFolder(tmp_path / "here")
    picture = run.training("blip", 0, "sample").path / "pictures" / "0.png"
    sample = Sample("blip", "a dog", 0, 0, picture)
    runs.write_records(run.training("blip", 0, "sample").path / "samples.jsonl", [sample])
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = runs.RunFolder(tmp_path / "there").training("blip", 0, "sample").path
    assert runs.read_records(moved / "samples.jsonl", Sample)[0].path == moved / "pictures" / "0.png"


def test_equal_values_have_equal_fingerprints() -> None:
    assert runs.fingerprint({"a": 1, "b": (1, 2)}) == runs.fingerprint({"b": [1, 2], "a": 1})
    assert runs.fingerprint({"a": 1}) != runs.fingerprint({"a": 2})


def test_unwritable_run_folder_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the run folder .*; choose another --out"):
        runs.RunFolder(tmp_path / "file" / "run").check_writable()


def test_writable_run_folder_is_left_empty(tmp_path: Path) -> None:
    runs.RunFolder(tmp_path / "run").check_writable()
    assert list((tmp_path / "run").iterdir()) == []


def test_stages_lie_where_the_documents_say(tmp_path: Path) -> None:
    run = runs.RunFolder(tmp_path)
    assert run.recipe == tmp_path / "recipe.toml"
    assert run.stage("base/sample").path == tmp_path / "base" / "sample"
    assert run.training("human", 1, "train").path == tmp_path / "arms" / "human" / "seed-1" / "train"


def test_temporary_files_of_killed_processes_are_removed_and_those_of_others_are_not(tmp_path: Path) -> None:
    left, alive, other = (f".a.txt.{mark}.part" for mark in (999999999, os.getppid(), "x"))
    (tmp_path / "arms/a").mkdir(parents=True)
    for name in (left, alive, other, f".b.{os.getpid()}.part"):
        (tmp_path / "arms/a" / name).write_text("half")
    runs.sweep(tmp_path)
    assert {path.name for path in (tmp_path / "arms/a").iterdir()} == {alive, other}
