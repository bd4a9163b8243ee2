"""Caption formats: every byte of text survives going to another and back; what would overwrite or escape is refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from captune import captions, formats
from captune.errors import DataError
from captune.formats import Options, hub

AWKWARD = 'say "hi", \'ok\'\r\nand\n\n\tmore \\n 🐕‍🦺 שלום עליכם‎ مرحبا\u2028\u0085x, {"a": 1}\n'
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff\0"), max_size=60)
FORMS = ["jsonl", "csv", "webdataset"]


def pictures(folder: Path, texts: dict[str, str], extension: str = ".txt") -> Path:
    for index, (name, text) in enumerate(texts.items()):
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (index, 0, 0)).save(file)
        (folder / f"{name}{extension}").write_bytes(text.encode())
    return folder


def sidecars(folder: Path, extension: str = ".txt") -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix().removesuffix(extension): p.read_bytes() for p in folder.rglob(f"*{extension}")
    }


def there_and_back(source: Path, form: str, work: Path) -> Path:
    """The folder in that format, and from that format caption files again."""
    formats.write(form, formats.read(source, Options()), work / "there", Options())
    formats.write("sidecars", formats.read(work / "there", Options()), work / "back", Options())
    return work / "back"


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=12, deadline=None)
@given(text=TEXTS)
@example(text=AWKWARD)
@example(text="x" * 3999 + "é")
@example(text="")
@example(text="\r")
@example(text='"')
def test_every_byte_comes_back(form: str, text: str) -> None:
    with TemporaryDirectory() as place:
        source = pictures(Path(place) / "source", {"a.b/one two.v1": text})
        back = there_and_back(source, form, Path(place))
        assert sidecars(back) == {"a.b/one two.v1": text.encode()}
        assert (back / "a.b/one two.v1.png").read_bytes() == (source / "a.b/one two.v1.png").read_bytes()


def test_parquet_keeps_every_byte(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    source = pictures(tmp_path / "source", {"1": AWKWARD, "sub/2": "y" * 4000})
    assert sidecars(there_and_back(source, "parquet", tmp_path)) == sidecars(source)


def test_a_folder_is_compiled_in_place(tmp_path: Path) -> None:
    source = pictures(tmp_path / "source", {"1": "a cat\n", "sub/2": "a dog"}, ".blip.txt")
    written = formats.write("jsonl", formats.read(source, Options(".blip.txt")), source, Options())
    rows = [json.loads(line) for line in (source / "metadata.jsonl").read_text().splitlines()]
    assert rows == [{"file_name": "1.png", "text": "a cat\n"}, {"file_name": "sub/2.png", "text": "a dog"}]
    assert written.captions == 2 and captions.read_metadata(source / "metadata.jsonl")["1.png"] == "a cat"
    with pytest.raises(DataError, match="metadata.jsonl is there already"):
        formats.write("jsonl", [], source, Options())


def test_kohyas_folders(tmp_path: Path) -> None:
    source = pictures(tmp_path / "source", {"1": "a cat", "sub/2": "a dog"})
    options = Options(repeats=10, trigger_word="zorblax", class_word="dog", extension=".caption")
    rows = list(formats.read(source, Options()))
    formats.write("kohya", rows, tmp_path / "kohya", options)
    assert sidecars(tmp_path / "kohya", ".caption") == {"10_zorblax dog/1": b"a cat", "10_zorblax dog/sub_2": b"a dog"}
    assert [row.repeats for row in formats.read(tmp_path / "kohya", options)] == [10, 10]
    with pytest.raises(DataError, match="--trigger-word"):
        formats.write("kohya", rows, tmp_path / "k2", Options())


def test_nothing_is_overwritten_without_being_asked(tmp_path: Path) -> None:
    source = pictures(tmp_path / "source", {"1": "mine"})
    row = formats.Row("1.png", "other", source / "1.png")
    with pytest.raises(DataError, match="1.txt says something else already; use --replace"):
        formats.write("sidecars", [row], source, Options())
    assert (source / "1.txt").read_text() == "mine"
    formats.write("sidecars", [row], source, Options(replace=True))
    assert (source / "1.txt").read_text() == "other"


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leads out"):
        formats.write("sidecars", [formats.Row("../x.png", "t", content=b"")], tmp_path / "out", Options())


def test_shards_of_other_tools_are_read(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (2, 2)).save(picture, "JPEG")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (("a/1.jpg", picture.getvalue()), ("a/1.json", b'{"caption": "a cat"}'), ("2.cls", b"7")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (row,) = formats.read(tmp_path, Options())
    assert (row.name, row.text, row.read()) == ("a/1.jpg", "a cat", picture.getvalue())


@pytest.mark.parametrize(("data", "text"), [
    (b"\xef\xbb\xbfa caf\xc3\xa9\r\n", "a café\r\n"),
    ("a café".encode("utf-16"), "a café"),
])  # fmt: skip
def test_marks_in_front_are_read(data: bytes, text: str, tmp_path: Path) -> None:
    pictures(tmp_path, {"1": ""})
    (tmp_path / "1.txt").write_bytes(data)
    (row,) = formats.read(tmp_path, Options())
    assert row.text == text


def test_latin_1_is_refused_with_the_files_name(tmp_path: Path) -> None:
    pictures(tmp_path, {"1": ""})
    (tmp_path / "1.txt").write_bytes(b"a caf\xe9")
    with pytest.raises(DataError, match=r"1\.txt is not UTF-8"):
        list(formats.read(tmp_path, Options()))


def test_a_data_set_by_name_is_streamed(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    source = pictures(tmp_path / "source", {"1": "a cat\n", "2": "a dog"})
    formats.write("jsonl", formats.read(source, Options()), tmp_path / "named", Options())
    rows = list(hub.read(str(tmp_path / "named")))
    assert [row.text for row in rows] == ["a cat\n", "a dog"]
    assert rows[0].content == (source / "1.png").read_bytes()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("data", [b"\xef\xbb\xbfmark\r\n", "ü\r\n".encode("utf-16"), b"\xfe\xff\x00a"])
def test_a_mark_in_front_comes_back_and_is_no_text(form: str, data: bytes, tmp_path: Path) -> None:
    source = pictures(tmp_path / "source", {"0": "", "1": "plain"})
    (source / "0.txt").write_bytes(data)
    assert sidecars(there_and_back(source, form, tmp_path)) == {"0": data, "1": b"plain"}
    said = [row.text for row in formats.read(tmp_path / "there", Options())]
    assert said[1] == "plain" and said[0] is not None and "\ufeff" not in said[0]
