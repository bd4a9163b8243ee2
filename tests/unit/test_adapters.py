"""A LoRA goes in, comes out again and survives the disk, exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from captune import adapters
from captune.errors import DataError, RecipeError
from captune.families.sd import StableDiffusion
from tests import tiny_sd

TARGETS = {name: targets.presets for name, targets in StableDiffusion.targets.items()}


def components() -> dict[str, torch.nn.Module]:
    return {"unet": tiny_sd.unet(linear_projection=False), "text_encoder": tiny_sd.text_encoder()}


def spec(preset: str = "attention", **values: object) -> adapters.LoraSpec:
    return adapters.LoraSpec(**{"rank": 2, "alpha": 4.0, "targets": {"unet": TARGETS["unet"][preset]}, **values})  # type: ignore[arg-type]


def predict(parts: dict[str, torch.nn.Module]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 4, 8, 8, generator=generator)
    hidden = torch.randn(1, 5, 12, generator=generator)
    with torch.no_grad():
        return parts["unet"](noisy, torch.tensor([3]), encoder_hidden_states=hidden).sample


def test_a_fresh_lora_changes_nothing_and_removing_it_restores_every_module() -> None:
    parts = components()
    before, names = predict(parts), [name for name, _ in parts["unet"].named_modules()]
    adapters.inject(parts, spec("all"), seed=0)
    assert torch.equal(predict(parts), before)
    for name, p in adapters.parameters(parts).items():
        assert p.requires_grad and (p.abs().sum() > 0) == name.endswith("lora_A.weight")
    adapters.remove(parts)
    assert [name for name, _ in parts["unet"].named_modules()] == names
    assert torch.equal(predict(parts), before)


def test_a_modules_first_weights_depend_on_seed_and_name_alone() -> None:
    some, all_, other = components(), components(), components()
    adapters.inject(some, spec("attention"), seed=1)
    adapters.inject(all_, spec("all"), seed=1)
    adapters.inject(other, spec("attention"), seed=2)
    a, b, c = (adapters.weights_of(parts) for parts in (some, all_, other))
    assert set(a) < set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[n], c[n]) for n in a if n.endswith("lora_A.weight"))


def test_the_file_gives_back_weights_shape_and_facts(tmp_path: Path) -> None:
    parts, again = components(), components()
    both = {"unet": TARGETS["unet"]["all_linear"], "text_encoder": TARGETS["text_encoder"]["all"]}
    shape = spec(targets=both)
    adapters.inject(parts, shape, seed=0)
    with torch.no_grad():
        for p in adapters.parameters(parts).values():
            p.normal_()
    adapters.save(tmp_path / "a.safetensors", adapters.weights_of(parts), shape, {"arm": "human"})
    adapters.save(tmp_path / "b.safetensors", adapters.weights_of(parts), shape, {"arm": "human"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    tensors, read_shape, facts = adapters.read(tmp_path / "a.safetensors")
    assert (read_shape, facts) == (shape, {"arm": "human"})
    adapters.inject(again, read_shape, seed=9)
    adapters.set_weights(again, tensors)
    assert torch.equal(predict(again), predict(parts))


def test_the_update_is_scaled_by_alpha_over_rank() -> None:
    weights = {}
    for alpha in (2.0, 4.0):
        parts = components()
        adapters.inject(parts, spec(alpha=alpha), seed=0)
        with torch.no_grad():
            for p in adapters.parameters(parts).values():
                p.fill_(0.1)
        layer = next(iter(adapters.lora_layers(parts["unet"]).values()))
        weights[alpha] = layer.get_delta_weight(adapters.ADAPTER)
    torch.testing.assert_close(weights[4.0], 2 * weights[2.0])


def test_a_pattern_that_hits_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'nowhere' hits no module of the unet"):
        adapters.inject(components(), spec(targets={"unet": "nowhere"}), seed=0)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"attention\+feed_forward"):
        adapters.patterns("atention", TARGETS["unet"], "unet")


def test_a_lora_for_another_model_is_refused_by_name() -> None:
    parts, other = components(), components()
    adapters.inject(parts, spec("attention"), seed=0)
    adapters.inject(other, spec("all"), seed=0)
    with pytest.raises(DataError, match="does not fit"):
        adapters.set_weights(parts, adapters.weights_of(other))


def test_a_file_that_is_no_lora_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not a file of weights")
    with pytest.raises(DataError, match="not a readable LoRA file"):
        adapters.read(tmp_path / "x.safetensors")


def test_kohyas_choice_hits_kohyas_modules() -> None:
    """192 modules of Stable Diffusion 1.5: 8 attention, 2 feed forward and 2 projections in each of 16 blocks."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8, layers_per_block=2
        )
        adapters.inject({"unet": unet}, spec("attention+feed_forward"), seed=0)
    assert len(adapters.lora_layers(unet)) == 192
