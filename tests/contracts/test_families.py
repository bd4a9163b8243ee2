"""What every family promises, run over the table: on miniatures of the real classes, and against diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from captune import adapters, families
from captune.errors import ModelError, RecipeError
from captune.families import FACTS, FAMILIES, Conditioning, Extent, Family, Reading
from captune.recipe import BaseSection
from captune.types import Example
from tests import tiny_base, tiny_flux, tiny_sdxl

# version and objective -> family, how its miniature is written
MAKERS: dict[tuple[str, str], tuple[str, Callable[[Path], str]]] = {
    ("sd1", "epsilon"): ("sd", tiny_base.write_tiny_base),
    ("sd1", "v_prediction"): ("sd", lambda folder: tiny_base.write_tiny_base(folder, "v_prediction")),
    ("sdxl", "epsilon"): ("sdxl", tiny_sdxl.write),
    ("flux-dev", "flow_matching"): ("flux", tiny_flux.write),
    ("flux-schnell", "flow_matching"): ("flux", lambda folder: tiny_flux.write(folder, guidance=False)),
}
PROMPTS = ["a red ball", "two cats, far away"]


@pytest.fixture(scope="module", params=MAKERS, ids="-".join)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    name, write = MAKERS[request.param]
    folder = write(tmp_path_factory.mktemp(name))
    loaded = families.load(BaseSection(family=name, model=folder, device="cpu", precision="fp32"))
    assert (loaded.name, loaded.version, loaded.objective) == (name, *request.param)
    return loaded


def inputs(family: Family, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents of a picture wider than high, and a timestep for each."""
    generator = torch.Generator().manual_seed(0)
    width, height = family.default_size
    latents = family.encode_images(torch.rand(rows, 3, height, 2 * width, generator=generator) * 2 - 1)
    return torch.randn(latents.shape, generator=generator), torch.tensor([3, 501, 900])[:rows]


def drawn(family: Family, prompts: list[str], seeds: list[int], **changes: Any) -> np.ndarray:
    """The pictures as numbers from 0 to 255: (pictures, height, width, 3)."""
    width, height = family.default_size
    how = {"steps": 3, "guidance_scale": 3.0, "negative_prompt": "", "width": width, "height": height} | changes
    pictures = family.generate(prompts, seeds, **how)
    assert all(picture.size == (how["width"], how["height"]) for picture in pictures)
    return np.stack([np.asarray(picture) for picture in pictures]).astype(int)


def tensors(conditioning: Conditioning) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(conditioning).items() if value is not None}


def pipeline(family: Family) -> Any:
    """The diffusers pipeline that holds the same parts."""
    return family._pipeline  # type: ignore[attr-defined]


def test_every_family_of_the_table_is_tested() -> None:
    assert {name for name, _ in MAKERS.values()} == set(FAMILIES) == set(FACTS)


def test_everything_is_frozen(family: Family) -> None:
    assert not any(p.requires_grad for module in family.components.values() for p in module.parameters())
    assert family.denoiser in family.components and set(family.components) == set(family.targets)


def test_a_picture_becomes_latents_that_the_model_predicts_on(family: Family) -> None:
    noisy_latents, timesteps = inputs(family)
    assert noisy_latents.dtype == torch.float32
    with torch.no_grad():
        model_pred = family.predict(noisy_latents, timesteps, family.encode_prompts(["a ball", ""]))
    assert model_pred.shape == noisy_latents.shape and model_pred.isfinite().all()


def test_a_prompt_is_encoded_alike_whatever_stands_beside_it(family: Family) -> None:
    alone = family.encode_prompts(["a ball"])
    chosen = family.encode_prompts(["two cats, far away", "a ball"]).select([1])
    torch.testing.assert_close(tensors(alone), tensors(chosen))
    other = family.encode_prompts(["a cat"])
    torch.testing.assert_close(tensors(Conditioning.cat([other, alone]).select([1])), tensors(alone))


