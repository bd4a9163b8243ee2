"""Every option of [train] changes the result, by its closed form where there is one, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captune import adapters, families, pipeline, recipe
from captune.errors import CaptuneError, DataError, RecipeError
from captune.evaluate.denoising import measure_denoising
from captune.families import FACTS, Family, Reading
from captune.objective import NoiseSchedule
from captune.prepare.scan import list_pictures
from captune.progress import Silent
from captune.recipe import BaseSection, SampleSection, TrainSection
from captune.runs import StageFolder
from captune.sample import sample_arm
from captune.tokens import Tokens
from captune.train import cache, execution, noise, words
from captune.train.diffusion import train_lora
from captune.types import Adapter, Caption, Example
from tests import tiny_base, tiny_flux, tiny_sd

TEXTS = ("zorblax, a red ball, in the snow, left of a tree", "zorblax, two balls, on grass", "zorblax, one, more, ball")
LATENT = (4, 8, 8)
WHO = (0, "0", 3)


def load(folder: Path, kind: str = "epsilon") -> Family:
    if kind == "flow_matching":
        return families.load(BaseSection(family="flux", model=tiny_flux.write(folder), device="cpu", precision="fp32"))
    place = tiny_base.write_tiny_base(folder, kind)
    return families.load(BaseSection(model=place, device="cpu", precision="fp32"))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load(tmp_path_factory.mktemp("epsilon"))


@pytest.fixture(scope="module")
def predicts_v(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load(tmp_path_factory.mktemp("v"), "v_prediction")


def examples(folder: Path = Path("nowhere")) -> list[Example]:
    return [Example(str(i), folder / f"{i}.png", folder / f"{i}.jpg", 16, 16, 16, 16, 1, str(i)) for i in range(3)]


def latents() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {e.id: torch.randn(LATENT, generator=generator) for e in examples()}
    return found | {f"{name}|flip": x.flip(-1) for name, x in found.items()}


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def train(
    family: Family,
    folder: Path,
    photos: Path = Path("nowhere"),
    texts: tuple[str, ...] = TEXTS,
    progress: Silent | None = None,
    **options: Any,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of three steps."""
    section = TrainSection(
        **{"steps": 3, "batch_size": 3, "rank": 2, "alpha": 2, "learning_rate": 0.01, "seed": 1, **options}
    )
    captions = [Caption(e.id, text, "test") for e, text in zip(examples(), texts, strict=True)]
    adapter = train_lora(
        section, "arm", "base", examples(photos), captions, latents, lambda: family, StageFolder(folder), progress or Silent()
    )  # fmt: skip
    losses = [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]
    return losses, adapters.read(adapter.path)[0]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Options, and what must be set for them to be read: both are trained, the second alone and the two together.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "kind = dora": ({"kind": "dora"}, {}),
    "kind = loha": ({"kind": "loha"}, {}),
    "kind = lokr": ({"kind": "lokr"}, {}),
    "rank": ({"rank": 3}, {}),
    "ranks": ({"ranks": {"attn1": 3}}, {}),
    "alpha": ({"alpha": 4.0}, {}),
    "dropout": ({"dropout": 0.5}, {}),
    "dropout of dora": ({"dropout": 0.5}, {"kind": "dora"}),
    "dropout of text encoders": ({"dropout": 0.5}, {"text_encoder_learning_rate": 0.01}),
    "targets": ({"targets": "all"}, {}),
    "text_encoder_learning_rate": ({"text_encoder_learning_rate": 0.01}, {}),
    "learning_rate": ({"learning_rate": 0.02}, {}),
    "optimizer": ({"optimizer": "adafactor"}, {}),
    "optimizer_options": ({"optimizer_options": {"eps": 0.1}}, {}),
    "lr_scheduler": ({"lr_scheduler": "cosine"}, {}),
    "lr_power": ({"lr_power": 3.0}, {"lr_scheduler": "polynomial"}),
    "lr_scheduler_cycles": ({"lr_scheduler_cycles": 2}, {"lr_scheduler": "cosine_with_restarts"}),
    "lr_warmup_steps": ({"lr_warmup_steps": 2}, {}),
    "batch_size": ({"batch_size": 2}, {}),
    "gradient_accumulation": ({"gradient_accumulation": 3}, {"batch_size": 1}),
    "weight_decay": ({"weight_decay": 0.5}, {}),
    "betas": ({"betas": (0.5, 0.6)}, {}),
    "max_grad_norm": ({"max_grad_norm": 1e-9}, {}),
    "min_snr_gamma": ({"min_snr_gamma": 5.0}, {}),
    "debiased_estimation": ({"debiased_estimation": True}, {}),
    "loss = huber": ({"loss": "huber"}, {}),
    "loss = smooth_l1": ({"loss": "smooth_l1"}, {}),
    "huber_c": ({"huber_c": 0.5}, {"loss": "huber"}),
    "min_timestep": ({"min_timestep": 900}, {}),
    "max_timestep": ({"max_timestep": 100}, {}),
    "ip_noise_gamma": ({"ip_noise_gamma": 0.5}, {}),
    "noise_offset": ({"noise_offset": 0.5}, {}),
    "flip": ({"flip": True}, {}),
    "caption_dropout": ({"caption_dropout": 0.5}, {}),
    "shuffle_caption": ({"shuffle_caption": True}, {}),
    "tag_dropout": ({"tag_dropout": 0.5}, {}),
    "keep_tokens": ({"keep_tokens": 3}, {"shuffle_caption": True}),
    "keep_tokens of tag_dropout": ({"keep_tokens": 3}, {"tag_dropout": 0.5}),
    "caption_chunks": ({"caption_chunks": 2}, {}),
    "clip_skip": ({"clip_skip": 2}, {}),
    "seed": ({"seed": 2}, {}),
    "steps": ({"steps": 2}, {}),
}
# Tested below, or with the loop, the plan and the families.
ELSEWHERE = {
    *("zero_terminal_snr", "masked_loss", "gradient_checkpointing", "compile"),
    *("timestep_sampling", "timestep_mean", "timestep_scale", "timestep_shift"),
    *("epochs", "ema", "save_every_epochs", "save_every_steps", "keep_last", "stop_after", "checkpoint_every_steps"),
}


