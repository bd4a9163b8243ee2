"""Checkpoints in one file, on miniatures written in their makers' layout; nothing is asked of a hub."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel

from captune import families
from captune.errors import ModelError
from captune.families import Family, _single_file
from captune.recipe import BaseSection
from tests import tiny_flux, tiny_sd, tiny_sdxl

PROMPTS = ["a red ball", ""]


def stable_diffusion(version: str = "sd1", seed: int = 0) -> StableDiffusionPipeline:
    """2.x reads hidden states 1024 wide, from an encoder in OpenCLIP's layout."""
    torch.manual_seed(seed)
    width = 16 if version == "sd1" else 1024
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=width, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2, use_linear_projection=version == "sd2",
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=tiny_sd.vae(), unet=unet, text_encoder=CLIPTextModel(tiny_sd.clip_config(width)),
        tokenizer=tiny_sd.clip_tokenizer(),
        scheduler=DDIMScheduler.from_pretrained(_single_file.CONFIGS / "sd1", subfolder="scheduler"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def original(pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    """All of its weights as a single file has them."""
    if pipe.unet.config.cross_attention_dim == 1024:
        text = tiny_sd.original_open_clip(pipe.text_encoder.state_dict(), "cond_stage_model.model.")
        # the real file has one more layer, whose output is not read, and a projection
        text["cond_stage_model.model.text_projection"] = torch.eye(1024)
    else:
        text = tiny_sd.original_clip(pipe.text_encoder, "cond_stage_model.transformer.")
    return {**tiny_sd.original_unet(pipe.unet), **tiny_sd.original_vae(pipe.vae), **text}


def contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone().contiguous() for name, value in state.items()}


def keep_all_but_weights(pipe: Any, folder: Path) -> None:
    """Write what a file does not hold: tokenizers, and the sizes of this miniature."""
    pipe.save_pretrained(folder)
    for weights in [*folder.rglob("*.safetensors"), *folder.rglob("model_index.json")]:
        weights.unlink()


def load(path: Path, family: str = "sd") -> Family:
    return families.load(BaseSection(family=family, model=str(path), device="cpu", precision="fp32"))


@torch.no_grad()
def outcome(family: Family) -> list[Tensor]:
    """What all of its parts make of the same inputs."""
    generator = torch.Generator().manual_seed(0)
    latents = family.encode_images(torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1)
    said = family.encode_prompts(PROMPTS)
    return [latents, said.encoder_hidden_states, family.predict(latents, torch.tensor([5, 800]), said)]


def assert_equal(first: Family, second: Family) -> None:
    assert first.version == second.version
    for a, b in zip(outcome(first), outcome(second), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("version", ["sd1", "sd2", "sdxl"])
def test_a_file_gives_the_same_model_as_the_folder(version: str, suffix: str, tmp_path: Path) -> None:
    family = "sdxl" if version == "sdxl" else "sd"
    pipe = tiny_sdxl.pipeline() if version == "sdxl" else stable_diffusion(version)
    pipe.save_pretrained(tmp_path / "folder")
    state = contiguous(tiny_sdxl.original(pipe) if version == "sdxl" else original(pipe))
    keep_all_but_weights(pipe, tmp_path / "file")
    path = tmp_path / "file" / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "global_step": 470000}, path)
    loaded = load(path, family)
    assert loaded.version == version
    assert_equal(loaded, load(tmp_path / "folder", family))


