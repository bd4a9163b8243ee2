"""What every family promises, run over the table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from captune import families
from captune.errors import RecipeError
from captune.families import FAMILIES, Family
from captune.recipe import BaseSection
from tests import tiny_base

MAKERS = {"sd": tiny_base.write_tiny_base}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = MAKERS[request.param](tmp_path_factory.mktemp(request.param))
    return families.load(BaseSection(family=request.param, model=folder, device="cpu", precision="fp32"))


def test_everything_is_frozen(family: Family) -> None:
    assert not any(p.requires_grad for module in family.components.values() for p in module.parameters())


def test_a_picture_becomes_latents_that_the_model_predicts_on(family: Family) -> None:
    width, height = family.default_size
    latents = family.encode_images(torch.zeros(2, 3, height, width))
    assert latents.dtype == torch.float32 and latents.shape[0] == 2
    model_pred = family.predict(latents, torch.tensor([1, 500]), family.encode_prompts(["a ball", ""]))
    assert model_pred.shape == latents.shape and model_pred.isfinite().all()


def test_a_prompt_is_encoded_alike_whatever_stands_beside_it(family: Family) -> None:
    alone = family.encode_prompts(["a ball"])
    chosen = family.encode_prompts(["two cats, far away", "a ball"]).select([1])
    torch.testing.assert_close(alone.encoder_hidden_states, chosen.encoder_hidden_states)


def draw(family: Family, seeds: list[int]) -> list[bytes]:
    width, height = family.default_size
    pictures = family.generate(
        ["a ball"] * len(seeds),
        seeds,
        steps=2,
        guidance_scale=3.0,
        negative_prompt="",
        width=width,
        height=height,
    )
    assert all(picture.size == (width, height) for picture in pictures)
    return [picture.tobytes() for picture in pictures]


def test_equal_seeds_draw_equal_pictures_and_others_do_not(family: Family) -> None:
    first, second = draw(family, [1, 2]), draw(family, [1, 2])
    assert first == second
    assert first[0] != first[1]


def test_tokens_are_counted_with_their_limit(family: Family) -> None:
    count, limit = family.count_tokens("ball")
    assert 2 < count <= limit
    assert family.count_tokens("ball " * 100)[0] > limit


def test_every_preset_hits_modules(family: Family) -> None:
    from captune import adapters

    for component, targets in family.targets.items():
        for pattern in targets.presets.values():
            spec = adapters.LoraSpec(1, 1.0, {component: pattern})
            adapters.inject(family.components, spec, seed=0)
            assert adapters.parameters(family.components)
            adapters.remove(family.components)


def test_an_unknown_family_lists_the_known() -> None:
    with pytest.raises(RecipeError, match=r"unknown family 'sdd'; did you mean 'sd'"):
        families.check(BaseSection(family="sdd"))


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not a device"):
        families.load(BaseSection(model=str(tmp_path), device="tpu3000"))
