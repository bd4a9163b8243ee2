"""The contact sheet: pictures before and after, with faces, what is cut off, and masks; near-duplicates in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from captune import images
from captune.prepare.duplicates import Pair
from captune.prepare.picture import PREPARED, FileRecord, place_of
from captune.progress import Progress
from captune.recipe import PrepareSection

TILE, GAP, LINE = 180, 8, 16  # sides of a picture, between two, and height of a line of text
COLUMNS, ROWS = 3, 6  # pairs of pictures on a page
KEPT, BLURRED, CUT, MASKED = (40, 200, 90), (235, 50, 50), (255, 210, 0), (235, 50, 50)
FONTS = ("DejaVuSans.ttf", "Arial Unicode.ttf", "segoeui.ttf", "Arial.ttf")  # that know more letters than Pillow's own
INK, SOFT = (30, 30, 36), (110, 110, 120)


def draw(
    records: Sequence[FileRecord],
    pairs: Sequence[Pair],
    root: Path,
    folder: Path,
    section: PrepareSection,
    progress: Progress,
) -> list[Path]:
    """Write contact-sheet-1.png and on: at most section.contact_sheet pictures, those with faces first, then pairs.

    On the left what was given, its frame in yellow where something is cut off, the subject's face in green and blurred ones
    in red; on the right what is trained on, in red what the loss leaves out. One picture is in memory at a time.
    """
    there = [record for record in records if record.became == PREPARED]
    shown = sorted(there, key=lambda r: not r.faces)[: section.contact_sheet]
    paths = []
    pages = [shown[i : i + COLUMNS * ROWS] for i in range(0, len(shown), COLUMNS * ROWS)]
    with progress.track("contact sheet", len(pages)) as bar:
        for number, page in enumerate(pages, start=1):
            cells = [_cell(r, root, folder, section.background) for r in page]
            paths.append(_write(cells, folder / f"contact-sheet-{number}.png"))
            bar.advance()
    if pairs and section.contact_sheet:
        limit = pairs[: COLUMNS * ROWS]
        cells = [_pair(pair, root, section.background) for pair in limit]
        paths.append(_write(cells, folder / "near-duplicates.png"))
    return paths


def _write(cells: Sequence[Image.Image], path: Path) -> Path:
    """Cells of one size, beside and below each other."""
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    width, height = cells[0].size
    page = Image.new("RGB", (columns * (width + 2 * GAP), rows * (height + GAP) + GAP), "white")
    for index, cell in enumerate(cells):
        page.paste(cell, (GAP + index % columns * (width + 2 * GAP), GAP + index // columns * (height + GAP)))
    images.write_png(page, path)
    return path


def _cell(record: FileRecord, root: Path, folder: Path, background: str) -> Image.Image:
    source, target = (record.source_width, record.source_height), (record.width, record.height)
    before = _thumbnail(images.open_picture(root / record.file, background))
    scale = before.width / source[0]
    pen = ImageDraw.Draw(before)
    frame = images.crop_box(source, target, record.centering)
    if frame[2] - frame[0] < source[0] - 1 or frame[3] - frame[1] < source[1] - 1:
        pen.rectangle(_scaled(frame, scale, before.size), outline=CUT, width=2)
    for index, box in enumerate(record.faces):
        color = BLURRED if index in record.blurred else KEPT
        pen.rectangle(_scaled(box, scale, before.size), outline=color, width=2)
    image = place_of(folder, record.id)
    with Image.open(image) as prepared:
        after = _thumbnail(prepared.convert("RGB"))
    if record.mask:
        with Image.open(images.mask_file(image)) as mask:
            learned = mask.convert("L").resize(after.size, Image.Resampling.NEAREST)
        tinted = Image.blend(after, Image.new("RGB", after.size, MASKED), 0.45)
        after = Image.composite(after, tinted, learned)
    return _beside(before, after, record.file, *_facts(record))


def _facts(record: FileRecord) -> tuple[str, str]:
    """A line on the sizes, and one on where the picture was cut and its faces."""
    sizes = f"{record.source_width} x {record.source_height} to {record.width} x {record.height}"
    if record.enlarged > 1:
        sizes += f", enlarged {record.enlarged:.2f} times"
    around = {"face": "cut around the face", "saliency": "cut around what stands out"}.get(record.around, "")
    return sizes, ", ".join(part for part in (around, _blurred(len(record.blurred), len(record.faces))) if part)


def _blurred(blurred: int, found: int) -> str:
    if not found:
        return ""
    if found == 1:
        return "1 face, blurred" if blurred else "1 face, kept"
    return f"{blurred or 'none'} of {found} faces blurred"


def _pair(pair: Pair, root: Path, background: str) -> Image.Image:
    first, second = (_thumbnail(images.open_picture(root / name, background)) for name in (pair.first, pair.second))
    mirrored = ", mirrored" if pair.mirrored else ""
    return _beside(first, second, f"{pair.first} and {pair.second}", f"{pair.distance} of 64 bits differ{mirrored}")


def _beside(left: Image.Image, right: Image.Image, title: str, *lines: str) -> Image.Image:
    cell = Image.new("RGB", (2 * TILE + GAP, TILE + (1 + len(lines)) * LINE + GAP), "white")
    for x, picture in ((0, left), (TILE + GAP, right)):
        cell.paste(picture, (x + (TILE - picture.width) // 2, (TILE - picture.height) // 2))
    pen, font = ImageDraw.Draw(cell), _font()
    for row, (text, color) in enumerate([(title, INK), *((line, SOFT) for line in lines)]):
        pen.text((0, TILE + 4 + row * LINE), _shortened(text, font, cell.width), fill=color, font=font)
    return cell


@lru_cache(1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of the system, for files' names in any script; Pillow's own, which knows English, where there is none."""
    for name in FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, 11)
    return ImageFont.load_default(size=12)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, its beginning left out where it is too wide: the end of a path says more."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("... " + text) > width:
        text = text[1:]
    return "... " + text


def _thumbnail(image: Image.Image) -> Image.Image:
    """The picture within a tile; a small one is enlarged with its pixels as squares."""
    factor = TILE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)


def _scaled(box: Sequence[float], scale: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (v * scale for v in box)
    return max(0, left), max(0, top), min(size[0] - 1, right), min(size[1] - 1, bottom)
