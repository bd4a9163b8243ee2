"""The tagger on a tiny ONNX network whose outputs are known: thresholds, order, spelling, and how pictures are seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captune import captioners
from captune.captioners.tagger import Tag, chosen
from captune.errors import ModelError, RecipeError
from captune.recipe import CaptionerSection
from captune.runs import sha256_of
from captune.types import Example

ROWS = ["blue_sky,0", "o_o,0", "red_dress,0", "general,9", "hatsune_miku,4"]


def write_tagger(folder: Path, pictures: int | str = "n", side: int = 8) -> None:
    """Each output is a colour's mean over 255, as the network sees it: blue, green, red, 1, red again."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto
    mix = np.zeros((3, 5), dtype=np.float32)
    mix[0, 0] = mix[1, 1] = mix[2, 2] = mix[2, 4] = 1 / 255
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "mix"], ["mixed"]),
        helper.make_node("Add", ["mixed", "rating"], ["sure"]),
    ]
    constants = [
        helper.make_tensor("axes", kinds.INT64, [2], [1, 2]),
        helper.make_tensor("mix", kinds.FLOAT, [3, 5], mix.flatten().tolist()),
        helper.make_tensor("rating", kinds.FLOAT, [5], [0, 0, 0, 1, 0]),
    ]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("pixels", kinds.FLOAT, [pictures, side, side, 3])],
        [helper.make_tensor_value_info("sure", kinds.FLOAT, [pictures, 5])],
        constants,
    )
    folder.mkdir(parents=True, exist_ok=True)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, str(folder / "model.onnx"))
    rows = [f"{number},{row},100" for number, row in enumerate(ROWS)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]) + "\n")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagger")
    write_tagger(folder)
    return folder


def picture(folder: Path, name: str, color: tuple[int, int, int], size: tuple[int, int] = (16, 16)) -> Example:
    path = folder / f"{name}.png"
    Image.new("RGB", size, color).save(path)
    return Example(name, path, path, *size, *size, 1, sha256_of(path))


def tags(model: Path, *examples: Example, **settings: object) -> list[str]:
    section = CaptionerSection.model_validate({"name": "tagger", "model": str(model), **settings})
    captioners.check(section)
    return [str(text) for text in captioners.load(section, "cpu").caption(examples)]


def test_tags_above_the_thresholds_with_spaces_surest_first(model: Path, tmp_path: Path) -> None:
    red, blue = picture(tmp_path, "red", (250, 128, 10)), picture(tmp_path, "blue", (10, 100, 250))
    assert tags(model, red, blue) == ["hatsune miku, red dress, o_o", "blue sky, o_o"]
    assert tags(model, red, character_threshold=0.99, threshold=0.6) == ["red dress"]
    assert tags(model, red, underscores=True) == ["hatsune_miku, red_dress, o_o"]
    assert tags(model, red, blue, exclude_tags=["red dress", "O_O"]) == ["hatsune miku", "blue sky"]
    assert tags(model, red, blue, first_tags=["o_o", "blue_sky"]) == ["o_o, hatsune miku, red dress", "o_o, blue sky"]


def test_tags_do_not_depend_on_the_batch(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    examples = [picture(tmp_path, str(i), tuple(rng.integers(0, 255, 3).tolist())) for i in range(9)]
    together = tags(model, *examples)
    assert len(set(together)) > 3 and [tags(model, example)[0] for example in examples] == together
    write_tagger(tmp_path / "single", pictures=1)
    assert tags(tmp_path / "single", *examples) == together


def test_picture_that_is_no_square_is_laid_on_white(model: Path, tmp_path: Path) -> None:
    wide = picture(tmp_path, "wide", (0, 0, 0), (16, 8))  # half of the square is white: every colour's mean is 1 / 2
    assert tags(model, wide, threshold=0.45) == ["blue sky, o_o, red dress"]
    assert tags(model, wide, threshold=0.55) == [""]


def test_equally_sure_tags_have_one_order() -> None:
    section, names = (
        CaptionerSection(name="tagger", model="a/b"),
        [Tag("red_b", 0), Tag("red_a", 0), Tag("sensitive", 9)],
    )
    assert chosen(names, np.array([0.5, 0.5, 0.9], dtype=np.float32), section) == "red a, red b"


def test_what_is_no_tagger_is_told(model: Path, tmp_path: Path) -> None:
    example = picture(tmp_path, "red", (250, 128, 10))
    with pytest.raises(RecipeError, match="captioner.exclude_tags: this tagger has no red hair"):
        tags(model, example, exclude_tags=["red hair"])
    with pytest.raises(ModelError, match="has a model.onnx and a selected_tags.csv; no model.onnx there"):
        tags(tmp_path, example)
    write_tagger(tmp_path / "short")
    (tmp_path / "short/selected_tags.csv").write_text("name,category\nblue_sky,0\n")
    with pytest.raises(ModelError, match="tells 5 numbers, and its selected_tags.csv names 1 tags"):
        tags(tmp_path / "short", example)
    (tmp_path / "short/selected_tags.csv").write_text("blue_sky\n")
    with pytest.raises(ModelError, match="is no table of tags"):
        tags(tmp_path / "short", example)
    (tmp_path / "short/model.onnx").write_bytes(b"nothing")
    (tmp_path / "short/selected_tags.csv").write_text("name,category\nblue_sky,0\n")
    with pytest.raises(ModelError, match="tagger in .* could not be loaded"):
        tags(tmp_path / "short", example)
