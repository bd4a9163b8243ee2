"""Facts about what inspecting a LoRA file tells."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from captune import adapters
from captune.errors import DataError
from captune.exporters import LoraFile, facts
from captune.exporters.kohya import Kohya, file_modules
from captune.exporters.peft import Peft
from captune.inspection import inspect_lora
from tests import tiny_families, tiny_sd


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("family", tiny_families.FAMILIES)
def test_norms_ranks_and_modules_are_those_of_the_file(family: str, precision: str, tmp_path: Path) -> None:
    lora = tiny_families.lora(family)
    Kohya().write(lora, tmp_path / "lora.safetensors", precision)
    told = inspect_lora(tmp_path / "lora.safetensors")
    inside = file_modules(lora)
    norms = sorted(m.change().norm().item() for m in inside.values())
    assert told["norms"]["min"] == pytest.approx(norms[0], rel=2e-2)
    assert told["norms"]["max"] == pytest.approx(norms[-1], rel=2e-2)
    assert told["norms"]["median"] == pytest.approx(
        (norms[(len(norms) - 1) // 2] + norms[len(norms) // 2]) / 2, rel=2e-2
    )
    assert sum(told["modules"].values()) == len(inside) == sum(told["ranks"].values()) == sum(told["alphas"].values())
    assert (told["family"], told["version"], told["spelling"], told["kind"]) == (
        lora.family,
        lora.version,
        "kohya",
        "lora",
    )
    assert told["precision"] == {{"fp32": "F32", "fp16": "F16", "bf16": "BF16"}[precision]: 3 * len(inside)}
    assert told["unknown_keys"] == told["zero_modules"] == told["broken_modules"] == []
    assert set(told["modules"]) == {m.component for m in lora.modules}
    json.dumps(told)


def test_hashes_are_the_files_own_and_a_wrong_one_in_the_header_is_told(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    Kohya().write(tiny_families.lora("sd", keep="attn"), path, "fp16")
    header = inspect_lora(path)["header"]
    assert inspect_lora(path)["hashes"] == {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "sshs_model_hash": header["sshs_model_hash"],
    }
    save_file({k: v * 2 for k, v in load_file(path).items()}, path, header)
    hashes = inspect_lora(path)["hashes"]
    assert hashes["sshs_model_hash_in_header"] == header["sshs_model_hash"] != hashes["sshs_model_hash"]


def test_modules_that_do_nothing_and_keys_that_fit_nowhere_are_named(tmp_path: Path) -> None:
    lora = tiny_families.lora("sd", keep="to_q")
    first, *others = lora.modules
    lora = dataclasses.replace(lora, modules=(dataclasses.replace(first, up=torch.zeros_like(first.up)), *others))
    Kohya().write(lora, tmp_path / "lora", "fp16")
    tensors = load_file(tmp_path / "lora")
    stray = {f"lora_unet_mystery_{i}.lora_{side}.weight": torch.ones(2, 2) for side in ("up", "down") for i in range(7)}
    save_file({**tensors, **stray, "step": torch.ones(1)}, tmp_path / "lora")
    told = inspect_lora(tmp_path / "lora")
    assert told["zero_modules"] == ["lora_unet_" + first.name.replace(".", "_")]
    assert told["unknown_keys"] == sorted([*stray, "step"])
    assert told["clients"]["ComfyUI"]["ignored"] == [f"lora_unet_mystery_{i}" for i in range(7)]
    assert told["clients"]["Forge"] == {"loads": False, "ignored": [], "reason": "more than 12 keys match nothing"}


def test_what_the_header_says_to_users_is_told(tmp_path: Path) -> None:
    lora = tiny_families.lora("sd", keep="attn")
    said = {**lora.facts, "tag_frequency": json.dumps({"a": {"red": 3, "hat": 1}, "b": {"red": 2}})}
    Kohya().write(dataclasses.replace(lora, facts=said), tmp_path / "lora", "fp16")
    told = inspect_lora(tmp_path / "lora")
    assert (told["trigger_word"], told["title"], told["resolution"]) == ("zorblax", "run-blip", "64x64")
    assert told["tags"] == {"red": 5, "hat": 1}
    assert told["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_tools_that_drop_keys_silently_are_told_apart(tmp_path: Path) -> None:
    sdxl = tiny_families.lora("sdxl", keep="q_proj")  # of four projections that AUTOMATIC1111 reads together
    Kohya().write(sdxl, tmp_path / "sdxl", "fp16")
    clients = inspect_lora(tmp_path / "sdxl")["clients"]
    assert len(clients["AUTOMATIC1111"]["ignored"]) == 2
    assert all(name.startswith("lora_te2_") for name in clients["AUTOMATIC1111"]["ignored"])
    assert [client for client, does in clients.items() if does["ignored"]] == ["AUTOMATIC1111"]

    sd = tiny_sd.lora({"unet": tiny_sd.unet(linear_projection=True)})
    Kohya().write(sd, tmp_path / "sd", "fp16")  # proj_in as a linear layer, which Stable Diffusion 1.x does not have
    clients = inspect_lora(tmp_path / "sd")["clients"]
    assert {client for client, does in clients.items() if not does["loads"]} == {"sd-scripts", "diffusers"}

    Peft().write(tiny_families.lora("sdxl", keep="attn"), tmp_path / "peft", "fp16")
    told = inspect_lora(tmp_path / "peft")
    assert told["spelling"] == "diffusers" and told["alphas"] == {"2": sum(told["modules"].values())}
    assert {client for client, does in told["clients"].items() if does["loads"]} == {"ComfyUI", "diffusers"}
    assert "another strength" in told["clients"]["ComfyUI"]["reason"]
    assert told["clients"]["diffusers"] == {"loads": True, "ignored": [], "reason": ""}


def test_an_adapter_of_a_run_is_known_as_ours(tmp_path: Path) -> None:
    (module, *_) = tiny_families.lora("sd", keep="to_q").modules
    tensors = {f"unet.{module.name}.lora_A.weight": module.down, f"unet.{module.name}.lora_B.weight": module.up}
    told_by = {"family": "sd", "version": "sd2"}
    adapters.save(tmp_path / "adapter.safetensors", tensors, adapters.LoraSpec(3, 2.0, {"unet": ".*"}), told_by)
    told = inspect_lora(tmp_path / "adapter.safetensors")
    assert (told["spelling"], told["version"], told["alphas"], told["clients"]) == ("captune", "sd2", {"2": 1}, {})
    assert told["norms"]["median"] == pytest.approx(module.change().norm().item(), rel=1e-5)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"\x10\0\0\0\0\0\0\0{}              ", b"\x02\0\0\0\0\0\0\0[]"]
)
def test_files_that_are_none_are_told_so(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lora"
    path.write_bytes(content)
    if content.startswith(b"\x10"):
        assert inspect_lora(path)["kind"] == "no LoRA"
    else:
        with pytest.raises(DataError, match="not a readable safetensors file"):
            inspect_lora(path)


def test_a_file_cut_short_is_told_so(tmp_path: Path) -> None:
    Kohya().write(tiny_families.lora("sd", keep="attn"), tmp_path / "lora", "fp16")
    content = (tmp_path / "lora").read_bytes()
    (tmp_path / "lora").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cut short|longer than the file"):
        inspect_lora(tmp_path / "lora")


def test_inspecting_needs_no_torch(tmp_path: Path) -> None:
    lora = LoraFile("flux", tiny_families.lora("flux").modules, tiny_sd.FACTS)
    Kohya().write(lora, tmp_path / "lora", "bf16")
    code = (
        "import sys; from captune.inspection import inspect_lora; inspect_lora(__import__('pathlib').Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules", str(tmp_path / "lora")])
    assert done.returncode == 0


def test_cover_pictures_are_counted_not_shown(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    lora = dataclasses.replace(tiny_families.lora("sd", keep="to_q"), cover=facts.cover(tmp_path / "photo.png"))
    Kohya().write(lora, tmp_path / "lora", "fp16")
    told = inspect_lora(tmp_path / "lora")
    assert told["cover_images"] == 1 and "ssmd_cover_images" not in told["header"]
