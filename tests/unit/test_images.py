"""Pictures as files hand them over: turned, in other colour modes, cut off."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from captune import images
from captune.errors import DataError, RecipeError

PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data"


def two_halves(width: int = 64, height: int = 32) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (width, height), (220, 30, 30))
    picture.paste((30, 30, 220), (width // 2, 0, width, height))
    return picture


def close(picture: Image.Image, place: tuple[int, int], color: tuple[int, int, int], tolerance: int = 12) -> bool:
    found = picture.getpixel(place)
    assert isinstance(found, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(found, color, strict=True))


# The EXIF orientation, and where the stored picture's red left half is seen: (x, y) in a 64 x 32 or 32 x 64 picture.
TURNED = {
    1: ((64, 32), (8, 16)),
    2: ((64, 32), (56, 16)),
    3: ((64, 32), (56, 16)),
    4: ((64, 32), (8, 16)),
    5: ((32, 64), (16, 8)),
    6: ((32, 64), (16, 8)),
    7: ((32, 64), (16, 56)),
    8: ((32, 64), (16, 56)),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_pictures_stand_as_a_viewer_shows_them(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    path = tmp_path / f"turned{suffix}"
    two_halves().save(path, exif=exif, quality=95)
    size, red = TURNED[orientation]
    picture, header = images.open_picture(path), images.read_header(path)
    assert picture.size == size == (header.width, header.height)
    assert close(picture, red, (220, 30, 30), 20)


def test_transparent_pixels_take_the_background(tmp_path: Path) -> None:
    picture = two_halves().convert("RGBA")
    picture.paste((0, 255, 0, 0), (0, 0, 32, 32))  # green that nobody sees
    picture.paste((0, 0, 0, 128), (32, 0, 64, 32))
    picture.save(tmp_path / "a.png")
    opened = images.open_picture(tmp_path / "a.png", "#ff8000")
    assert opened.getpixel((5, 5)) == (255, 128, 0)
    assert close(opened, (60, 5), (127, 64, 0), 2)
    assert images.open_picture(tmp_path / "a.png").getpixel((5, 5)) == (255, 255, 255)


def test_palette_with_alpha_takes_the_background(tmp_path: Path) -> None:
    picture = two_halves().quantize(2)
    picture.info["transparency"] = picture.getpixel((0, 0))
    picture.save(tmp_path / "a.png", transparency=picture.getpixel((0, 0)))
    opened = images.open_picture(tmp_path / "a.png", "black")
    assert opened.getpixel((5, 5)) == (0, 0, 0)
    assert close(opened, (60, 5), (30, 30, 220))


def test_grey_with_alpha_takes_the_background(tmp_path: Path) -> None:
    Image.new("LA", (20, 20), (90, 0)).save(tmp_path / "a.png")
    assert images.open_picture(tmp_path / "a.png", "lime").getpixel((3, 3)) == (0, 255, 0)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep{suffix}")
    opened = np.asarray(images.open_picture(tmp_path / f"deep{suffix}"))
    assert opened.min() == 0 and opened.max() == 255
    assert np.abs(opened[..., 0] - values / 257).max() <= 0.5
    assert (opened[..., 0] == opened[..., 2]).all()


def test_floats_without_a_known_white_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 20), 0.5, np.float32)).save(tmp_path / "half.tif")
    Image.fromarray(np.full((20, 20), 900.0, np.float32)).save(tmp_path / "bright.tif")
    assert images.open_picture(tmp_path / "half.tif").getpixel((0, 0)) == (128, 128, 128)
    with pytest.raises(DataError, match=r"bright\.tif .* not between 0 and 1"):
        images.open_picture(tmp_path / "bright.tif")


def test_cmyk_is_seen_in_its_colors(tmp_path: Path) -> None:
    two_halves().convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    opened = images.open_picture(tmp_path / "print.jpg")
    assert opened.mode == "RGB"
    assert close(opened, (8, 16), (220, 30, 30), 25) and close(opened, (56, 16), (30, 30, 220), 25)


def test_color_profile_is_converted_and_dropped(tmp_path: Path) -> None:
    srgb = ImageCms.createProfile("sRGB")
    plain = ImageCms.ImageCmsProfile(srgb).tobytes()
    swapped = bytearray(plain)  # red and blue primaries exchanged: a profile whose effect is plain to see
    red, blue = swapped.index(b"rXYZ", 128), swapped.index(b"bXYZ", 128)
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    swapped = bytearray(bytes(swapped).replace("sRGB".encode("utf-16-be"), "odd!".encode("utf-16-be")))
    two_halves().save(tmp_path / "plain.png", icc_profile=plain)
    two_halves().save(tmp_path / "swapped.png", icc_profile=bytes(swapped))
    two_halves().save(tmp_path / "broken.png", icc_profile=b"no profile")
    assert images.open_picture(tmp_path / "plain.png").tobytes() == two_halves().tobytes()
    assert images.open_picture(tmp_path / "broken.png").tobytes() == two_halves().tobytes()
    seen = images.open_picture(tmp_path / "swapped.png")
    assert close(seen, (8, 16), (30, 30, 220), 6) and close(seen, (56, 16), (220, 30, 30), 6)
    images.write_png(seen, tmp_path / "again.png")
    assert "icc_profile" not in Image.open(tmp_path / "again.png").info


def test_first_frame_of_an_animation_is_taken_and_frames_are_counted(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "green", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert images.read_header(tmp_path / "moving.gif").frames == 3
    assert images.open_picture(tmp_path / "moving.gif").getpixel((3, 3)) == (255, 0, 0)


def broken_files(folder: Path) -> dict[str, str]:
    """Files that are no pictures, by name, with a word of the reason."""
    (folder / "text.jpg").write_text("a caption in the wrong place")
    (folder / "empty.png").write_bytes(b"")
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (80, 80, 3), dtype=np.uint8))
    for name in ("cut.jpg", "cut.png", "cut.webp"):
        data = io.BytesIO()
        noise.save(data, format={".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[name[3:]])
        (folder / name).write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    reasons = {"text.jpg": "none of the formats", "empty.png": "empty", "cut.jpg": "cut off", "cut.png": "cut off"}
    return {**reasons, "cut.webp": "", "missing.png": "does not exist"}


def test_broken_files_are_told_by_name_and_reason(tmp_path: Path) -> None:
    for name, reason in broken_files(tmp_path).items():
        with pytest.raises(images.PictureError, match=name) as told:
            images.open_picture(tmp_path / name)
        assert reason in told.value.reason, told.value.reason
        assert told.value.reason and "\n" not in str(told.value)


def test_unknown_color_names_the_field() -> None:
    with pytest.raises(RecipeError, match=r"prepare.background = 'whit'.*#rrggbb"):
        images.color("whit")


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (64, 64), (33, 40)])
def test_fit_keeps_the_centre_and_the_proportions(size: tuple[int, int]) -> None:
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    gradients = Image.fromarray((np.stack([x, y, 0 * x], -1) * 255).astype(np.uint8))
    fitted = images.fit(gradients, 64, 64)
    pixels = np.asarray(fitted, np.float32) / 255
    assert fitted.size == (64, 64)
    assert abs(pixels[..., 0].mean() - 0.5) < 0.01 and abs(pixels[..., 1].mean() - 0.5) < 0.01
    shown = (pixels[..., 0].max() - pixels[..., 0].min()) * size[0], np.ptp(pixels[..., 1]) * size[1]
    assert shown[0] == pytest.approx(shown[1], rel=0.06)  # as much of the source's width as of its height
    assert shown[0] == pytest.approx(min(size), rel=0.06)


def test_picture_of_the_right_size_is_left_alone() -> None:
    assert images.fit(two_halves(), 64, 32).tobytes() == two_halves().tobytes()


def test_enlargement_is_the_factor_that_covers() -> None:
    assert images.enlargement((100, 50), (100, 100)) == 2.0
    assert images.enlargement((400, 200), (100, 100)) == 0.5


def test_png_bytes_depend_on_pixels_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    two_halves().save(tmp_path / "source.png", exif=exif, dpi=(300, 300))
    images.write_png(images.open_picture(tmp_path / "source.png"), tmp_path / "first.png")
    images.write_png(two_halves(), tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert Image.open(tmp_path / "first.png").tobytes() == two_halves().tobytes()


def test_pixel_values_are_channels_first_in_minus_one_to_one() -> None:
    picture = Image.new("RGB", (6, 4), (255, 0, 127))
    pixel_values = images.to_pixel_values(picture)
    assert pixel_values.shape == (3, 4, 6) and pixel_values.dtype == np.float32
    assert pixel_values.flags.c_contiguous
    assert pixel_values[0].max() == 1.0 and pixel_values[1].min() == -1.0
    assert pixel_values[2, 0, 0] == pytest.approx(127 / 127.5 - 1)


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs are not here")
def test_photographs_open() -> None:
    for path in sorted(PHOTOGRAPHS.glob("*/*.jpg"))[:3] + sorted(PHOTOGRAPHS.glob("dreambooth/*/00.jpg")):
        header, picture = images.read_header(path), images.open_picture(path)
        assert picture.size == (header.width, header.height) and picture.mode == "RGB"
