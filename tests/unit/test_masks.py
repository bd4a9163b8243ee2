"""Masks beside pictures: what is black is not learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captune.errors import DataError
from captune.families import Family
from captune.prepare.scan import list_pictures
from captune.train import cache
from captune.types import Example
from tests.training import LATENT, examples, latents, load, train


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load(tmp_path_factory.mktemp("epsilon"))


def masked(folder: Path, shape: tuple[int, int] = (16, 16), black: slice = slice(8, 16), names: str = "012") -> Path:
    """Masks beside pictures, black in some columns."""
    folder.mkdir(exist_ok=True)
    for name in names:
        values = np.full((shape[1], shape[0]), 255, np.uint8)
        values[:, black] = 0
        Image.fromarray(values).save(folder / f"{name}.mask.png")
    return folder


def test_a_mask_leaves_out_of_the_loss_what_is_black(family: Family, tmp_path: Path) -> None:
    photos = masked(tmp_path / "photos")
    options = {"masked_loss": True, "targets": "attention"}
    losses, _ = train(family, tmp_path / "a", photos, **options)
    everything, _ = train(family, tmp_path / "b", photos)
    files = cache.mask_files(examples(photos))
    masks = cache.read_masks(files, examples(photos), latents())
    expected = torch.zeros(1, 8, 8)
    expected[..., :4] = 1
    assert all(torch.equal(mask, expected) for mask in masks.values())
    assert losses != everything
    masked(tmp_path / "photos", black=slice(0, 0))  # all white: as without masks
    assert train(family, tmp_path / "c", photos, **options)[0] == pytest.approx(everything)


def test_a_mask_is_mirrored_with_its_picture(family: Family, tmp_path: Path) -> None:
    """Left halves masked and every picture mirrored equals right halves masked of the mirrored pictures."""
    photos = masked(tmp_path / "photos")
    halves, _ = train(family, tmp_path / "a", photos, masked_loss=True, flip=True)
    masked(tmp_path / "photos", black=slice(0, 8))
    assert train(family, tmp_path / "b", photos, masked_loss=True, flip=True)[0] != halves


def test_a_changed_mask_trains_again(family: Family, tmp_path: Path) -> None:
    photos = masked(tmp_path / "photos")
    first = train(family, tmp_path / "a", photos, masked_loss=True)
    masked(tmp_path / "photos", black=slice(0, 4))
    assert train(family, tmp_path / "a", photos, masked_loss=True)[0] != first[0]


def test_a_mask_is_cut_as_its_picture(tmp_path: Path) -> None:
    """A picture twice as wide as high loses a quarter on either side: black there does not count."""
    photos = masked(tmp_path, shape=(64, 32), black=slice(0, 24))
    wide = [Example("0", photos / "0.png", photos / "0.jpg", 16, 16, 32, 16, 1, "")]
    [mask] = cache.read_masks(cache.mask_files(wide), wide, {"0": torch.zeros(LATENT)}).values()
    assert mask[0, 0].tolist() == pytest.approx([0, 0, 1, 1, 1, 1, 1, 1])


def test_a_picture_without_a_mask_is_learned_everywhere(family: Family, tmp_path: Path) -> None:
    photos = masked(tmp_path / "photos", names="0")
    losses, _ = train(family, tmp_path / "a", photos, masked_loss=True, batch_size=1, steps=3)
    everything, _ = train(family, tmp_path / "b", photos, batch_size=1, steps=3)
    assert sum(a != b for a, b in zip(losses[:1], everything[:1], strict=True)) <= 1  # at most the masked one's own
    assert set(cache.mask_files(examples(photos))) == {"0"}


def test_masks_that_cannot_be_meant_are_refused_by_name(family: Family, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.masked_loss = true, but no picture has a mask .*0.mask.png"):
        train(family, tmp_path / "a", tmp_path, masked_loss=True)
    with pytest.raises(DataError, match=r"0.mask.png is 32 x 16 and its picture 16 x 16"):
        train(family, tmp_path / "b", masked(tmp_path / "wide", (32, 16)), masked_loss=True)
    with pytest.raises(DataError, match=r"0.mask.png is black wherever the picture is used"):
        train(family, tmp_path / "c", masked(tmp_path / "black", black=slice(0, 16)), masked_loss=True)


def test_masks_are_no_pictures(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.mask.png", "b.mask.png", "c.d.png", "c.d.mask.png"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    found = list_pictures(tmp_path, 1)
    assert [picture.id for picture in found.pictures] == ["a", "c.d"]
    assert [(s.file, s.reason) for s in found.skipped] == [
        ("b.mask.png", "a mask, and no picture of that name is used")
    ]