class ModelCheckpoint:
    """As it lies in real .ckpt files beside the weights."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


def test_a_trainers_notes_in_a_ckpt_are_read_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    import numpy as np

    module = types.ModuleType(ModelCheckpoint.__module__)
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", ModelCheckpoint.__module__):
        monkeypatch.setitem(sys.modules, name, module)
    notes = {ModelCheckpoint: {"best_model_score": np.float64(0.3), "monitor": "val/loss"}}
    weights = OrderedDict({"a": torch.arange(3.0)})
    torch.save({"state_dict": weights, "callbacks": notes}, tmp_path / "model.ckpt")
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", ModelCheckpoint.__module__):
        monkeypatch.delitem(sys.modules, name)
    assert list(_single_file.read(tmp_path / "model.ckpt")) == ["a"]


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("plain", [False, True])
def test_a_pickle_is_never_run(plain: bool, tmp_path: Path) -> None:
    content = {"state_dict": {"a": torch.ones(1)}, "notes": Malicious(tmp_path / "was here")}
    path = tmp_path / "model.ckpt"
    if plain:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=r"nothing else in it is ever run .* take the \.safetensors file"):
        load(path)
    assert not (tmp_path / "was here").exists()


def test_a_file_of_another_family_is_refused_by_name(tmp_path: Path) -> None:
    save_file(contiguous(tiny_sdxl.original(tiny_sdxl.pipeline())), tmp_path / "xl.safetensors")
    with pytest.raises(ModelError, match=r'holds a base of the family sdxl: set base.family = "sdxl"'):
        load(tmp_path / "xl.safetensors")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="no checkpoint of Stable Diffusion"):
        load(tmp_path / "x.safetensors")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"ends in \.safetensors or \.ckpt, and '\.gguf' is neither"):
        load(tmp_path / "x.gguf")


def test_a_weight_that_is_not_there_is_named(tmp_path: Path) -> None:
    pipe = stable_diffusion()
    keep_all_but_weights(pipe, tmp_path)
    state = contiguous(original(pipe))
    del state["model.diffusion_model.middle_block.1.proj_in.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 weights of its unet .* mid_block\.attentions\.0\.proj_in\.weight"):
        load(tmp_path / "model.safetensors")


def test_a_missing_tokenizer_says_what_to_download(tmp_path: Path) -> None:
    pipe = stable_diffusion()
    keep_all_but_weights(pipe, tmp_path)
    for file in (tmp_path / "tokenizer").iterdir():
        file.unlink()
    save_file(contiguous(original(pipe)), tmp_path / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"holds no tokenizer, .* `hf download openai/clip-vit-large-patch14 .*copy the tok"
    ):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("metadata", "extra", "expected"),
    [
        ({}, {}, "epsilon"),
        ({"modelspec.prediction_type": "v"}, {}, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, {"v_pred": torch.ones(1)}, "epsilon"),
        ({}, {"v_pred": torch.ones(1), "ztsnr": torch.ones(1)}, "v_prediction"),
    ],
)
def test_what_a_file_predicts_is_read_from_it(
    metadata: dict[str, str], extra: dict[str, Tensor], expected: str, tmp_path: Path
) -> None:
    pipe = tiny_sdxl.pipeline()
    keep_all_but_weights(pipe, tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    path = tmp_path / "model.safetensors"
    save_file(contiguous({**tiny_sdxl.original(pipe), **extra}), path, metadata)
    family = load(path, "sdxl")
    assert family.objective == expected
    assert (family.alphas_cumprod[-1].item() == 0) == ("ztsnr" in extra)


@pytest.mark.parametrize(("spread", "expected"), [(0.02, "epsilon"), (0.2, "v_prediction")])
def test_a_second_stable_diffusion_shows_what_it_predicts(spread: float, expected: str) -> None:
    name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    state = {name: torch.tensor([-spread, spread])}
    assert _single_file.prediction_type(Path("model.ckpt"), "sd2", state) == expected
    assert _single_file.prediction_type(Path("model.ckpt"), "sd1", state) == "epsilon"


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("guidance", [False, True])
def test_flux_takes_what_its_file_lacks_from_beside_it(
    guidance: bool, everything: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' converter knows FLUX's real widths alone, so the transformer's tensors keep diffusers' names here."""

    def converted(checkpoint: dict[str, Tensor], config: object) -> dict[str, Tensor]:
        return {n.removeprefix("tiny."): v for n, v in checkpoint.items() if n.startswith("tiny.")}

    monkeypatch.setitem(_single_file.CONVERTERS, "transformer", converted)

    pipe = tiny_flux.pipeline(guidance)
    pipe.save_pretrained(tmp_path / "folder")
    pipe.save_pretrained(tmp_path / "file")
    names = tiny_flux.original(pipe.transformer.state_dict(), pipe.transformer.config)
    state = {f"tiny.{name}": value for name, value in pipe.transformer.state_dict().items()}
    state |= {name: names[name] for name in names if "key_norm" in name or "guidance_in" in name}
    if everything:
        keep_all_but_weights(pipe, tmp_path / "file")
        state |= tiny_sd.original_vae(pipe.vae, "vae.")
        state |= tiny_sd.original_clip(pipe.text_encoder, "text_encoders.clip_l.transformer.")
        t5 = {n: v for n, v in pipe.text_encoder_2.state_dict().items() if n != "encoder.embed_tokens.weight"}
        state |= {f"text_encoders.t5xxl.transformer.{name}": value for name, value in t5.items()}
    save_file(contiguous(state), tmp_path / "file" / "flux1.safetensors")
    loaded = load(tmp_path / "file" / "flux1.safetensors", "flux")
    assert loaded.version == ("flux-dev" if guidance else "flux-schnell")
    assert_equal(loaded, load(tmp_path / "folder", "flux"))


def test_the_originals_schedules_are_known(tmp_path: Path) -> None:
    dev = _single_file._scheduler(tmp_path / "x.safetensors", "flux", {"guidance_in.in_layer.weight": torch.ones(1)})
    schnell = _single_file._scheduler(tmp_path / "x.safetensors", "flux", {})
    assert (dev.config.shift, dev.config.use_dynamic_shifting) == (3.0, True)
    assert (schnell.config.shift, schnell.config.use_dynamic_shifting) == (1.0, False)
    for config in sorted(_single_file.CONFIGS.rglob("*.json")):
        assert json.loads(config.read_text(encoding="utf-8"))