def test_a_prediction_does_not_depend_on_its_neighbours(family: Family) -> None:
    noisy_latents, timesteps = inputs(family)
    conditioning = family.encode_prompts(PROMPTS)
    with torch.no_grad():
        together = family.predict(noisy_latents, timesteps, conditioning)
        alone = family.predict(noisy_latents[1:], timesteps[1:], conditioning.select([1]))
    torch.testing.assert_close(together[1:], alone)


def test_equal_seeds_draw_equal_pictures_and_others_do_not(family: Family) -> None:
    first, second = drawn(family, PROMPTS, [1, 2]), drawn(family, PROMPTS, [1, 2])
    assert (first == second).all()
    assert (first[0] != drawn(family, PROMPTS[:1], [3])[0]).any()


def test_a_picture_does_not_depend_on_its_neighbours(family: Family) -> None:
    together, alone = drawn(family, PROMPTS, [1, 2]), drawn(family, PROMPTS[1:], [2])
    assert np.abs(together[1] - alone[0]).max() <= 1  # a sum in another order may round the other way


def test_a_side_that_the_family_cannot_draw_is_refused(family: Family) -> None:
    multiple = FACTS[family.name].multiple
    with pytest.raises(RecipeError, match=rf"sample.width = {multiple + 1}: .* needs a multiple of {multiple}"):
        drawn(family, PROMPTS[:1], [1], width=multiple + 1)


def test_every_preset_hits_modules(family: Family) -> None:
    for component, targets in family.targets.items():
        assert "attention" in targets.presets and "all" in targets.presets
        for pattern in targets.presets.values():
            adapters.inject(family.components, adapters.LoraSpec(1, 1.0, {component: pattern}), seed=0)
            assert adapters.parameters(family.components)
            adapters.remove(family.components)


def test_a_lora_changes_all_components_and_leaves_no_trace(family: Family) -> None:
    noisy_latents, timesteps = inputs(family)

    @torch.no_grad()
    def outcome() -> list[torch.Tensor]:
        said = family.encode_prompts(PROMPTS)
        pooled = said.pooled_prompt_embeds
        rows = [family.predict(noisy_latents, timesteps, said), said.encoder_hidden_states]
        return rows if pooled is None else [*rows, pooled]

    before = outcome()
    names = {component: list(module.state_dict()) for component, module in family.components.items()}
    for component in family.components:
        spec = adapters.LoraSpec(2, 4.0, {component: family.targets[component].presets["all"]})
        adapters.inject(family.components, spec, seed=0)
        assert all(torch.equal(a, b) for a, b in zip(outcome(), before, strict=True))
        with torch.no_grad():
            for parameter in adapters.parameters(family.components).values():
                parameter.normal_()
        assert not torch.equal(outcome()[0], before[0]), component
        adapters.remove(family.components)
    assert all(torch.equal(a, b) for a, b in zip(outcome(), before, strict=True))
    assert names == {component: list(module.state_dict()) for component, module in family.components.items()}


def test_gradients_reach_the_adapters_of_every_component(family: Family) -> None:
    noisy_latents, timesteps = inputs(family)
    everywhere = {component: targets.presets["attention"] for component, targets in family.targets.items()}
    adapters.inject(family.components, adapters.LoraSpec(1, 1.0, everywhere), seed=0)
    try:
        family.predict(noisy_latents, timesteps, family.encode_prompts(PROMPTS)).square().mean().backward()
        for component in family.components:
            ups = [p for n, p in adapters.parameters(family.components).items() if n.startswith(f"{component}.")]
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in ups), component
    finally:
        adapters.remove(family.components)


def test_released_parts_still_do_their_work(family: Family) -> None:
    encoders = [name for name in ("text_encoder", "text_encoder_2") if hasattr(pipeline(family), name)]
    before = drawn(family, PROMPTS, [1, 2])
    family.release(["vae", *encoders])
    assert (drawn(family, PROMPTS, [1, 2]) == before).all()
    family.release([])
    with pytest.raises(ValueError, match=f"'{family.denoiser}' is no part to release"):
        family.release([family.denoiser])