def test_every_option_of_the_section_is_accounted_for() -> None:
    tested = {option for options, _ in CHANGES.values() for option in options}
    assert tested | ELSEWHERE == set(TrainSection.model_fields)
    assert not tested & ELSEWHERE


@pytest.fixture(scope="module")
def plain(family: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """What is trained without the options, by what they need."""
    needs = {json.dumps(needed): needed for _, needed in CHANGES.values()}
    return {key: train(family, tmp_path_factory.mktemp("plain"), **needed)[1] for key, needed in needs.items()}


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_changes_what_is_learned(
    family: Family, plain: dict[str, dict[str, torch.Tensor]], tmp_path: Path, name: str
) -> None:
    options, needed = CHANGES[name]
    losses, weights = train(family, tmp_path / "once", **needed, **options)
    assert np.isfinite(losses).all()
    assert not equal(weights, plain[json.dumps(needed)])
    again, same = train(family, tmp_path / "twice", **needed, **options)
    assert losses == again and equal(weights, same)


# Noise


def section(**values: Any) -> TrainSection:
    return TrainSection(steps=1, **values)


def test_zero_terminal_snr_trains_on_the_rescaled_schedule(predicts_v: Family, tmp_path: Path) -> None:
    schedule = noise.schedule_of(section(zero_terminal_snr=True), predicts_v)
    assert schedule.alphas_cumprod is not None and schedule.alphas_cumprod[-1] == 0
    last = torch.tensor([schedule.length - 1])
    pure = torch.randn(1, 4, 2, 2)
    assert torch.equal(schedule.add_noise(torch.randn(1, 4, 2, 2), pure, last), pure)
    losses, rescaled = train(predicts_v, tmp_path / "a", zero_terminal_snr=True, min_snr_gamma=5, min_timestep=998)
    _, plain = train(predicts_v, tmp_path / "b", min_snr_gamma=5, min_timestep=998)
    assert np.isfinite(losses).all() and not equal(rescaled, plain)


def test_zero_terminal_snr_is_refused_where_noise_is_predicted(family: Family, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.zero_terminal_snr = true: this base predicts the noise"):
        train(family, tmp_path, zero_terminal_snr=True)


def test_pictures_are_drawn_with_the_schedule_that_was_trained_on(predicts_v: Family) -> None:
    how = {"steps": 3, "guidance_scale": 1.0, "negative_prompt": "", "width": 16, "height": 16}
    usual, rescaled = (
        np.asarray(predicts_v.generate(["a ball"], [0], **how, zero_terminal_snr=on)[0]) for on in (False, True)
    )
    assert (usual != rescaled).any()


def test_timesteps_keep_to_their_range() -> None:
    schedule = NoiseSchedule("epsilon", torch.linspace(0.99, 0.01, 1000))
    some = section(min_timestep=100, max_timestep=103)
    drawn = {int(noise.timestep_of(some, schedule, LATENT, (0, "a", n))) for n in range(60)}
    assert drawn == {100, 101, 102}


@pytest.mark.parametrize("how", ["uniform", "sigmoid", "logit_normal", "shift"])
def test_a_flows_timesteps_are_cut_from_their_distribution(how: str) -> None:
    """Within the range they are as frequent as without it: a draw at quantile q is the cut distribution's quantile q."""
    schedule = NoiseSchedule("flow_matching")
    cut = section(timestep_sampling=how, min_timestep=200, max_timestep=600)
    found = sorted(float(noise.timestep_of(cut, schedule, LATENT, (0, "a", n))) for n in range(400))
    every = [
        float(noise.timestep_of(section(timestep_sampling=how), schedule, LATENT, (0, "a", n))) for n in range(2000)
    ]
    inside = sorted(t for t in every if 200 <= t < 600)
    assert found[0] >= 200 and found[-1] < 600
    assert np.quantile(found, [0.25, 0.5, 0.75]) == pytest.approx(np.quantile(inside, [0.25, 0.5, 0.75]), abs=25)


def test_an_input_perturbation_is_not_in_the_target() -> None:
    drawn = noise.noise_of(section(), LATENT, WHO)
    moved = noise.perturbed(section(ip_noise_gamma=0.1), drawn, WHO)
    other = (moved - drawn) / 0.1
    assert abs(float((other * drawn).mean())) < 0.3 and other.std() == pytest.approx(1, abs=0.2)
    assert torch.equal(noise.perturbed(section(), drawn, WHO), drawn)
    assert torch.equal(noise.noise_of(section(ip_noise_gamma=0.1), LATENT, WHO), drawn)


@pytest.mark.parametrize(
    "options",
    [
        {"min_timestep": 700}, {"max_timestep": 300}, {"ip_noise_gamma": 0.5}, {"loss": "huber"},
        {"timestep_sampling": "uniform"}, {"timestep_sampling": "shift"}, {"timestep_scale": 2.0},
        {"timestep_sampling": "shift", "timestep_shift": 9.0}, {"timestep_sampling": "logit_normal", "timestep_mean": 1.0},
        {"kind": "loha"}, {"shuffle_caption": True},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_flux_honours_change_what_it_learns(flux: Family, tmp_path: Path, options: dict[str, Any]) -> None:
    assert not equal(train(flux, tmp_path / "a")[1], train(flux, tmp_path / "b", **options)[1])


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load(tmp_path_factory.mktemp("flux"), "flow_matching")


# Words


def test_kept_parts_stay_and_the_others_change_places() -> None:
    shuffled = section(shuffle_caption=True, keep_tokens=1)
    seen = {words.said(shuffled, "zorblax, a ,b,c", (0, "x", n)) for n in range(80)}
    assert seen == {f"zorblax, {p}" for p in ("a, b, c", "a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a")}
    assert words.said(shuffled, "zorblax, a ,b,c", WHO) == words.said(shuffled, "zorblax, a ,b,c", WHO)
    assert words.said(section(), "zorblax, a ,b,c", WHO) == "zorblax, a ,b,c"


def test_parts_are_left_out_as_often_as_the_recipe_says() -> None:
    thinned = section(tag_dropout=0.25, keep_tokens=1)
    said = [words.said(thinned, "zorblax, a, b, c, d", (0, "x", n)).split(", ") for n in range(300)]
    assert all(parts[0] == "zorblax" and parts[1:] == sorted(parts[1:]) for parts in said)
    assert np.mean([len(parts) - 1 for parts in said]) / 4 == pytest.approx(0.75, abs=0.05)


def test_a_dropped_caption_is_dropped_whole() -> None:
    assert {words.said(section(caption_dropout=0.5, shuffle_caption=True), "a", (0, "x", n)) for n in range(40)} == {
        "a",
        "",
    }


def test_what_the_options_do_to_the_captions_is_said(family: Family, tmp_path: Path) -> None:
    said = Said()
    train(family, tmp_path / "a", progress=said, flip=True)
    assert said.lines == [
        "arm: train.flip mirrors pictures, not words: 1 of 3 captions say left or right, such as "
        f"{TEXTS[0]!r}"
    ]  # fmt: skip
    said = Said()
    train(family, tmp_path / "b", texts=("a ball", "a, ball", "c"), progress=said, shuffle_caption=True, keep_tokens=1)
    assert said.lines[1].endswith("no caption has two of them beyond the 1 kept")


def test_text_that_varies_keeps_its_encoder_and_text_that_does_not_releases_it(family: Family) -> None:
    words.Words(section(), family, TEXTS)
    assert family._released == set(family.releasable)  # type: ignore[attr-defined]
    words.Words(section(shuffle_caption=True), family, TEXTS)
    assert family._released == {"vae"}  # type: ignore[attr-defined]


def test_a_varying_text_is_encoded_as_a_cached_one(family: Family) -> None:
    for reading in ({}, {"clip_skip": 2}, {"caption_chunks": 3}):
        once = words.Words(section(**reading), family, TEXTS)(TEXTS)
        each = words.Words(section(shuffle_caption=True, **reading), family, TEXTS)(TEXTS)
        torch.testing.assert_close(each.encoder_hidden_states, once.encoder_hidden_states)
        assert not each.encoder_hidden_states.requires_grad


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_chunks_read_as_many_tokens_as_the_ruler_says(family: Family, chunks: int) -> None:
    ruler = Tokens(tiny_sd.clip_tokenizer(32), chunks)
    assert ruler.limit == {1: 32, 2: 62, 3: 92}[chunks]
    assert family.encode_prompts(["a"], Reading(chunks=chunks)).encoder_hidden_states.shape[1] == ruler.limit
    letters = " ".join("abcdefghij" * 10)
    found = ruler.measure(letters)
    assert (found.count, found.over) == (102, 102 - ruler.limit)
    changed = f"{letters[: 2 * (ruler.limit - 3)]}z{letters[2 * (ruler.limit - 3) + 1 :]}"  # the last that is read
    beyond = f"{letters[: 2 * (ruler.limit - 2)]}z{letters[2 * (ruler.limit - 2) + 1 :]}"
    own, inside, outside = (
        family.encode_prompts([text], Reading(chunks=chunks)).encoder_hidden_states
        for text in (letters, changed, beyond)
    )
    assert not torch.equal(own, inside) and torch.equal(own, outside)


def test_a_layer_that_is_not_there_is_refused(family: Family, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.clip_skip = 3: this base's text encoder has 2 layers"):
        train(family, tmp_path, clip_skip=3)


# Masks


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


# How a step is computed


@pytest.mark.parametrize("kind", ["epsilon", "flow_matching"])
def test_checkpointing_computes_the_same_losses(family: Family, flux: Family, tmp_path: Path, kind: str) -> None:
    base = {"epsilon": family, "flow_matching": flux}[kind]
    options = {"text_encoder_learning_rate": 0.01, "dropout": 0.2, "targets": "all"}
    calls = []
    counted = execution._checkpointed

    def counting(denoiser: Any) -> Any:
        calls.append(denoiser)
        return counted(denoiser)

    plain = train(base, tmp_path / "a", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "_checkpointed", counting)
        saved = train(base, tmp_path / "b", gradient_checkpointing=True, **options)
    assert saved[0] == pytest.approx(plain[0], rel=1e-5) and calls
    for name, weight in plain[1].items():
        torch.testing.assert_close(saved[1][name], weight, rtol=1e-3, atol=1e-5)
    assert not calls[0].is_gradient_checkpointing


def test_checkpointing_recomputes_the_text_encoders_layers_too(family: Family) -> None:
    encoder: Any = family.components["text_encoder"]
    some = section(gradient_checkpointing=True, text_encoder_learning_rate=0.1)
    with execution.executed(some, family):
        layers = [m for m in encoder.modules() if isinstance(m, execution.GradientCheckpointingLayer)]
        assert layers and all(layer.gradient_checkpointing and layer.training for layer in layers)
        assert not encoder.training
    assert not any(layer.gradient_checkpointing or layer.training for layer in layers)


def test_a_machine_without_a_compiler_is_told(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    sentence = (
        r"train.compile = true: torch cannot compile for cpu here, which needs a C\+\+ compiler .*No working C\+\+"
    )
    with pytest.raises(RecipeError, match=sentence), execution.executed(section(compile=True), family):
        pass


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_losses(family: Family, tmp_path: Path) -> None:
    try:
        with execution.executed(section(compile=True), family):
            pass
    except RecipeError as error:
        pytest.skip(str(error))
    plain = train(family, tmp_path / "a")
    compiled = train(family, tmp_path / "b", compile=True)
    assert compiled[0] == pytest.approx(plain[0], rel=1e-4)
    assert all(module._compiled_call_impl is None for module in family.components["unet"].modules())


# Drawing and judging as in training


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


# What cannot be honoured

RECIPE = {
    "dataset": {"path": "photos"},
    "base": {"model": "somewhere/else"},
    "arm": [{"name": "a", "captioner": {"name": "sidecar"}}],
    "evaluate": {"metrics": []},
}
# A value that sets each option apart from its default, and what the recipe needs to take it.
REFUSED: dict[str, dict[str, Any]] = {
    "min_snr_gamma": {"min_snr_gamma": 5.0},
    "debiased_estimation": {"debiased_estimation": True},
    "noise_offset": {"noise_offset": 0.1},
    "zero_terminal_snr": {"zero_terminal_snr": True},
    "clip_skip": {"clip_skip": 2},
    "caption_chunks": {"caption_chunks": 2},
    "timestep_sampling": {"timestep_sampling": "sigmoid"},
    "timestep_mean": {"timestep_sampling": "logit_normal", "timestep_mean": 1.0},
    "timestep_scale": {"timestep_scale": 2.0},
    "timestep_shift": {"timestep_sampling": "shift", "timestep_shift": 3.0},
}


@pytest.mark.parametrize(
    ("family_name", "option"),
    [(name, option) for name, facts in FACTS.items() for option in facts.cannot if option.startswith("train.")],
)
def test_what_a_family_cannot_honour_is_refused_before_anything_loads(family_name: str, option: str) -> None:
    base = {"model": "somewhere/else", "family": family_name}
    train = {"steps": 1, **REFUSED[option.removeprefix("train.")]}
    with pytest.raises(RecipeError, match=f"{option} does nothing in the family {family_name}"):
        pipeline.check(recipe.from_values({**RECIPE, "base": base, "train": train}))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr_power": 2.0}, 'lr_power is only read by lr_scheduler = "polynomial"'),
        ({"lr_scheduler_cycles": 2}, 'lr_scheduler_cycles is only read by lr_scheduler = "cosine_with_restarts"'),
        ({"huber_c": 0.2}, "huber_c is only read by loss = huber and smooth_l1"),
        ({"keep_tokens": 1}, "keep_tokens is only read by shuffle_caption and tag_dropout"),
        ({"kind": "loha", "dropout": 0.1}, "dropout is only read by kind = lora and dora"),
        ({"timestep_shift": 3.0}, 'timestep_shift is only read by timestep_sampling = "shift"'),
        ({"timestep_mean": 1.0}, 'timestep_mean is only read by timestep_sampling = "logit_normal"'),
        ({"timestep_sampling": "uniform", "timestep_scale": 2.0}, "timestep_scale is only read by"),
        ({"min_timestep": 500, "max_timestep": 500}, "min_timestep = 500 must be below max_timestep = 500"),
        ({"ranks": {"(": 4}}, r"'\(' is no regular expression"),
    ],
    ids=str,
)
def test_an_option_that_another_leaves_without_effect_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CaptuneError, match=sentence):
        recipe.from_values({**RECIPE, "train": {"steps": 1, **options}})
