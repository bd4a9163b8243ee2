"""Faces, masks, near-duplicates and where a square is cut: the right face stays, what is blurred is not learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance

from captune import checking, detectors, images, prepare
from captune.detectors import Box, Chosen, Face
from captune.errors import DataError, RecipeError
from captune.prepare import duplicates, faces, focus
from captune.prepare.folder import prepare_folder
from captune.progress import Silent
from captune.recipe import DatasetSection, PrepareSection, Recipe, from_values
from captune.runs import StageFolder, sha256_of
from captune.train import cache
from captune.types import Example

PORTRAIT = Path(__file__).parents[3] / "shared/data/faces/astronaut.jpg"
RED = (250, 0, 0)


class Painted:
    """Finds red rectangles: a detector whose truth is known."""

    def __init__(self, model: Path) -> None:
        pass

    def detect(self, image: Image.Image) -> list[Face]:
        red = np.asarray(image)[:, :, 0].astype(int) - np.asarray(image)[:, :, 1] > 150
        found, columns = [], red.any(axis=0)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], columns.astype(int), [0]])))
        for left, right in zip(edges[::2], edges[1::2], strict=True):
            rows = np.flatnonzero(red[:, left:right].any(axis=1))
            found.append(Face((float(left), float(rows[0]), float(right), float(rows[-1] + 1)), 1.0))
        return found


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_bytes(b"painted")
    monkeypatch.setitem(detectors.DETECTORS, "haar", "tests.unit.test_faces:Painted")
    monkeypatch.setattr(detectors, "choose", lambda name, file: Chosen("painted", model))
    monkeypatch.setattr(detectors, "installed", lambda name, file: Chosen("painted", model))
    monkeypatch.setattr(Chosen, "settings", lambda self: {"name": "painted"})
    monkeypatch.setattr(Chosen, "load", lambda self: Painted(model))


def scene(path: Path, size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]]) -> Path:
    """Grey noise with red rectangles that have a black line through them."""
    noise = np.random.default_rng(1).integers(90, 130, (size[1], size[0], 1)).repeat(3, axis=2).astype(np.uint8)
    image = Image.fromarray(noise)
    for left, top, right, bottom in boxes:
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=RED)
        ImageDraw.Draw(image).line((left, top, right - 1, bottom - 1), fill=(0, 0, 0), width=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def run(
    photos: Path, out: Path, resolution: int = 64, **options: object
) -> tuple[list[Example], list[dict], StageFolder]:
    folder, section = StageFolder(out), PrepareSection.model_validate(options)
    dataset = DatasetSection(path=photos, resolution=resolution)
    examples = prepare.prepare_images(dataset, section, 8, folder, Silent())
    files = [json.loads(line) for line in (out / "files.jsonl").read_text().splitlines()]
    return examples, files, folder


# blur and masks


@pytest.mark.usefixtures("painted")
def test_others_keeps_the_largest_face_and_masks_the_rest(tmp_path: Path) -> None:
    scene(tmp_path / "photos/a.png", (256, 256), [(20, 90, 100, 170), (200, 20, 230, 50)])
    (example,), (record,), folder = run(tmp_path / "photos", tmp_path / "out", blur_faces="others")
    assert record["subject"] == 0 and record["blurred"] == [1]
    assert example.mask is not None
    mask, picture = np.asarray(Image.open(example.mask)), np.asarray(Image.open(example.image)).astype(int)
    assert mask.shape == (64, 64) and set(np.unique(mask)) == {0, 255}
    assert mask[5:13, 50:58].max() == 0 and mask[20:45, 3:28].min() == 255
    whole = np.asarray(images.fit(images.open_picture(tmp_path / "photos/a.png"), 64, 64)).astype(int)
    changed = np.abs(picture - whole).max(axis=2) > 0
    assert changed.any() and not changed[mask == 255].any(), "all that is blurred is masked"
    assert folder.manifest()["faces"] == {"detector": "painted", "found": 2, "blurred": 1}


@pytest.mark.usefixtures("painted")
def test_all_blurs_every_face_and_a_picture_without_faces_is_named(tmp_path: Path) -> None:
    scene(tmp_path / "photos/a.png", (256, 256), [(20, 90, 100, 170), (200, 20, 230, 50)])
    scene(tmp_path / "photos/none.png", (200, 256), [])
    examples, files, folder = run(tmp_path / "photos", tmp_path / "out", blur_faces="all")
    assert [f["blurred"] for f in files] == [[0, 1], []]
    assert np.asarray(Image.open(examples[1].mask)).min() == 255
    assert any("no face was found in 1 of 2 pictures" in w and "none.png" in w for w in folder.manifest()["warnings"])


@pytest.mark.usefixtures("painted")
def test_boxes_fit_with_exif_rotation_crop_and_buckets(tmp_path: Path) -> None:
    """A picture stored on its side gives the same picture and mask as the one stored upright."""
    upright = Image.open(scene(tmp_path / "x.png", (300, 200), [(10, 60, 70, 140), (260, 20, 290, 50)]))
    (tmp_path / "up").mkdir(), (tmp_path / "side").mkdir()
    upright.save(tmp_path / "up/a.png")
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6  # to be turned clockwise when shown
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "side/a.png", exif=exif)
    for number, options in enumerate(({"crop": "square"}, {"crop": "bucket", "bucket_step": 8})):
        (one,), (record,), _ = run(tmp_path / "up", tmp_path / f"up{number}", blur_faces="others", **options)
        (two,), (again,), _ = run(tmp_path / "side", tmp_path / f"side{number}", blur_faces="others", **options)
        assert record["faces"] == again["faces"] and record["blurred"] == [1]
        assert (one.sha256, one.centering) == (two.sha256, two.centering)
        assert sha256_of(one.mask) == sha256_of(two.mask)
        shown = np.asarray(Image.open(one.image)).astype(int)
        red = (shown[:, :, 0] - shown[:, :, 1] > 150) & (np.asarray(Image.open(one.mask)) == 255)
        assert red.any(), "the subject is there and learned"


@pytest.mark.usefixtures("painted")
def test_square_is_cut_around_the_face(tmp_path: Path) -> None:
    scene(tmp_path / "photos/a.png", (400, 100), [(300, 30, 340, 70)])
    (example,), (record,), _ = run(tmp_path / "photos", tmp_path / "out")
    left, _, right, _ = images.crop_box((400, 100), (64, 64), example.centering)
    assert (left + right) / 2 == pytest.approx(320, abs=0.5) and record["around"] == "face"
    (example,), (record,), _ = run(tmp_path / "photos", tmp_path / "plain", focus="center")
    assert example.centering == (0.5, 0.5) and record["faces"] == []


@pytest.mark.usefixtures("painted")
def test_picture_whose_faces_fill_it_is_left_out_by_name(tmp_path: Path) -> None:
    scene(tmp_path / "photos/a.png", (100, 100), [(5, 5, 95, 95)])
    scene(tmp_path / "photos/b.png", (100, 100), [])
    examples, files, _ = run(tmp_path / "photos", tmp_path / "out", blur_faces="all")
    assert [e.id for e in examples] == ["b"]
    assert "nothing is left to learn" in files[0]["reason"]


def test_blur_without_a_detector_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene(tmp_path / "photos/a.png", (100, 100), [])
    monkeypatch.setattr(detectors, "missing", lambda name: "OpenCV is not installed")
    with pytest.raises(
        RecipeError, match=r"blur_faces = .*no face detector is installed.*pip install 'captune\[faces\]'"
    ):
        run(tmp_path / "photos", tmp_path / "out", blur_faces="others")
    assert not (tmp_path / "out").exists()
    with pytest.raises(RecipeError) as stopped:
        checking.check(asked(tmp_path / "photos", blur_faces="all"))
    assert str(stopped.value) == (
        'prepare.blur_faces = "all": no face detector is installed (OpenCV is not installed); '
        "install one with: pip install 'captune[faces]'"
    )
    assert len(run(tmp_path / "photos", tmp_path / "out")[0]) == 1, "without blur none is needed"


def test_options_that_nothing_would_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"face_detector is not read"):
        prepare.check(PrepareSection(crop="bucket", face_detector="haar"))
    with pytest.raises(RecipeError, match=r"needs prepare\.face_detector"):
        prepare.check(PrepareSection(blur_faces="all", face_model=tmp_path))
    with pytest.raises(DataError, match=r"there is no file .*face_reference"):
        prepare.check(PrepareSection(blur_faces="others", face_reference=tmp_path / "none.jpg"))


def test_no_detail_is_left_of_a_blurred_face() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (100, 100, 3), dtype=np.uint8))
    blurred = np.asarray(faces.blur(noise, [Face((30, 30, 70, 70), 1.0)])).astype(float)
    assert blurred[40:60, 40:60].std() < 0.2 * np.asarray(noise)[40:60, 40:60].std()
    assert (blurred[:20] == np.asarray(noise)[:20]).all()


def test_the_kept_face_is_spared_where_another_is_blurred_over_it() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (100, 100, 3), dtype=np.uint8))
    kept = Face((50, 30, 80, 70), 1.0)
    blurred = faces.blur(noise, [Face((25, 30, 55, 70), 1.0)], kept)
    assert blurred.getpixel((55, 50)) == noise.getpixel((55, 50))
    assert blurred.getpixel((40, 50)) != noise.getpixel((40, 50))


def test_masks_of_prepare_are_read_without_being_asked_for_and_join_those_beside(tmp_path: Path) -> None:
    source, prepared = tmp_path / "a.png", tmp_path / "out/a.png"
    Image.new("RGB", (32, 16)).save(source)
    prepared.parent.mkdir()
    Image.new("L", (16, 16), 255).save(tmp_path / "out/a.mask.png")
    made = Image.open(tmp_path / "out/a.mask.png")
    made.paste(0, (0, 0, 16, 8))
    made.save(tmp_path / "out/a.mask.png")
    beside = Image.new("L", (32, 16), 255)
    beside.paste(0, (0, 0, 24, 16))
    beside.save(images.mask_file(source))
    plain = Example("a", prepared, source, 16, 16, 32, 16, 1, "", centering=(1.0, 0.5))
    example = replace(plain, mask=tmp_path / "out/a.mask.png")
    latents = {"a": torch.zeros(4, 4, 4)}

    def read(e: Example, asked: bool) -> torch.Tensor:
        return cache.read_masks(cache.mask_files([e], beside=asked), [e], latents)["a"][0]

    assert cache.mask_files([plain], beside=False) == {}
    assert read(plain, True).tolist() == [[0, 0, 1, 1]] * 4, "cut at the right end, as its picture"
    assert read(example, False).tolist() == [[0] * 4] * 2 + [[1] * 4] * 2
    assert read(example, True).tolist() == [[0] * 4] * 2 + [[0, 0, 1, 1]] * 2


# which face


def test_the_largest_and_most_central_face_is_the_subject() -> None:
    image = Image.new("RGB", (200, 100))

    def chosen(*boxes: Box) -> int | None:
        return faces.subject_of([Face(box, 1.0) for box in boxes], image)

    assert chosen() is None
    assert chosen((0, 0, 20, 20), (90, 40, 130, 80)) == 1
    assert chosen((0, 0, 20, 20), (90, 40, 110, 60)) == 1, "of equal size the central one"
    assert chosen((0, 0, 60, 60), (90, 40, 110, 60)) == 0


def test_description_knows_a_face_again_in_other_light_and_size() -> None:
    rng = np.random.default_rng(0)
    one, other = (Image.fromarray(rng.integers(0, 255, (12, 12), dtype=np.uint8)).resize((120, 120)) for _ in range(2))
    box = (0.0, 0.0, 120.0, 120.0)
    dark = ImageEnhance.Brightness(one).enhance(0.7).resize((80, 80))
    near = faces.distance(faces.describe(one, box), faces.describe(dark, (0, 0, 80, 80)))
    assert near < 0.7 * faces.distance(faces.describe(one, box), faces.describe(other, box))
    assert faces.describe(one, box).shape == (49, 59) and faces.describe(one, box).sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("name", ["centerface", "haar"])
def test_detectors_find_a_portrait_among_pictures_of_several_sizes(name: str) -> None:
    if not PORTRAIT.is_file() or detectors.missing(name) is not None:
        pytest.skip(f"{name} or the portrait is not here")
    detector = detectors.choose(name, None).load()
    portrait = images.open_picture(PORTRAIT).crop((100, 0, 356, 256))
    for size in (256, 160, 256):
        (found,) = faces.find(detector, portrait.resize((size, size)))
        x, y = ((found.box[i] + found.box[i + 2]) / 2 / size for i in (0, 1))
        assert 0.3 < x < 0.65 and 0.3 < y < 0.65


@pytest.fixture(scope="module")
def centerface() -> detectors.Detector:
    if not PORTRAIT.is_file() or detectors.missing("centerface") is not None:
        pytest.skip("centerface or the portrait is not here")
    return detectors.choose("centerface", None).load()


def test_face_that_fills_its_picture_is_found_whole(centerface: detectors.Detector) -> None:
    near = images.open_picture(PORTRAIT).crop((165, 55, 285, 200)).resize((1200, 1450))
    (found,) = faces.find(centerface, near)
    left, top, right, bottom = found.box
    assert left < 250 and top < 300 and right > 950 and bottom > 1100, "brows to chin, cheek to cheek"


def test_faces_of_a_panorama_are_found(centerface: detectors.Detector) -> None:
    wide = Image.new("RGB", (6000, 1000), (120, 130, 120))
    wide.paste(images.open_picture(PORTRAIT).resize((160, 160)), (3000, 500))
    (found,) = faces.find(centerface, wide)
    assert 3040 < found.box[0] < found.box[2] < 3100 and 500 < found.box[1] < found.box[3] < 570


@pytest.mark.usefixtures("painted")
@pytest.mark.parametrize("side", [24, 96])
def test_mask_covers_what_scaling_spreads_of_the_blur(tmp_path: Path, side: int) -> None:
    """A picture that is enlarged eight times, or made smaller, changes nowhere but where it is masked."""
    boxes = [(x * side // 24, 4 * side // 24, (x + 3) * side // 24, 7 * side // 24) for x in range(3, 19, 5)]
    scene(tmp_path / "photos/a.png", (side, side), boxes)
    (example,), _, _ = run(tmp_path / "photos", tmp_path / "out", 192, blur_faces="all")
    whole = np.asarray(images.fit(images.open_picture(tmp_path / "photos/a.png"), 192, 192)).astype(int)
    changed = np.abs(np.asarray(Image.open(example.image)) - whole).max(axis=2) > 0
    assert changed.any() and not changed[np.asarray(Image.open(example.mask)) == 255].any()


def test_others_keeps_the_right_one_of_two_real_faces(tmp_path: Path) -> None:
    if not PORTRAIT.is_file() or detectors.missing("centerface") is not None:
        pytest.skip("centerface or the portrait is not here")
    face = images.open_picture(PORTRAIT).crop((120, 10, 340, 230))
    pair = Image.new("RGB", (384, 256), "gray")
    pair.paste(face.resize((110, 110)), (10, 100))
    pair.paste(face, (150, 20))
    (tmp_path / "photos").mkdir()
    pair.save(tmp_path / "photos/pair.png")
    (example,), (record,), _ = run(tmp_path / "photos", tmp_path / "out", resolution=128, blur_faces="others")
    assert len(record["faces"]) == 2 and record["faces"][record["subject"]][0] > 150
    assert record["around"] == "face" and example.mask is not None


# near-duplicates, saliency


def photo(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).resize((120, 120), Image.Resampling.BICUBIC)


def test_near_duplicates_are_found_in_pairs_and_mirrored_too() -> None:
    one, other = photo(0), photo(1)
    shown = {
        "one": one,
        "other": other,
        "small": one.resize((60, 60)),
        "mirrored": one.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }
    looks = {name: duplicates.look(image) for name, image in shown.items()}
    pairs = list(duplicates.near_duplicates(looks))
    assert {(p.first, p.second): p.mirrored for p in pairs} == {
        ("one", "small"): False,
        ("one", "mirrored"): True,
        ("small", "mirrored"): True,
    }
    assert set(duplicates.dropped(pairs, {"one": 9, "other": 1, "small": 1, "mirrored": 9})) == {"one", "small"}


def test_near_duplicates_are_named_and_left_out_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    photo(0).save(tmp_path / "photos/a.png")
    photo(0).resize((90, 90)).save(tmp_path / "photos/b.png")
    photo(1).save(tmp_path / "photos/c.png")
    examples, _, folder = run(tmp_path / "photos", tmp_path / "kept")
    assert len(examples) == 3
    assert any("a.png and b.png show nearly the same" in line for line in folder.manifest()["warnings"])
    assert (folder.path / "near-duplicates.png").is_file()
    examples, files, folder = run(tmp_path / "photos", tmp_path / "dropped", near_duplicates="drop")
    assert [e.id for e in examples] == ["a", "c"] and not (folder.path / "images/b.png").exists()
    assert {f["file"]: f["became"] for f in files} == {"a.png": "prepared", "b.png": "skipped", "c.png": "prepared"}


@pytest.mark.parametrize("x", [0.15, 0.5, 0.85])
def test_square_holds_what_stands_out(x: float) -> None:
    noise = np.random.default_rng(2).normal(120, 4, (200, 500, 3))
    image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    left = round(x * 500) - 30
    image.paste(photo(3).resize((60, 60)), (left, 70))
    kept = images.crop_box(image.size, (64, 64), focus.on_salient(image, (64, 64)))
    assert kept[0] <= left and left + 60 <= kept[2]
    assert focus.on_salient(Image.new("RGB", (300, 100), "gray"), (64, 64)) == (0.5, 0.5)


# a folder by itself


def asked(photos: Path, **options: object) -> Recipe:
    arm = {"name": "a", "captioner": {"name": "sidecar"}}
    values = {
        "dataset": {"path": str(photos), "resolution": 64},
        "prepare": options,
        "train": {"steps": 1},
        "arm": [arm],
    }
    return from_values(values)


def test_folder_becomes_a_data_set_and_every_file_has_a_line(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    photo(0).save(photos / "a.png")
    photo(1).convert("CMYK").save(photos / "b.jpg")
    (photos / "a.txt").write_text("a caption")
    mask = Image.new("L", (120, 120), 255)
    mask.paste(0, (0, 0, 60, 120))
    mask.save(photos / "a.mask.png")
    (photos / "broken.jpg").write_bytes(b"no")
    (photos / "film.mp4").write_bytes(b"no")
    (photos / ".hidden").write_bytes(b"no")
    before = {p.name: sha256_of(p) for p in photos.iterdir()}
    told = prepare_folder(asked(photos), tmp_path / "out", Silent())
    assert {p.name: sha256_of(p) for p in photos.iterdir()} == before
    assert (told.pictures, told.captions, told.masks, told.skipped) == (2, 1, 1, 3)
    lines = [json.loads(line) for line in (tmp_path / "out/files.jsonl").read_text().splitlines()]
    assert {line["file"] for line in lines} == set(before)
    assert all(line["reason"] for line in lines if line["became"] != "prepared")
    made = tmp_path / "out/images"
    assert sorted(p.name for p in made.iterdir()) == ["a.mask.png", "a.png", "a.txt", "b.png"]
    assert np.asarray(Image.open(made / "a.mask.png"))[:, [0, -1]].tolist() == [[0, 255]] * 64
    assert (tmp_path / "out/contact-sheet-1.png").is_file()
    (made / "a.txt").write_text("better")
    assert prepare_folder(asked(photos), tmp_path / "out", Silent()).already_done
    assert (made / "a.txt").read_text() == "better", "what a person changed stays"


def test_folder_is_never_written_over_what_is_not_its_own(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    photo(0).save(photos / "a.png")
    for out in (photos, photos / "out", tmp_path):
        with pytest.raises(DataError, match="lie within each other"):
            prepare_folder(asked(photos), out, Silent())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(DataError, match="did not make"):
        prepare_folder(asked(photos), tmp_path / "mine", Silent(), replace=True)
    prepare_folder(asked(photos), tmp_path / "out", Silent())
    other = asked(photos, smallest_side=20)
    with pytest.raises(DataError, match="--replace"):
        prepare_folder(other, tmp_path / "out", Silent())
    assert not prepare_folder(other, tmp_path / "out", Silent(), replace=True).already_done


def test_result_does_not_depend_on_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(6):
        photo(index).save(photos / f"{index}.png")
    from captune.prepare import workers

    prepare_folder(asked(photos), tmp_path / "one", Silent(), workers=1)
    monkeypatch.setattr(workers, "MANY", 1)
    prepare_folder(asked(photos), tmp_path / "two", Silent(), workers=2)
    assert (tmp_path / "one/files.jsonl").read_bytes() == (tmp_path / "two/files.jsonl").read_bytes()
    assert not (tmp_path / "two/journal.jsonl").exists()


def test_torn_line_and_missing_picture_are_done_again(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for index in range(3):
        photo(index).save(photos / f"{index}.png")
    whole = prepare_folder(asked(photos), tmp_path / "whole", Silent())
    lines = (tmp_path / "whole/files.jsonl").read_bytes().splitlines(keepends=True)
    prepare_folder(asked(photos), out, Silent())
    (out / "manifest.json").rename(out / "started.json")  # as a run leaves it that is killed before it ends
    (out / "images/1.png").unlink()
    (out / "journal.jsonl").write_bytes(lines[0] + lines[1] + lines[2][:50])
    kept = (out / "images/0.png").stat().st_ino
    again = prepare_folder(asked(photos), out, Silent())
    assert again.pictures == whole.pictures and not again.already_done
    assert (out / "files.jsonl").read_bytes() == b"".join(lines)
    assert (out / "images/0.png").stat().st_ino == kept, "what was whole is not made again"
