"""Facts about LoRA files of other tools: what is read of them, and that converting keeps every change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from captune import adapters, export
from captune.errors import DataError
from captune.exporters import readback
from captune.exporters.kohya import Kohya
from captune.importers.lora import read_lora
from tests import tiny_families, tiny_sd

QKV = "lora_unet_double_blocks_0_img_attn_qkv"
LINEAR1 = "lora_unet_single_blocks_1_linear1"


def pair(name: str, rows: int, columns: int, rank: int = 2, alpha: float | None = 1.0) -> dict[str, Tensor]:
    torch.manual_seed(len(name))
    made = {f"{name}.lora_down.weight": torch.randn(rank, columns), f"{name}.lora_up.weight": torch.randn(rows, rank)}
    return made if alpha is None else {**made, f"{name}.alpha": torch.tensor(alpha)}


def same_changes(first: Path, second: Path) -> None:
    one, two = readback.read_kohya(first), readback.read_kohya(second)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=0)


def test_a_flux_file_trained_on_fused_weights_comes_back_exactly(tmp_path: Path) -> None:
    """sd-scripts trains one down for q, k and v together."""
    tensors = {
        **pair(QKV, 48, 16),
        **pair(LINEAR1, 112, 16),
        **pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", 20, 12),
    }
    save_file(tensors, tmp_path / "foreign.safetensors", {"ss_base_model_version": "flux1", "ss_tag_frequency": "{}"})
    read = read_lora(tmp_path / "foreign.safetensors")
    assert (read.family, read.version) == ("flux", "flux-dev")
    assert {(m.name, m.rank, m.up.shape[0]) for m in read.modules if m.component == "transformer"} == {
        *((f"transformer_blocks.0.attn.to_{part}", 2, 16) for part in "qkv"),
        *((f"single_transformer_blocks.1.attn.to_{part}", 2, 16) for part in "qkv"),
        ("single_transformer_blocks.1.proj_mlp", 2, 64),
    }
    Kohya().write(read, tmp_path / "again.safetensors", "fp32")
    same_changes(tmp_path / "foreign.safetensors", tmp_path / "again.safetensors")
    assert {k: v.shape for k, v in load_file(tmp_path / "again.safetensors").items()} == {
        k: v.shape for k, v in tensors.items()
    }


def test_parts_of_a_fused_weight_that_were_not_trained_are_left_out_and_stay_unchanged(tmp_path: Path) -> None:
    trained = tiny_families.lora("flux", rank=2, keep="to_v")
    Kohya().write(trained, tmp_path / "lora.safetensors", "fp32")
    (blocks,) = {
        m.name for m in read_lora(tmp_path / "lora.safetensors").modules if "single" not in m.name and ".1." in m.name
    }
    assert blocks == "transformer_blocks.1.attn.to_v"
    change = readback.read_kohya(tmp_path / "lora.safetensors")[QKV]
    assert not change[:32].any() and change[32:].any()


@pytest.mark.parametrize("alpha", [None, 4.0])
def test_a_file_without_alpha_has_the_strength_that_all_tools_give_it(alpha: float | None, tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file(pair(name, 8, 768, rank=2, alpha=alpha), tmp_path / "lora.safetensors")
    read = read_lora(tmp_path / "lora.safetensors")
    assert (read.version, read.modules[0].alpha) == ("sd1", alpha or 2.0)


@pytest.mark.parametrize(
    ("key", "place"),
    [
        (
            "lora_unet_down_blocks_1_attentions_0_proj_in",
            ("unet", "down_blocks.1.attentions.0.proj_in"),
        ),  # sdxl, diffusers
        ("lora_te2_text_model_encoder_layers_3_mlp_fc2", ("text_encoder_2", "text_model.encoder.layers.3.mlp.fc2")),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora", "to_q"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora", "to_out.0"),
        ("text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer", "q_proj"),
    ],
)
def test_other_spellings_are_read(key: str, place: tuple[str, str] | str, tmp_path: Path) -> None:
    wide = pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 8, 2048)  # tells SDXL
    down, up = torch.randn(2, 6), torch.randn(4, 2)
    if "." in key:
        wide = {"unet.down_blocks.1.attn2.to_k.lora_A.weight": torch.randn(2, 2048)}
        wide["unet.down_blocks.1.attn2.to_k.lora_B.weight"] = torch.randn(8, 2)
        tensors = {f"{key}.down.weight": down, f"{key}.up.weight": up}
    else:
        tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    save_file({**wide, **tensors}, tmp_path / "lora.safetensors")
    read = read_lora(tmp_path / "lora.safetensors")
    assert read.family == "sdxl"
    (module,) = [m for m in read.modules if torch.equal(m.down, down)]
    if isinstance(place, tuple):
        assert (module.component, module.name) == place
    else:
        assert module.name.endswith(place) and (
            module.component != "text_encoder_2" or module.name.startswith("text_model.")
        )


def test_pefts_alpha_is_read_from_the_header(tmp_path: Path) -> None:
    tensors = {}
    for part in "qk":
        tensors[f"transformer.transformer_blocks.0.attn.to_{part}.lora_A.weight"] = torch.randn(4, 8)
        tensors[f"transformer.transformer_blocks.0.attn.to_{part}.lora_B.weight"] = torch.randn(8, 4)
    config = {"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn.to_k": 2}}
    save_file(tensors, tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    read = read_lora(tmp_path / "lora.safetensors")
    assert {m.name[-1]: m.alpha for m in read.modules} == {"q": 8.0, "k": 2.0}


def test_what_another_tool_said_stays_in_the_header(tmp_path: Path) -> None:
    told = {
        "ss_tag_frequency": '{"a": {"b": 1}}',
        "ss_session_id": "7",
        "modelspec.author": "me",
        "ss_network_dim": "99",
    }
    tensors = pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 8, 1024)
    save_file(
        tensors, tmp_path / "foreign.safetensors", {**told, "ss_v2": "True", "modelspec.trigger_phrase": "zorblax"}
    )
    Kohya().write(read_lora(tmp_path / "foreign.safetensors"), tmp_path / "again.safetensors", "fp32")
    header = readback.metadata(tmp_path / "again.safetensors")
    assert {**header, **told, "ss_network_dim": "2", "ss_v2": "True", "modelspec.trigger_phrase": "zorblax"} == header


def test_files_that_are_no_plain_lora_are_refused_in_a_sentence(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_proj_in"
    cases: dict[str, tuple[dict[str, Tensor], str]] = {
        "loha": ({f"{name}.hada_w1_a": torch.ones(2, 2)}, "holds a loha"),
        "dora": ({**pair(name, 4, 4), f"{name}.dora_scale": torch.ones(4)}, "holds a dora"),
        "half": (
            {f"{name}.lora_up.weight": torch.ones(2, 2), **pair("lora_unet_conv_in", 4, 4)},
            "needs both matrices",
        ),
        "other": (
            pair("lora_unet_mystery_block_3", 4, 4),
            "lora_unet_mystery_block_3 names no module of the family sd",
        ),
        "model": (
            {"model.weight": torch.ones(2, 2)},
            "holds no LoRA in a spelling that is known here",
        ),
    }
    for file, (tensors, words) in cases.items():
        save_file(tensors, tmp_path / file)
        with pytest.raises(DataError, match=words):
            read_lora(tmp_path / file)
    (tmp_path / "broken").write_bytes(b"not a file of tensors")
    with pytest.raises(DataError, match="not a readable safetensors file"):
        export.read_any(tmp_path / "broken")


def test_exporting_a_file_converts_it_and_never_overwrites_it(tmp_path: Path) -> None:
    source = tmp_path / "lora.safetensors"
    Kohya().write(tiny_sd.lora({"unet": tiny_sd.unet(linear_projection=False)}), source, "fp32")
    path, warnings = export.export_file(source, "peft", None, "fp32")
    assert path == tmp_path / "lora.diffusers.safetensors" and warnings == []
    back, warnings = export.export_file(path, "kohya", tmp_path / "back.safetensors", "fp32")
    same_changes(source, back)
    assert warnings[0].startswith("sd-scripts will leave out")
    with pytest.raises(DataError, match="written over itself"):
        export.export_file(source, "kohya", None, "fp32")
    with pytest.raises(DataError, match="is there already; name it with --out"):
        export.export_file(source, "peft", None, "fp32")
    assert export.export_file(source, "peft", path, "fp32")[0] == path


def test_our_own_adapter_files_are_exported_too(tmp_path: Path) -> None:
    lora = tiny_families.lora("sdxl", keep="attn")
    spec = adapters.LoraSpec(3, 2.0, {"unet": ".*"})
    tensors = {}
    for m in lora.modules:
        name = f"{m.component}.{m.name.removeprefix('text_model.')}"
        tensors |= {f"{name}.lora_A.weight": m.down, f"{name}.lora_B.weight": m.up}
    adapters.save(
        tmp_path / "adapter.safetensors", tensors, spec, {"family": "sdxl", "version": "sdxl", "objective": "epsilon"}
    )
    path, _ = export.export_file(tmp_path / "adapter.safetensors", "kohya", tmp_path / "out.safetensors", "fp32")
    changes = {(m.component, m.name): m.change() for m in read_lora(path).modules}
    assert changes.keys() == {(m.component, m.name) for m in lora.modules}
    for m in lora.modules:
        torch.testing.assert_close(changes[m.component, m.name], m.change(), rtol=1e-6, atol=1e-7)
