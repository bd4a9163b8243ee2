"""A folder of pictures becomes examples: what is found, what is left out and why, sizes, and when work is repeated."""

from __future__ import annotations

import math
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captune import images, prepare
from captune.errors import DataError, RecipeError
from captune.prepare import buckets
from captune.prepare.scan import scan
from captune.progress import Silent
from captune.recipe import DatasetSection, PrepareSection
from captune.runs import StageFolder, sha256_of
from captune.types import Example

PLAIN = PrepareSection(focus="center", contact_sheet=0)  # no detector is loaded, no sheet drawn: quick


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def draw(path: Path, width: int = 80, height: int = 60, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = np.kron(rng.integers(0, 255, (2, 2, 3)), np.ones((-(-height // 2), -(-width // 2), 1)))
    Image.fromarray(pixels[:height, :width].astype(np.uint8)).save(path)
    return path


def run(
    path: Path, out: Path, section: PrepareSection | None = None, resolution: int = 64, repeats: int = 1
) -> tuple[list[Example], StageFolder, list[str]]:
    heard, folder = Heard(), StageFolder(out)
    dataset = DatasetSection(path=path, resolution=resolution, repeats=repeats)
    return prepare.prepare_images(dataset, section or PLAIN, 8, folder, heard), folder, heard.lines


# scan


def test_pictures_are_found_in_all_subfolders_with_stable_ids(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "sub/deep/c.webp", "photo.v2.jpeg"):
        draw(tmp_path / name)
    for name in ("a.txt", "b.caption", "metadata.jsonl", "latents.npz"):
        (tmp_path / name).write_text("")
    found = scan(tmp_path, 3)
    assert [(p.id, p.repeats) for p in found.pictures] == [("a", 3), ("b", 3), ("photo.v2", 3), ("sub/deep/c", 3)]
    assert [p.path for p in found.pictures][0] == tmp_path / "a.PNG"
    assert found.skipped == [] and found.warnings == []


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where pillow-heif is not installed."""
    found = images.extensions() - images.PHONE_FORMATS
    monkeypatch.setattr(images, "extensions", lambda: found)


@pytest.mark.usefixtures("without_heif")
def test_what_is_left_out_is_named_with_its_reason(tmp_path: Path) -> None:
    draw(tmp_path / "good.jpg")
    draw(tmp_path / ".hidden.jpg")
    draw(tmp_path / ".cache/x.jpg")
    draw(tmp_path / "tiny.png", 80, 12)
    draw(tmp_path / "0_not/x.jpg")
    draw(tmp_path / "runs/mine/prepare/images/good.png")
    (tmp_path / "runs/mine/recipe.toml").write_text("")
    (tmp_path / "text.jpg").write_text("words")
    (tmp_path / "empty.png").write_bytes(b"")
    whole = draw(tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "phone.HEIC").write_bytes(b"heic")
    (tmp_path / "film.mp4").write_bytes(b"film")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = scan(tmp_path, 1)
    assert [p.id for p in found.pictures] == ["good"]
    reasons = {s.file: s.reason for s in found.skipped}
    assert list(reasons) == sorted(reasons)
    told = {
        ".hidden.jpg": "hidden file",
        ".cache/": "hidden folder",
        "tiny.png": "80 x 12 pixels are too few",
        "0_not/x.jpg": "0 repeats",
        "runs/mine/": "the folder of a run",
        "text.jpg": "none of the formats",
        "empty.png": "empty",
        "cut.jpg": "cut off",
        "phone.HEIC": "JPEG or PNG",
        "film.mp4": "no picture format that can be read (.mp4)",
        "gone.jpg": "does not exist",
    }
    assert reasons.keys() == told.keys()
    for name, reason in told.items():
        assert reason in reasons[name], (name, reasons[name])


def test_names_that_differ_by_extension_or_case_stay_apart(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a_png.jpg", "A.webp", "b.jpg"):
        draw(tmp_path / name)
    ids = {p.path.name: p.id for p in scan(tmp_path, 1).pictures}
    assert len({name.casefold() for name in ids.values()}) == 5
    assert ids["a_png.jpg"] == "a_png" and ids["b.jpg"] == "b"
    assert {ids["A.webp"], ids["a.jpg"], ids["a.png"]} == {"A", "a_jpg", "a_png_2"}


def test_id_does_not_depend_on_other_pictures_being_broken(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "a.jpg").write_text("broken")
    assert [p.id for p in scan(tmp_path, 1).pictures] == ["a_png"]
    assert [e.id for e in run(tmp_path, tmp_path.parent / "out")[0]] == ["a_png"]


def test_kohya_folders_set_repeats(tmp_path: Path) -> None:
    for name in ("30_jefpajot man/0.jpg", "30_jefpajot man/smile/1.jpg", "5_other/2.jpg", "plain/3.jpg", "4.jpg"):
        draw(tmp_path / name)
    repeats = {p.id: p.repeats for p in scan(tmp_path, 2).pictures}
    expected = {"30_jefpajot man/0": 30, "30_jefpajot man/smile/1": 30, "5_other/2": 5, "plain/3": 2, "4": 2}
    assert repeats == expected


def test_repeats_in_the_data_sets_own_name_are_not_used_in_silence(tmp_path: Path) -> None:
    draw(tmp_path / "30_jefpajot man/0.jpg")
    found = scan(tmp_path / "30_jefpajot man", 1)
    assert [p.repeats for p in found.pictures] == [1]
    assert "30 repeats" in found.warnings[0] and "dataset.repeats" in found.warnings[0]
    assert scan(tmp_path / "30_jefpajot man", 30).warnings == []


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    draw(tmp_path / "data/a.jpg")
    draw(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/round").symlink_to(tmp_path / "data")
    found = scan(tmp_path / "data", 1)
    assert [p.id for p in found.pictures] == ["a", "link/b"]
    assert [s.file for s in found.skipped] == ["round/"]


@pytest.mark.usefixtures("without_heif")
def test_folder_without_pictures_names_the_folder_and_the_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures in .*JPEG, PNG") as told:
        scan(tmp_path, 1)
    assert str(tmp_path) in str(told.value)
    with pytest.raises(DataError, match=r"no folder .*nowhere: .*dataset\.path.*JPEG"):
        scan(tmp_path / "nowhere", 1)
    (tmp_path / "file.jpg").write_text("")
    with pytest.raises(DataError, match=r"file\.jpg is a file, not a folder"):
        scan(tmp_path / "file.jpg", 1)
    (tmp_path / "file.jpg").rename(tmp_path / "photo.heic")
    with pytest.raises(DataError, match=r"no pictures in .*left out: photo\.heic: .*JPEG or PNG"):
        scan(tmp_path, 1)


def test_folder_of_broken_pictures_lists_them(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("words")
    (tmp_path / "b.png").write_bytes(b"")
    for find in (lambda: scan(tmp_path, 1), lambda: run(tmp_path, tmp_path / "out")):
        with pytest.raises(DataError, match=r"none of the 2 pictures in .* can be used: a\.jpg: .*; b\.png: .*empty"):
            find()


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_name_that_is_not_unicode_is_left_out_by_name(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    assert [(s.file, "UTF-8" in s.reason) for s in scan(tmp_path, 1).skipped] == [("caf�.jpg", True)]


# buckets


def kohya_buckets(resolution: int, smallest: int, largest: int, step: int) -> list[tuple[int, int]]:
    """sd-scripts' library/model_util.make_bucket_resolutions, retold."""
    area, found = resolution * resolution, set()
    width = int(math.sqrt(area) // step) * step
    found.add((width, width))
    width = smallest
    while width <= largest:
        height = min(largest, int((area // width) // step) * step)
        if height >= smallest:
            found |= {(width, height), (height, width)}
        width += step
    return sorted(found)


@pytest.mark.parametrize(
    "numbers", [(512, 256, 1024, 64), (1024, 256, 2048, 64), (768, 320, 1024, 32), (64, 32, 128, 8)]
)
def test_buckets_are_kohyas(numbers: tuple[int, int, int, int]) -> None:
    resolution, smallest, largest, step = numbers
    section = PrepareSection(crop="bucket", bucket_step=step, bucket_min=smallest, bucket_max=largest)
    assert buckets.allowed_sizes(resolution, section, 8) == kohya_buckets(*numbers)


@settings(deadline=None)
@given(
    st.integers(64, 1200),
    st.sampled_from([8, 16, 32, 64]),
    st.integers(1, 4000),
    st.integers(1, 4000),
)
def test_every_picture_gets_a_bucket_within_the_area(resolution: int, step: int, width: int, height: int) -> None:
    section = PrepareSection(crop="bucket", bucket_step=step, bucket_min=step)
    sizes = buckets.allowed_sizes(resolution, section, 8)
    chosen = buckets.nearest_bucket(width, height, sizes)
    assert chosen in sizes and {(b, a) for a, b in sizes} == set(sizes)
    nearest = min(abs(a / b - width / height) for a, b in sizes)
    assert chosen == (width, height) or abs(chosen[0] / chosen[1] - width / height) == nearest
    for a, b in sizes:
        assert a % step == b % step == 0 and step <= min(a, b) and max(a, b) <= 2 * resolution
        assert a * b <= resolution**2


def test_nearest_bucket_keeps_the_aspect() -> None:
    sizes = buckets.bucket_sizes(512, 64, 256, 1024)
    assert buckets.nearest_bucket(1000, 1000, sizes) == (512, 512)
    assert buckets.nearest_bucket(3000, 2000, sizes) == (640, 384)
    assert buckets.nearest_bucket(2000, 3000, sizes) == (384, 640)
    assert buckets.nearest_bucket(9000, 100, sizes) == (1024, 256)


@pytest.mark.parametrize(
    ("resolution", "section", "told"),
    [
        (512, PrepareSection(crop="bucket", bucket_step=20), "bucket_step = 20: this base needs a multiple of 8"),
        (48, PrepareSection(crop="bucket"), "bucket_step = 64: must not exceed dataset.resolution = 48"),
        (512, PrepareSection(crop="bucket", bucket_min=600), "bucket_min = 600: must not exceed 512"),
        (512, PrepareSection(crop="bucket", bucket_max=256), "bucket_max = 256: must be at least 512"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(resolution: int, section: PrepareSection, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        buckets.allowed_sizes(resolution, section, 8)


def test_sizes_that_are_not_as_asked_are_told() -> None:
    assert buckets.allowed_sizes(500, PrepareSection(), 8) == [(496, 496)]
    assert "496 x 496" in buckets.size_warnings(500, PrepareSection(), 8)[0]
    assert "one bucket" in buckets.size_warnings(64, PrepareSection(crop="bucket"), 8)[0]
    assert buckets.size_warnings(512, PrepareSection(crop="bucket"), 8) == []


# the stage


def test_prepared_pictures_have_the_size_and_the_record_says_so(tmp_path: Path) -> None:
    draw(tmp_path / "photos/wide.jpg", 200, 100)
    draw(tmp_path / "photos/5_x dog/tall.png", 90, 180, seed=1)
    examples, folder, _ = run(tmp_path / "photos", tmp_path / "prepare", repeats=2)
    assert [(e.id, e.repeats) for e in examples] == [("5_x dog/tall", 5), ("wide", 2)]
    for example in examples:
        picture = Image.open(example.image)
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 64))
        assert example.image == folder.path / "images" / f"{example.id}.png"
        assert sha256_of(example.image) == example.sha256
    wide = examples[1]
    assert (wide.source, wide.source_width, wide.source_height) == (tmp_path / "photos/wide.jpg", 200, 100)
    assert picture.tobytes() == images.fit(images.open_picture(wide.source), 64, 64).tobytes()
    assert folder.manifest()["pictures"] == 2 and folder.manifest()["sizes"] == {"64x64": 2}


def test_originals_are_not_touched(tmp_path: Path) -> None:
    path = draw(tmp_path / "photos/a.jpg")
    before = path.read_bytes(), path.stat().st_mtime_ns
    run(tmp_path / "photos", tmp_path / "prepare")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["a.jpg"]


def test_buckets_keep_the_aspect_of_each_picture(tmp_path: Path) -> None:
    draw(tmp_path / "photos/wide.jpg", 300, 200)
    draw(tmp_path / "photos/tall.jpg", 200, 300)
    draw(tmp_path / "photos/square.jpg", 200, 200)
    examples, folder, _ = run(tmp_path / "photos", tmp_path / "out", PrepareSection(crop="bucket", bucket_step=8))
    assert {e.id: (e.width, e.height) for e in examples} == {"wide": (80, 48), "tall": (48, 80), "square": (64, 64)}
    assert folder.manifest()["sizes"] == {"64x64": 1, "48x80": 1, "80x48": 1}


def test_enlarged_and_animated_and_skipped_are_said_by_name(tmp_path: Path) -> None:
    draw(tmp_path / "photos/small.png", 40, 32)
    draw(tmp_path / "photos/exact.png", 64, 64, seed=1)
    (tmp_path / "photos/broken.png").write_bytes(b"")
    frames = [Image.new("RGB", (90, 90), color) for color in ("red", "green")]
    frames[0].save(tmp_path / "photos/moving.gif", save_all=True, append_images=frames[1:])
    _, folder, lines = run(tmp_path / "photos", tmp_path / "out")
    manifest = folder.manifest()
    assert [s["file"] for s in manifest["skipped"]] == ["broken.png"]
    assert manifest["warnings"] == [
        "moving.gif has 2 frames or pages; only the first is used",
        "small.png (40 x 32) is enlarged 2.00 times to fill 64 x 64",
    ]
    assert lines == ["skipped broken.png: the file is empty (0 bytes)", *manifest["warnings"]]


def test_pictures_below_the_smallest_side_are_left_out_by_name(tmp_path: Path) -> None:
    draw(tmp_path / "photos/small.png", 40, 29)
    draw(tmp_path / "photos/large.png", 40, 30, seed=1)
    section = PLAIN.model_copy(update={"smallest_side": 30})
    examples, folder, _ = run(tmp_path / "photos", tmp_path / "out", section, resolution=32)
    assert [e.id for e in examples] == ["large"]
    assert [s["file"] for s in folder.manifest()["skipped"]] == ["small.png"]


def test_second_run_does_nothing_but_says_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "photos/small.png", 40, 32)
    first, _, said = run(tmp_path / "photos", tmp_path / "out")
    monkeypatch.setattr(images, "open_picture", None)
    again, _, said_again = run(tmp_path / "photos", tmp_path / "out")
    assert again == first and said_again == said and said


@pytest.mark.parametrize("relative", [False, True])
def test_records_are_read_back_equal_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    draw(tmp_path / "photos/sub/a.png")
    monkeypatch.chdir(tmp_path)
    place = Path() if relative else tmp_path
    first, _, _ = run(place / "photos", place / "runs/one/prepare")
    again, _, _ = run(place / "photos", place / "runs/one/prepare")
    assert first == again
    assert first[0].source == tmp_path / "photos/sub/a.png" and first[0].image.is_file()


def test_changed_content_is_noticed_even_under_the_same_name_and_time(tmp_path: Path) -> None:
    path = draw(tmp_path / "photos/a.png", seed=0)
    stat = path.stat()
    first, _, _ = run(tmp_path / "photos", tmp_path / "out")
    draw(path, seed=1)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second, _, _ = run(tmp_path / "photos", tmp_path / "out")
    assert first[0].id == second[0].id and first[0].sha256 != second[0].sha256


def test_removed_picture_and_new_setting_are_noticed(tmp_path: Path) -> None:
    draw(tmp_path / "photos/a.png")
    draw(tmp_path / "photos/b.png")
    run(tmp_path / "photos", tmp_path / "out")
    (tmp_path / "photos/b.png").unlink()
    examples, folder, _ = run(tmp_path / "photos", tmp_path / "out")
    assert [e.id for e in examples] == ["a"] and not (folder.path / "images/b.png").exists()
    assert run(tmp_path / "photos", tmp_path / "out", resolution=32)[0][0].width == 32


def test_interrupted_run_goes_on_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(6):
        draw(tmp_path / f"photos/{index}.png", seed=index)
    whole, _, _ = run(tmp_path / "photos", tmp_path / "whole")

    class Interrupting(Silent):
        @contextmanager
        def track(self, title, total):  # type: ignore[no-untyped-def]
            class Bar:
                done = 0

                def advance(self, count: int = 1, note: str = "") -> None:
                    self.done += count
                    if self.done == 3:
                        raise KeyboardInterrupt

            yield Bar()

    dataset = DatasetSection(path=tmp_path / "photos", resolution=64)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_images(dataset, PLAIN, 8, StageFolder(tmp_path / "out"), Interrupting())
    left = set((tmp_path / "out/images").glob("*.png"))
    assert len(left) >= 3
    opened: list[str] = []
    original = images.open_picture
    monkeypatch.setattr(images, "open_picture", lambda p, b="white": (opened.append(p.stem), original(p, b))[1])
    examples, _, _ = run(tmp_path / "photos", tmp_path / "out")
    assert set(opened).isdisjoint({p.stem for p in left})
    assert [e.sha256 for e in examples] == [e.sha256 for e in whole]


def test_wrong_color_is_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="prepare.background"):
        run(tmp_path / "nowhere", tmp_path / "out", PrepareSection(background="whit"))
