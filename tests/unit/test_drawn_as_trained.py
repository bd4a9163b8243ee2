"""Pictures are drawn and judged as their LoRA was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from captune.evaluate.denoising import measure_denoising
from captune.families import Family
from captune.progress import Silent
from captune.recipe import SampleSection
from captune.runs import StageFolder
from captune.sample import sample_arm
from captune.types import Adapter, Caption
from tests.training import examples, latents, load, section


@pytest.fixture(scope="module")
def predicts_v(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load(tmp_path_factory.mktemp("v"), "v_prediction")


def drawing(family: Family, folder: Path, **trained_as: Any) -> bytes:
    sampling = SampleSection(prompts=["a ball"], steps=2)
    adapter: Adapter | None = None
    [sample] = sample_arm(
        sampling, ["a red ball, " * 8], "base", "b", adapter, lambda: family, StageFolder(folder), Silent(),
        trained_as=section(**trained_as),
    )  # fmt: skip
    return sample.path.read_bytes()


@pytest.mark.parametrize("option", [{"clip_skip": 2}, {"caption_chunks": 2}, {"zero_terminal_snr": True}], ids=str)
def test_pictures_are_drawn_and_judged_as_was_trained(
    predicts_v: Family, tmp_path: Path, option: dict[str, Any]
) -> None:
    assert drawing(predicts_v, tmp_path / "a", **option) != drawing(predicts_v, tmp_path / "b")
    assert drawing(predicts_v, tmp_path / "b", **option) == drawing(predicts_v, tmp_path / "a", **option)  # anew
    said = {"arm": [Caption("0", "a red ball, " * 8, "test")]}
    losses = [
        measure_denoising(
            [], examples()[:1], said, latents, lambda: predicts_v, "b", StageFolder(tmp_path / name), Silent(),
            held_out=False, trained_as=how,
        )[0].loss
        for name, how in (("c", None), ("d", {"base": section(**option)}))
    ]  # fmt: skip
    assert losses[0] != losses[1]