@torch.no_grad()
def of_diffusers(family: Family, noisy_latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """What the pipeline's own model makes of the pipeline's own inputs, in the latents' shape."""
    pipe, rows = pipeline(family), len(noisy_latents)
    if family.name == "flux":
        embeds, pooled, txt_ids = pipe.encode_prompt(PROMPTS, None, max_sequence_length=32)
        height, width = noisy_latents.shape[-2:]
        packed = pipe.transformer(
            hidden_states=pipe._pack_latents(noisy_latents, rows, noisy_latents.shape[1], height, width),
            timestep=timesteps / 1000,
            guidance=torch.ones(rows) if family.version == "flux-dev" else None,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=txt_ids,
            img_ids=pipe._prepare_latent_image_ids(rows, height // 2, width // 2, "cpu", torch.float32),
        ).sample
        factor = pipe.vae_scale_factor
        return pipe._unpack_latents(packed, height * factor, width * factor, factor)
    if family.name == "sdxl":
        embeds, _, pooled, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        time_ids = pipe._get_add_time_ids((24, 48), (1, 5), (16, 32), torch.float32, pooled.shape[-1]).repeat(rows, 1)
        added = {"text_embeds": pooled, "time_ids": time_ids}
        return pipe.unet(noisy_latents, timesteps, embeds, added_cond_kwargs=added).sample
    embeds, _ = pipe.encode_prompt(PROMPTS, "cpu", 1, False)
    return pipe.unet(noisy_latents, timesteps, embeds).sample


def test_predictions_are_those_of_diffusers_own_inputs(family: Family) -> None:
    noisy_latents, timesteps = inputs(family)
    extents = [Extent(source_width=48, source_height=24, crop_left=5, crop_top=1, width=32, height=16)] * 2
    conditioning = family.with_extents(family.encode_prompts(PROMPTS), extents)
    with torch.no_grad():
        model_pred = family.predict(noisy_latents, timesteps, conditioning)
    torch.testing.assert_close(model_pred, of_diffusers(family, noisy_latents, timesteps))


def test_pictures_are_those_of_diffusers_own_pipeline(family: Family) -> None:
    pipe, (width, height) = pipeline(family), family.default_size
    factor, channels = pipe.vae_scale_factor, pipe.vae.config.latent_channels
    shape = (1, channels, height // factor, width // factor)
    latents = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    more: dict[str, Any] = {}
    kept = pipe.scheduler
    if family.name == "flux":
        latents = pipe._pack_latents(latents, 2, *shape[1:])
        more["max_sequence_length"] = 32
    else:
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            kept.config, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing"
        )
    pipe.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 3, "guidance_scale": 3.0, "width": width, "height": height}
    try:
        theirs = pipe(PROMPTS, latents=latents, **how, **more).images
    finally:
        pipe.scheduler = kept
    assert (drawn(family, PROMPTS, [1, 2]) == np.stack([np.asarray(p) for p in theirs]).astype(int)).all()


def test_only_sdxl_reads_where_a_picture_was_cut_from(family: Family) -> None:
    noisy_latents, timesteps = inputs(family)
    said = family.encode_prompts(PROMPTS)
    whole = Extent(32, 16, 0, 0, 32, 16)
    with torch.no_grad():
        plain, as_whole, cut = (
            family.predict(noisy_latents, timesteps, conditioning)
            for conditioning in (
                said,
                family.with_extents(said, [whole, whole]),
                family.with_extents(said, [whole, replace(whole, crop_left=7)]),
            )
        )
    assert torch.equal(plain, as_whole)
    assert torch.equal(plain[0], cut[0])
    assert torch.equal(plain[1], cut[1]) == (family.name != "sdxl")


def test_an_extent_tells_what_centre_cropping_cut_off() -> None:
    example = Example("a", Path("a.png"), Path("a.jpg"), 512, 768, 3000, 2000, 1, "")
    # 3000 x 2000 is scaled by 768 / 2000 to 1152 x 768, of which (1152 - 512) / 2 columns are cut off on either side
    assert Extent.of(example) == Extent(3000, 2000, 320, 0, 512, 768)


def test_a_negative_prompt_is_read_where_guidance_has_one(family: Family) -> None:
    plain, other = (drawn(family, PROMPTS[:1], [1], negative_prompt=words) for words in ("", "a cat"))
    assert (plain == other).all() == ("sample.negative_prompt" in FACTS[family.name].cannot)


def test_clip_skip_reads_as_if_the_last_layers_were_not_there(family: Family) -> None:
    skipped = family.encode_prompts(PROMPTS, Reading(clip_skip=2)).encoder_hidden_states
    if "train.clip_skip" in FACTS[family.name].cannot:
        assert torch.equal(skipped, family.encode_prompts(PROMPTS).encoder_hidden_states)
        return
    encoder = pipeline(family).text_encoder.encoder
    layers, encoder.layers = encoder.layers, encoder.layers[:-1]
    try:
        torch.testing.assert_close(skipped, family.encode_prompts(PROMPTS).encoder_hidden_states)
    finally:
        encoder.layers = layers


def test_long_prompts_are_read_in_chunks_of_their_own(family: Family) -> None:
    if "train.caption_chunks" in FACTS[family.name].cannot:
        return
    room = pipeline(family).tokenizer.model_max_length - 2  # this tokenizer's words are letters
    first, second = "a" * room, "b" * 7
    long = family.encode_prompts([f"{first} {second}"], Reading(chunks=2))
    one, two = (family.encode_prompts([words]).encoder_hidden_states for words in (first, second))
    expected = torch.cat([one[:, :-1], two[:, 1:]], dim=1)
    torch.testing.assert_close(long.encoder_hidden_states, expected)
    if long.pooled_prompt_embeds is not None:
        torch.testing.assert_close(long.pooled_prompt_embeds, family.encode_prompts([first]).pooled_prompt_embeds)


def test_flux_draws_with_the_guidance_it_is_given_and_trains_with_one(family: Family) -> None:
    if family.name != "flux":
        return
    weak, strong = (drawn(family, PROMPTS[:1], [1], guidance_scale=scale) for scale in (1.0, 7.0))
    assert (weak != strong).any() == (family.version == "flux-dev")


def test_an_option_that_does_nothing_is_named_with_the_reason() -> None:
    given = ["train.min_snr_gamma", "train.rank", "train.noise_offset"]
    assert families.refusals("sd", given) == []
    snr, noise = families.refusals("flux", given)
    assert snr.startswith("train.min_snr_gamma does nothing in the family flux: ") and "kohya" in noise


def test_an_unknown_family_lists_the_known() -> None:
    with pytest.raises(RecipeError, match=r"unknown family 'sdd'; did you mean 'sd'"):
        families.check(BaseSection(family="sdd"))


def test_the_embedded_model_is_of_one_family() -> None:
    with pytest.raises(RecipeError, match=r'base.model = "mini" is of the family sd; name a model of the family flux'):
        families.check(BaseSection(family="flux"))


def test_a_folder_of_another_family_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_sdxl.write(tmp_path / "xl")
    with pytest.raises(ModelError, match=r'holds a StableDiffusionXLPipeline: set base.family = "sdxl"'):
        families.load(BaseSection(model=folder, device="cpu"))
    with pytest.raises(ModelError, match=r"not a diffusers folder"):
        families.load(BaseSection(model=str(tmp_path), device="cpu"))


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not a device"):
        families.load(BaseSection(model=str(tmp_path), device="tpu3000"))
