"""Pictures with captions: read from folders and data sets by name, split by picture, near-duplicates on one side."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captune import captions
from captune.errors import DataError, RecipeError
from captune.named_data import Asked, Rows
from captune.prepare import split
from captune.prepare.captioned import prepare_captioned
from captune.progress import Silent
from captune.recipe import TuneSection
from captune.runs import StageFolder
from captune.types import CaptionedPicture


def picture(seed: int, side: int = 48) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3)).astype(np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def folder_of(path: Path, count: int) -> Path:
    path.mkdir(parents=True)
    for i in range(count):
        picture(i).save(path / f"{i:02d}.png")
        (path / f"{i:02d}.txt").write_text(f"caption {i}")
    return path


def prepared(path: Path, out: Path, **values: object) -> list[CaptionedPicture]:
    section = TuneSection.model_validate({"path": str(path), **values})
    return prepare_captioned(section, StageFolder(out), Silent())


def test_split_is_by_picture_in_the_shares_asked_for(tmp_path: Path) -> None:
    found = prepared(folder_of(tmp_path / "p", 40), tmp_path / "out")
    sides = [p.split for p in found]
    assert [sides.count(side) for side in split.SIDES] == [32, 4, 4]
    assert found == prepared(tmp_path / "p", tmp_path / "again")
    assert [p.split for p in prepared(tmp_path / "p", tmp_path / "other", seed=1)] != sides
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["split"] == {"train": 32, "validation": 4, "test": 4}


def test_split_depends_on_pictures_not_on_names(tmp_path: Path) -> None:
    first = {p.sha256: p.split for p in prepared(folder_of(tmp_path / "p", 20), tmp_path / "out")}
    (tmp_path / "q").mkdir()
    for i, path in enumerate(sorted((tmp_path / "p").glob("*.png"), reverse=True)):
        (tmp_path / f"q/x{i}.png").write_bytes(path.read_bytes())
        (tmp_path / f"q/x{i}.txt").write_text("other words")
    assert {p.sha256: p.split for p in prepared(tmp_path / "q", tmp_path / "out2")} == first


def test_near_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    """Saved again as JPEG, scaled, brightened a little: the same picture; another colour or another drawing is not."""
    place = folder_of(tmp_path / "p", 30)
    for i in range(10):
        picture(i).save(place / f"jpeg{i}.jpg", quality=70)
        picture(i).resize((80, 80)).point(lambda v: min(255, v + 4)).save(place / f"scaled{i}.png")
    for path in [*place.glob("jpeg*.jpg"), *place.glob("scaled*.png")]:
        path.with_suffix(".txt").write_text("copy")
    found = {p.id: p.split for p in prepared(place, tmp_path / "out", test=0.3)}
    for i in range(10):
        assert len({found[f"{i:02d}"], found[f"jpeg{i}"], found[f"scaled{i}"]}) == 1
    groups = json.loads((tmp_path / "out/manifest.json").read_text())["near_duplicates"]
    assert sorted(map(len, groups)) == [3] * 10
    swapped = picture(0).copy()
    Image.merge("RGB", swapped.split()[::-1]).save(place / "swapped.png")
    views = {name: split.view(place / name) for name in ("00.png", "swapped.png", "01.png")}
    assert split.near_duplicates(views) == [["00.png"], ["swapped.png"], ["01.png"]]


def test_too_few_pictures_for_a_side_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 pictures in 2 groups of near-duplicates leave none to train on"):
        prepared(folder_of(tmp_path / "p", 2), tmp_path / "out")
    assert {p.split for p in prepared(tmp_path / "p", tmp_path / "out2", test=0, validation=0)} == {"train"}


def test_several_captions_of_a_picture_are_kept_together(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "p", 12)
    for path in place.glob("*.txt"):
        path.unlink()
    rows = [{"file_name": f"{i:02d}.png", "text": [f"one {i}", f"two\n{i}"]} for i in range(11)]
    rows.append({"file_name": "11.png", "caption": "alone"})
    (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = prepared(place, tmp_path / "out")
    assert found[3].references == ["one 3", "two 3"] and found[11].references == ["alone"]
    with pytest.raises(DataError, match="line 1: the caption must be text, not list"):
        captions.read_metadata(place / "metadata.jsonl")


def test_pictures_without_captions_and_broken_ones_are_named(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "p", 12)
    (place / "03.txt").unlink()
    (place / "04.txt").write_text(" \n")
    with pytest.raises(
        DataError, match=r"1 of 12 pictures .* no caption: 03\.png .*; the captions of 04\.png are empty"
    ):
        prepared(place, tmp_path / "out")
    (place / "03.txt").write_text("now")
    (place / "04.txt").write_text("now")
    (place / "05.png").write_bytes(b"no picture")
    assert "05" not in {p.id for p in prepared(place, tmp_path / "out")}
    assert "skipped 05.png" in json.loads((tmp_path / "out/manifest.json").read_text())["warnings"][0]


# a data set by name


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set as the hub has them: parquet, a row for each caption, three captions a picture."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("hub")
    rows: dict[str, list[Any]] = {"image": [], "caption": [], "cocoid": []}
    for i in range(30):
        content = io.BytesIO()
        picture(i).save(content, "JPEG")
        for n in range(3):
            rows["image"].append({"bytes": content.getvalue(), "path": f"{i}.jpg"})
            rows["caption"].append(f"picture {i}\nin words {n}")
            rows["cocoid"].append(i)
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.Value("string"), "cocoid": datasets.Value("int64")}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train-00000.parquet", batch_size=6)
    return folder


def streamed(hub: Path, out: Path, **values: object) -> list[CaptionedPicture]:
    section = TuneSection.model_validate({"dataset": str(hub), **values})
    return prepare_captioned(section, StageFolder(out), Silent())


def test_data_set_is_streamed_to_the_disk(hub: Path, tmp_path: Path) -> None:
    found = streamed(hub, tmp_path / "out", count=20)
    assert len(found) == 20 and len({p.sha256 for p in found}) == 20
    assert found[7].references == [f"picture 7 in words {n}" for n in range(3)]
    content = io.BytesIO()
    picture(7).save(content, "JPEG")
    assert found[7].image.read_bytes() == content.getvalue()  # as it came: not compressed a second time
    assert found[7].image.suffix == ".jpg"
    assert streamed(hub, tmp_path / "out", count=20) == found
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["references_per_picture"] == {"3": 20} and manifest["rows"]["read"] == 60


def test_streaming_holds_one_picture_at_a_time(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays flat: when a picture's bytes are handed out, those before it are gone or on the disk."""
    from captune.prepare import hub as module

    class Content(bytes):
        alive = most = 0

        def __new__(cls, value: bytes) -> Content:
            Content.alive += 1
            Content.most = max(Content.most, Content.alive)
            return super().__new__(cls, value)

        def __del__(self) -> None:
            Content.alive -= 1

    real = module.opened

    def opened(asked: Asked) -> Rows:
        data = real(asked)
        rows = ({**r, data.image: {"bytes": Content(r[data.image]["bytes"])}} for r in data.rows)
        return Rows(rows, data.image, data.caption)

    monkeypatch.setattr(module, "opened", opened)
    monkeypatch.setattr(module, "bytes_of", lambda value: value["bytes"])
    assert len(streamed(hub, tmp_path / "out")) == 30
    assert Content.most <= 3


