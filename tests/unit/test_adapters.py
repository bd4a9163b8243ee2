"""A LoRA goes in, comes out again and survives the disk, exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from captune import adapters
from captune.errors import DataError, RecipeError
from captune.exporters import LoraModule
from captune.exporters.lycoris import as_lora
from captune.families.sd import StableDiffusion
from tests import tiny_sd

TARGETS = {name: targets.presets for name, targets in StableDiffusion.targets.items()}


KINDS = ("lora", "dora", "loha", "lokr")


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing_and_removing_it_restores_every_module(kind: str) -> None:
    parts = components()
    before, names = predict(parts), [name for name, _ in parts["unet"].named_modules()]
    adapters.inject(parts, spec("all", kind=kind), seed=0)
    torch.testing.assert_close(predict(parts), before, rtol=0, atol=0 if kind != "dora" else 1e-6)
    for name, p in adapters.parameters(parts).items():
        assert p.requires_grad and (p.abs().sum() > 0) == (not name.endswith(adapters.FIRST_ZERO))
    adapters.remove(parts)
    assert [name for name, _ in parts["unet"].named_modules()] == names
    assert torch.equal(predict(parts), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_modules_first_weights_depend_on_seed_and_name_alone(kind: str) -> None:
    some, all_, other = components(), components(), components()
    adapters.inject(some, spec("attention", kind=kind), seed=1)
    adapters.inject(all_, spec("all", kind=kind), seed=1)
    adapters.inject(other, spec("attention", kind=kind), seed=2)
    a, b, c = (adapters.weights_of(parts) for parts in (some, all_, other))
    assert set(a) < set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)
    drawn = [n for n in a if not n.endswith((*adapters.FIRST_ZERO, adapters.MAGNITUDE))]
    assert drawn and not any(torch.equal(a[n], c[n]) for n in drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_gives_back_weights_shape_and_facts(tmp_path: Path, kind: str) -> None:
    parts, again = components(), components()
    both = {"unet": TARGETS["unet"]["all_linear"], "text_encoder": TARGETS["text_encoder"]["all"]}
    shape = spec(targets=both, kind=kind, ranks={"mid_block": 3})
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


def weight_under(kind: str, module: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """A module's own weight, its weight with an adapter of rank 2 and alpha 4, and the adapter's parts."""
    parts = components()
    own = parts["unet"].get_submodule(module).weight.detach().clone()
    adapters.inject(parts, spec("all", kind=kind), seed=0)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in adapters.parameters(parts).values():
            p.copy_(torch.rand(p.shape) + 0.5)
    inner = own.shape[1]
    layer = parts["unet"].get_submodule(module)
    with torch.no_grad():
        moved = layer(torch.eye(inner)) - layer(torch.zeros(1, inner))
    found = adapters.weights_of(parts)
    return own, moved.T, {n.split(f"{module}.")[1]: v for n, v in found.items() if n.startswith(f"unet.{module}.")}


def test_every_kind_builds_its_update_by_its_formula() -> None:
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    own, moved, p = weight_under("lora", module)
    torch.testing.assert_close(moved - own, 2 * p["lora_B.weight"] @ p["lora_A.weight"])
    own, moved, p = weight_under("loha", module)
    hadamard = (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])
    torch.testing.assert_close(moved - own, 2 * hadamard)
    own, moved, p = weight_under("lokr", module)
    second = p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_a"] @ p["lokr_w2_b"]
    torch.testing.assert_close(moved - own, 2 * torch.kron(p["lokr_w1"], second))
    own, moved, p = weight_under("dora", module)
    whole = own + 2 * p["lora_B.weight"] @ p["lora_A.weight"]
    expected = p[adapters.MAGNITUDE][:, None] * whole / whole.norm(dim=1, keepdim=True)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
@pytest.mark.parametrize("rank", [1, 2, 50])  # a large rank leaves LoKr's second factor whole
def test_lohas_and_lokrs_are_exported_as_the_lora_of_the_same_change(kind: str, rank: int) -> None:
    parts = components()
    adapters.inject(parts, spec("all", kind=kind, rank=rank), seed=0)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in adapters.parameters(parts).values():
            p.normal_()
    kernels, weights = adapters.kernels(parts), adapters.weights_of(parts)
    assert kernels["unet.conv_in" if "unet.conv_in" in kernels else "unet.down_blocks.0.resnets.0.conv1"] == [3, 3]
    for name, layer in adapters.lora_layers(parts["unet"]).items():
        begin = f"unet.{name}."
        own = {n.removeprefix(begin): w for n, w in weights.items() if n.startswith(begin)}
        down, up = as_lora(own, tuple(kernels.get(f"unet.{name}", ())))
        scale = 4 / rank
        module = LoraModule("unet", name, down, up, scale * down.shape[0])
        with torch.no_grad():
            expected = layer.get_delta_weight(adapters.ADAPTER)
        torch.testing.assert_close(module.change(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_doras_magnitude_starts_as_the_norm_of_the_weight() -> None:
    parts = components()
    layer = parts["unet"].get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    norm = layer.weight.norm(dim=1)
    adapters.inject(parts, spec(kind="dora"), seed=0)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_magnitude_vector"
    torch.testing.assert_close(adapters.parameters(parts)[name].data, norm)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_by_pattern_keep_alpha_over_rank(kind: str) -> None:
    parts = components()
    adapters.inject(parts, spec(kind=kind, ranks={"unet.mid_block": 4, "attn1": 1}), seed=0)
    layers = adapters.lora_layers(parts["unet"])
    ranks = {name: layer.r[adapters.ADAPTER] for name, layer in layers.items()}
    assert {r for n, r in ranks.items() if n.startswith("mid_block")} == {4}
    assert {r for n, r in ranks.items() if "attn1" in n and not n.startswith("mid_block")} == {1}
    assert {r for n, r in ranks.items() if "attn2" in n and not n.startswith("mid_block")} == {2}
    assert {layer.scaling[adapters.ADAPTER] for layer in layers.values()} == {2.0}


def test_a_rank_for_no_module_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"train.ranks: 'encoder' is found in no module .* named like unet\.down_blocks"
    ):
        adapters.inject(components(), spec(ranks={"encoder": 4}), seed=0)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_dropout_is_off_but_where_it_is_asked_for(kind: str) -> None:
    parts = components()
    adapters.inject(parts, spec(kind=kind, dropout=0.9), seed=0)
    with torch.no_grad():
        for p in adapters.parameters(parts).values():
            p.normal_()
    still = predict(parts)
    assert torch.equal(predict(parts), still)
    with adapters.dropping(parts):
        assert not torch.equal(predict(parts), still)
        with adapters.dropping(parts, on=False):
            assert torch.equal(predict(parts), still)
    assert torch.equal(predict(parts), still)


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
