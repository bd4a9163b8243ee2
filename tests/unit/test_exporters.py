"""Facts about exported files: their spelling, their headers, and what other tools' rules make of them."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import captune
from captune import export
from captune.errors import DataError, ModelError, RecipeError
from captune.exporters import LoraFile, LoraModule, facts, names, readback
from captune.exporters.kohya import Kohya, file_modules
from captune.exporters.peft import Peft, lora_config
from captune.progress import Silent
from captune.recipe import ExportSection
from captune.runs import StageFolder
from captune.types import Caption, Example
from tests import tiny_families, tiny_sd

CONFIGS = Path(captune.__file__).parent / "families" / "configs"
STABILITY = "https://github.com/Stability-AI/generative-models"
FLUX = "https://github.com/black-forest-labs/flux"
PREFIXES = names.PREFIXES["sd"]


def module(name: str = "mid_block.attentions.0.proj_in", kernel: int = 0, component: str = "unet") -> LoraModule:
    torch.manual_seed(len(name))
    window, point = ((kernel, kernel), (1, 1)) if kernel else ((), ())
    return LoraModule(component, name, torch.randn(2, 5, *window), torch.randn(4, 2, *point), 1.0)


def lora(*modules: LoraModule, **more: str) -> LoraFile:
    return LoraFile("sd", modules or (module(),), {**tiny_sd.FACTS, **more})


def header(path: Path, *modules: LoraModule, **more: str) -> dict[str, str]:
    Kohya().write(lora(*modules, **more), path, "fp16")
    return readback.metadata(path)


def test_kohya_spells_names_as_sd_scripts_does(tmp_path: Path) -> None:
    spelled = {
        ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"): (
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
        ),
        ("unet", "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"): (
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj"
        ),
        ("text_encoder", "text_model.encoder.layers.11.self_attn.q_proj"): (
            "lora_te_text_model_encoder_layers_11_self_attn_q_proj"
        ),
    }
    Kohya().write(lora(*(module(n, component=c) for c, n in spelled)), tmp_path / "lora", "fp16")
    tensors = load_file(tmp_path / "lora")
    assert set(tensors) == {f"{n}.{part}" for n in spelled.values() for part in readback.PARTS}
    assert all(value.shape == () for key, value in tensors.items() if key.endswith(".alpha"))


@pytest.mark.parametrize("linear_projection", [False, True])
def test_read_back_changes_are_exactly_those_trained_and_no_key_is_left(
    linear_projection: bool, tmp_path: Path
) -> None:
    components = {"unet": tiny_sd.unet(linear_projection), "text_encoder": tiny_sd.text_encoder()}
    trained = tiny_sd.lora(components)
    assert all(m.alpha != m.rank for m in trained.modules)
    Kohya().write(trained, tmp_path / "lora", "fp32")
    changes = readback.read_kohya(tmp_path / "lora")
    assert len(changes) == len(trained.modules)
    for m in trained.modules:
        product = (m.up.flatten(1) @ m.down.flatten(1)).reshape(m.up.shape[0], *m.down.shape[1:])
        assert torch.equal(changes[PREFIXES[m.component] + m.name.replace(".", "_")], m.alpha / m.rank * product)
    assert readback.leftover_keys(tmp_path / "lora", components, "sd") == []


def test_keys_that_no_module_takes_are_found(tmp_path: Path) -> None:
    components = {"unet": tiny_sd.unet(linear_projection=True)}
    trained = tiny_sd.lora(components)
    stray = dataclasses.replace(trained.modules[0], name="down_blocks.7.conv")
    Kohya().write(LoraFile("sd", (*trained.modules, stray), trained.facts), tmp_path / "lora", "fp16")
    assert readback.leftover_keys(tmp_path / "lora", components, "sd") == [
        f"lora_unet_down_blocks_7_conv.{part}" for part in sorted(readback.PARTS)
    ]
    with_convolutions = {"unet": tiny_sd.unet(linear_projection=False)}
    left = readback.leftover_keys(tmp_path / "lora", with_convolutions, "sd")
    assert {key.partition(".")[0].rpartition("_proj_")[2] for key in left if "proj_" in key} == {"in", "out"}


def test_files_in_another_spelling_are_not_read_as_kohyas(tmp_path: Path) -> None:
    Peft().write(lora(), tmp_path / "peft", "fp16")
    with pytest.raises(DataError, match="kohya's spelling"):
        readback.read_kohya(tmp_path / "peft")
    save_file({"lora_unet_x.lora_up.weight": torch.ones(1, 1)}, tmp_path / "half")
    with pytest.raises(DataError, match="lora_unet_x has lora_up.weight but needs lora_down.weight"):
        readback.read_kohya(tmp_path / "half")


def test_kohya_file_has_one_alpha_and_every_module_its_own_scale(tmp_path: Path) -> None:
    modules = [dataclasses.replace(module(f"m.{i}"), alpha=alpha) for i, alpha in enumerate((4.0, 4.0, 0.5))]
    Kohya().write(lora(*modules), tmp_path / "lora", "fp32")
    alphas = {value.item() for key, value in load_file(tmp_path / "lora").items() if key.endswith(".alpha")}
    assert alphas == {4.0}
    for m, change in zip(modules, readback.read_kohya(tmp_path / "lora").values(), strict=True):
        torch.testing.assert_close(change, m.alpha / m.rank * m.up @ m.down)


def test_header_says_what_the_web_interfaces_ask(tmp_path: Path) -> None:
    tags = {"30_zorblax": {"a red creature": 2}}
    buckets = {"buckets": {"0": {"resolution": [64, 64], "count": 2}}}
    said = header(
        tmp_path / "lora",
        resolution="512",
        num_train_images="60",
        arm="blip",
        training_started_at="1700000000",
        tag_frequency=json.dumps(tags),
        bucket_info=json.dumps(buckets),
    )
    assert (
        said
        | {
            "ss_network_module": "networks.lora",
            "ss_network_dim": "2",
            "ss_network_alpha": "1",
            "ss_network_args": "{}",
            "ss_base_model_version": "sd_v1",
            "ss_v2": "False",
            "ss_output_name": "run-blip",
            "ss_sd_model_name": "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "ss_resolution": "(512, 512)",
            "ss_num_train_images": "60",
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "modelspec.implementation": "diffusers",
            "modelspec.prediction_type": "epsilon",
            "modelspec.resolution": "512x512",
            "modelspec.title": "run-blip",
            "modelspec.trigger_phrase": "zorblax",
            "captune.arm": "blip",
        }
        == said
    )
    assert float(said["ss_training_started_at"]) == 1700000000
    assert (json.loads(said["ss_tag_frequency"]), json.loads(said["ss_bucket_info"])) == (tags, buckets)


def test_header_knows_convolutions_mixed_ranks_and_v_prediction(tmp_path: Path) -> None:
    narrow = module("m.0")
    wide = dataclasses.replace(module("m.1", kernel=3), down=torch.ones(3, 5, 3, 3), up=torch.ones(4, 3, 1, 1))
    said = header(tmp_path / "lora", narrow, wide, objective="v_prediction")
    assert said["ss_network_dim"] == "Dynamic"
    assert json.loads(said["ss_network_args"]) == {"conv_dim": "3", "conv_alpha": "1"}
    assert said["modelspec.prediction_type"] == "v"


def test_header_names_no_clock_and_no_folder_of_this_computer(tmp_path: Path) -> None:
    said = header(tmp_path / "lora", base_model=str(tmp_path / "my-base"))
    assert said["ss_sd_model_name"] == "my-base"
    assert not [key for key in said if "date" in key or key.endswith("_at")]
    assert str(tmp_path) not in "".join(said.values())


def test_json_facts_must_be_objects(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tag_frequency must be a JSON object"):
        header(tmp_path / "lora", tag_frequency="[]")


def test_hash_is_of_the_bytes_behind_the_header(tmp_path: Path) -> None:
    said = header(tmp_path / "lora")
    content = (tmp_path / "lora").read_bytes()
    body = content[8 + int.from_bytes(content[:8], "little") :]
    assert said["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    assert said["sshs_legacy_hash"] == hashlib.sha256(b"").hexdigest()[:8]  # small files: it begins at the first MiB


def test_hash_does_not_depend_on_what_may_be_edited(tmp_path: Path) -> None:
    large = LoraModule("unet", "m", torch.ones(64, 9000), torch.ones(9000, 64), 64.0)
    hashes = [
        {k: v for k, v in header(tmp_path / "lora", large, **facts).items() if k.startswith("sshs_")}
        for facts in ({"trigger_word": "a"}, {"trigger_word": "something longer"})
    ]
    assert hashes[0] == hashes[1]


def test_modules_that_sd_scripts_drops_are_named(tmp_path: Path) -> None:
    blocks = ["down_blocks.0.attentions.0.proj_in", "mid_block.resnets.1.conv1", "up_blocks.0.upsamplers.0.conv"]
    read = [module(name, kernel=1) for name in blocks]
    assert Kohya().warnings(lora(*read)) == []
    section, folder = ExportSection(formats=["kohya"]), StageFolder(tmp_path)
    export.export_adapter(section, lora(*read, module("conv_in", kernel=3)), "run-blip", folder, Silent())
    (warning,) = folder.manifest()["warnings"]
    assert warning.startswith("run-blip.safetensors: sd-scripts will leave out 1 of 4 modules (lora_unet_conv_in)")


def test_unknown_families_and_versions_are_refused_with_those_known(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"family of a LoRA file 'sdlx'.*did you mean 'sdxl'"):
        Kohya().write(LoraFile("sdlx", (module(),), tiny_sd.FACTS), tmp_path / "lora", "fp16")
    with pytest.raises(RecipeError, match=r"version of sd 'sdxl'.*known: sd1, sd2"):
        Kohya().write(LoraFile("sd", (module(),), tiny_sd.FACTS, "sdxl"), tmp_path / "lora", "fp16")


@pytest.mark.parametrize(
    ("family", "version", "objective", "said"),
    [
        ("sd", "sd1", "epsilon", ("sd_v1", "False", "stable-diffusion-v1/lora", "diffusers", "epsilon")),
        ("sd", "sd2", "epsilon", ("sd_v2", "True", "stable-diffusion-v2-512/lora", "diffusers", "epsilon")),
        ("sd", "sd2", "v_prediction", ("sd_v2_v", "True", "stable-diffusion-v2-768-v/lora", "diffusers", "v")),
        (
            "sdxl",
            "sdxl",
            "epsilon",
            ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora", STABILITY, "epsilon"),
        ),
        ("flux", "flux-dev", "flow_matching", ("flux1", "False", "flux-1-dev/lora", FLUX, None)),
        ("flux", "flux-schnell", "flow_matching", ("flux1", "False", "flux-1-schnell/lora", FLUX, None)),
    ],
)
def test_header_labels_the_base_in_the_words_that_web_interfaces_look_for(
    family: str, version: str, objective: str, said: tuple[str | None, ...], tmp_path: Path
) -> None:
    trained = tiny_families.lora(family, keep="attn")
    Kohya().write(LoraFile(family, trained.modules, {"objective": objective}, version), tmp_path / "lora", "fp16")
    header = readback.metadata(tmp_path / "lora")
    keys = (
        "ss_base_model_version",
        "ss_v2",
        "modelspec.architecture",
        "modelspec.implementation",
        "modelspec.prediction_type",
    )
    assert tuple(header.get(key) for key in keys) == said


def test_cover_picture_stands_where_web_interfaces_look_for_it(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (640, 480), (200, 30, 40)).save(photo)
    cover = facts.cover(photo)
    Kohya().write(dataclasses.replace(lora(), cover=cover), tmp_path / "lora", "fp16")
    (inside,) = json.loads(readback.metadata(tmp_path / "lora")["ssmd_cover_images"])
    assert base64.b64decode(inside) == cover == facts.cover(photo)
    with Image.open(io.BytesIO(cover)) as shown:
        assert (shown.format, shown.size) == ("JPEG", (256, 192))
    with pytest.raises(ModelError, match="must be a JPEG, PNG or WebP"):
        Kohya().write(dataclasses.replace(lora(), cover=b"GIF89a"), tmp_path / "lora", "fp16")


def test_sdxl_takes_the_original_checkpoints_names() -> None:
    spelled = {
        ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"): (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
        ),
        ("unet", "mid_block.attentions.0.proj_in"): "lora_unet_middle_block_1_proj_in",
        ("unet", "up_blocks.1.attentions.2.transformer_blocks.1.ff.net.0.proj"): (
            "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_0_proj"
        ),
        ("unet", "down_blocks.0.downsamplers.0.conv"): "lora_unet_input_blocks_3_0_op",
        ("unet", "up_blocks.0.upsamplers.0.conv"): "lora_unet_output_blocks_2_2_conv",
        ("unet", "up_blocks.2.resnets.1.conv_shortcut"): "lora_unet_output_blocks_7_0_skip_connection",
        ("text_encoder", "text_model.encoder.layers.0.mlp.fc1"): "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        ("text_encoder_2", "text_model.encoder.layers.31.mlp.fc2"): "lora_te2_text_model_encoder_layers_31_mlp_fc2",
    }
    assert {place: names.to_kohya("sdxl", *place) for place in spelled} == spelled
    assert {key: names.from_kohya("sdxl", key) for key in spelled.values()} == {
        key: (component, (name,)) for (component, name), key in spelled.items()
    }


def test_flux_takes_the_original_names_whose_weights_hold_several_modules() -> None:
    assert names.from_kohya("flux", "lora_unet_single_blocks_37_linear1") == (
        "transformer",
        tuple(f"single_transformer_blocks.37.{m}" for m in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    )
    assert names.to_kohya("flux", "transformer", "transformer_blocks.3.attn.add_k_proj") == (
        "lora_unet_double_blocks_3_txt_attn_qkv"
    )
    assert names.from_kohya("flux", "lora_unet_double_blocks_3_img_mlp_0") == (
        "transformer",
        ("transformer_blocks.3.ff.net.0.proj",),
    )
    assert names.from_kohya("flux", "lora_unet_no_such_thing") is None


@pytest.mark.parametrize(
    ("family", "component", "folder", "weights", "blocks"),
    # kohya's own lists of what it trains: 192, 722 and 304 modules of the denoiser
    [("sd", "unet", "sd1", 278, 192), ("sdxl", "unet", "sdxl", 794, 722), ("flux", "transformer", "flux", 314, 304)],
)
def test_every_module_of_the_real_models_has_a_name_that_leads_back(
    family: str, component: str, folder: str, weights: int, blocks: int
) -> None:
    config = json.loads((CONFIGS / folder / component / "config.json").read_text())
    kind = FluxTransformer2DModel if component == "transformer" else UNet2DConditionModel
    with torch.device("meta"):
        model = kind(**{k: v for k, v in config.items() if not k.startswith("_")})
    found: dict[str, list[str]] = {}
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            found.setdefault(str(names.to_kohya(family, component, name)), []).append(name)
    assert "None" not in found and len(found) >= weights
    for key, members in found.items():
        place = names.from_kohya(family, key)
        assert place is not None and (place[0], set(place[1])) == (component, set(members))
    inside = ".attentions." if component == "unet" else "transformer_blocks."
    assert sum(any(inside in member for member in members) for members in found.values()) == blocks


def test_flux_parts_of_one_weight_keep_their_rank_where_they_share_one_down() -> None:
    trained = tiny_families.lora("flux", rank=3, alpha=2.0, keep="attn")
    apart = file_modules(trained)["lora_unet_double_blocks_0_img_attn_qkv"]
    assert (apart.rank, apart.alpha) == (9, 6.0)
    parts = [m for m in trained.modules if m.name.startswith("transformer_blocks.0.attn.to_") and "out" not in m.name]
    shared = [dataclasses.replace(m, down=parts[0].down) for m in parts]
    together = file_modules(LoraFile("flux", tuple(shared), {}))["lora_unet_double_blocks_0_img_attn_qkv"]
    assert (together.rank, together.alpha) == (3, 2.0)
    torch.testing.assert_close(together.change(), torch.cat([m.change() for m in shared]))


def test_peft_config_holds_exceptions_only_and_names_that_every_transformers_has() -> None:
    modules = [module(f"text_model.layers.{i}", component="text_encoder") for i in range(3)]
    modules[1] = dataclasses.replace(modules[1], alpha=8.0)
    assert lora_config(modules) == {
        "r": 2,
        "lora_alpha": 1.0,
        "rank_pattern": {},
        "alpha_pattern": {"layers.1": 8.0},
        "target_modules": ["layers.0", "layers.1", "layers.2"],
    }


def test_facts_of_pictures_count_tags_buckets_and_repeats(tmp_path: Path) -> None:
    def example(number: int, folder: str, width: int, repeats: int) -> Example:
        source = tmp_path / folder / f"{number}.jpg"
        return Example(f"{folder}/{number}", source, source, width, 64, 100, 100, repeats, "")

    examples = [example(0, "3_red", 64, 3), example(1, "3_red", 96, 3), example(2, "1_blue", 64, 1)]
    captions = [Caption(e.id, text, "blip") for e, text in zip(examples, ("Red, hat", "red", "sky, "), strict=True)]
    told = facts.of_pictures(examples, captions)
    assert told["num_train_images"] == "7"
    assert json.loads(told["dataset_dirs"]) == {
        "3_red": {"n_repeats": 3, "img_count": 2},
        "1_blue": {"n_repeats": 1, "img_count": 1},
    }
    assert json.loads(told["tag_frequency"]) == {"3_red": {"red": 2, "hat": 1}, "1_blue": {"sky": 1}}
    assert json.loads(told["bucket_info"]) == {
        "buckets": {"0": {"resolution": [64, 64], "count": 4}, "1": {"resolution": [96, 64], "count": 3}}
    }


def test_stage_writes_each_format_once_and_again_only_for_another_lora(tmp_path: Path) -> None:
    section, folder = ExportSection(formats=["kohya", "peft", "kohya"]), StageFolder(tmp_path / "export")
    paths = export.export_adapter(section, lora(), "run-blip", folder, Silent())
    assert [p.name for p in paths] == ["run-blip.safetensors", "run-blip.diffusers.safetensors"]
    first = folder.manifest()
    assert set(first["outputs"]) == {p.name for p in paths}
    assert export.export_adapter(section, lora(), "run-blip", folder, Silent()) == paths
    assert folder.manifest() == first
    export.export_adapter(section, lora(dataclasses.replace(module(), alpha=2.0)), "run-blip", folder, Silent())
    assert folder.manifest()["fingerprint"] != first["fingerprint"]