def test_no_more_is_read_than_was_asked_for(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from captune.prepare import hub as module

    real, seen = module.opened, []

    def opened(asked: Asked) -> Rows:
        data = real(asked)
        rows = ((seen.append(1) or row) for row in data.rows)  # type: ignore[func-returns-value]
        return Rows(rows, data.image, data.caption)

    monkeypatch.setattr(module, "opened", opened)
    streamed(hub, tmp_path / "out", count=5, validation=0, test=0.2)
    assert len(seen) == 16


@pytest.mark.parametrize(
    ("values", "error", "told"),
    [
        (
            {"caption_column": "text"},
            RecipeError,
            r"tune.caption_column = 'text': name one of .* \(image, caption, cocoid\)",
        ),
        ({"image_column": "cocoid"}, RecipeError, "tune.image_column = 'cocoid': does not hold pictures"),
        ({"split": "test"}, DataError, "cannot be read: .*; check its name, tune.config and tune.split"),
    ],
)
def test_mistakes_about_a_data_set_are_told(
    hub: Path, tmp_path: Path, values: dict[str, object], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told) as raised:
        streamed(hub, tmp_path / "out", **values)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "give path .* or dataset"),
        ({"path": "p", "dataset": "d"}, "give path .* or dataset"),
        ({"path": "p", "split": "test"}, "split is only read with dataset"),
        ({"path": "p", "validation": 0.5, "test": 0.5}, "leave no pictures to train on"),
        ({"path": "p", "validation": 0, "stop_after": 2}, "stop_after and watch need validation pictures"),
        ({"path": "p", "epochs": 1, "steps": 2}, "give epochs or steps, not both"),
        ({"path": "p", "quantize": "4bit", "merged": True}, "not merged into quantized weights"),
    ],
)
def test_sections_that_do_not_fit_together_are_refused(values: dict[str, object], told: str) -> None:
    from captune import recipe

    with pytest.raises(RecipeError, match=told):
        recipe.tuning_from_values({"tune": values})
