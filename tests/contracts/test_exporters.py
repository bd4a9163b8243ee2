"""What every exporter owes: diffusers applies its file exactly, equal LoRAs make equal bytes, no dud leaves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from captune import exporters
from captune.errors import ModelError
from captune.exporters import EXPORTERS, NEEDS_BASE, LoraFile, names
from captune.importers.lora import read_lora
from tests import tiny_families, tiny_sd

FILES = [name for name in EXPORTERS if name not in NEEDS_BASE]  # those that write the LoRA alone


@pytest.fixture(scope="module")
def small() -> LoraFile:
    return tiny_sd.lora({"text_encoder": tiny_sd.text_encoder()})


def weights(components: dict[str, nn.Module]) -> dict[tuple[str, str], Tensor]:
    return {
        (component, name.removeprefix("text_model.")): value.clone()
        for component, root in components.items()
        for name, value in root.state_dict().items()
    }


def mixed(lora: LoraFile) -> LoraFile:
    """The same LoRA with ranks and alphas that differ between modules."""
    modules = [
        dataclasses.replace(m, down=m.down[: 3 - i % 2], up=m.up[:, : 3 - i % 2], alpha=5.0 if i % 3 else 2.0)
        for i, m in enumerate(lora.modules)
    ]
    return LoraFile(lora.family, tuple(modules), lora.facts)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("linear_projection", [False, True], ids=["conv_projection", "linear_projection"])
@pytest.mark.parametrize("shape", ["even", "mixed"])
def test_diffusers_changes_every_weight_as_trained(
    name: str, linear_projection: bool, shape: str, tmp_path: Path
) -> None:
    pipe = tiny_sd.pipeline(linear_projection)
    components = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    lora = tiny_sd.lora(components) if shape == "even" else mixed(tiny_sd.lora(components))
    expected = weights(components)
    for module in lora.modules:
        expected[module.component, module.name.removeprefix("text_model.") + ".weight"] += module.change()
    exporter = exporters.load(name)
    exporter.write(lora, tmp_path / f"lora{exporter.suffix}", "fp32")

    pipe.load_lora_weights(tmp_path, weight_name=f"lora{exporter.suffix}")
    pipe.fuse_lora()
    pipe.unload_lora_weights()

    fused = weights(components)
    assert fused.keys() == expected.keys()
    for place, value in expected.items():
        torch.testing.assert_close(fused[place], value, rtol=0, atol=1e-6, msg=lambda text, p=place: f"{p}: {text}")


@pytest.mark.parametrize(
    ("name", "family"), [("kohya", "sdxl"), ("peft", "sdxl"), ("peft", "flux")]
)  # diffusers converts FLUX's kohya files at the true widths only: docs/export.md has that measurement
def test_diffusers_changes_every_weight_of_the_other_families_as_trained(
    name: str, family: str, tmp_path: Path
) -> None:
    pipe = tiny_families.pipeline(family)
    components = tiny_families.components(pipe)
    trained = tiny_families.lora(family)
    inside = [
        m for m in trained.modules if "blocks." in m.name or "block." in m.name or m.name.startswith("text_model.")
    ]
    lora = dataclasses.replace(trained, modules=tuple(inside))
    expected = weights(components)
    for module in lora.modules:
        expected[module.component, module.name.removeprefix("text_model.") + ".weight"] += module.change()
    exporter = exporters.load(name)
    exporter.write(lora, tmp_path / f"lora{exporter.suffix}", "fp32")

    pipe.load_lora_weights(tmp_path, weight_name=f"lora{exporter.suffix}")
    pipe.fuse_lora(components=list(components))
    pipe.unload_lora_weights()

    fused = weights(components)
    assert fused.keys() == expected.keys()
    for place, value in expected.items():
        torch.testing.assert_close(fused[place], value, rtol=0, atol=1e-6, msg=lambda text, p=place: f"{p}: {text}")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("family", tiny_families.FAMILIES)
def test_files_read_back_have_every_module_and_the_change_that_was_trained(
    name: str, family: str, tmp_path: Path
) -> None:
    trained = tiny_families.lora(family)
    exporter = exporters.load(name)
    exporter.write(trained, tmp_path / "lora", "fp32")
    read = read_lora(tmp_path / "lora")
    assert (read.family, read.version) == (trained.family, trained.version)
    changes = {(m.component, m.name): m.change() for m in read.modules}
    assert changes.keys() == {(m.component, m.name) for m in trained.modules}
    for module in trained.modules:
        torch.testing.assert_close(changes[module.component, module.name], module.change(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("family", tiny_families.FAMILIES)
def test_a_file_read_and_written_again_is_the_same_file(name: str, family: str, tmp_path: Path) -> None:
    exporter = exporters.load(name)
    exporter.write(tiny_families.lora(family, rank=2, alpha=4.0), tmp_path / "first", "fp16")
    exporter.write(read_lora(tmp_path / "first"), tmp_path / "second", "fp16")
    assert (tmp_path / "second").read_bytes() == (tmp_path / "first").read_bytes()


@pytest.mark.parametrize("family", tiny_families.FAMILIES)
def test_names_of_every_module_lead_back(family: str) -> None:
    for module in tiny_families.lora(family).modules:
        key = names.to_kohya(family, module.component, module.name)
        assert key is not None
        place = names.from_kohya(family, key)
        assert place is not None
        assert place[0] == module.component and module.name in place[1]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_rounded_files_scale_as_trained(name: str, precision: str, small: LoraFile, tmp_path: Path) -> None:
    uneven = LoraFile("sd", tuple(dataclasses.replace(m, alpha=0.3) for m in small.modules), small.facts)
    exporter = exporters.load(name)
    exporter.write(uneven, tmp_path / f"lora{exporter.suffix}", precision)
    pipe = tiny_sd.pipeline()
    before = weights({"text_encoder": pipe.text_encoder})
    pipe.load_lora_weights(tmp_path, weight_name=f"lora{exporter.suffix}")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    after = weights({"text_encoder": pipe.text_encoder})
    places = [("text_encoder", m.name.removeprefix("text_model.") + ".weight") for m in uneven.modules]
    applied = torch.cat([(after[p] - before[p]).flatten() for p in places])
    trained = torch.cat([m.change().flatten() for m in uneven.modules])
    scale = (applied @ trained / (trained @ trained)).item()
    assert scale == pytest.approx(1, abs=3e-4)  # alpha = 0.3 alone is off by 2.6e-3 in bf16


@pytest.mark.parametrize("name", FILES)
def test_two_writes_are_byte_identical_whatever_the_order(name: str, small: LoraFile, tmp_path: Path) -> None:
    exporter = exporters.load(name)
    turned = LoraFile("sd", small.modules[::-1], dict(reversed(list(small.facts.items()))))
    for file, lora in (("first", small), ("second", small), ("turned", turned)):
        exporter.write(lora, tmp_path / file, "fp16")
    contents = {(tmp_path / file).read_bytes() for file in ("first", "second", "turned")}
    assert len(contents) == 1
    content = contents.pop()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    described = header.pop("__metadata__")
    assert list(described) == sorted(described)  # safetensors itself orders them anew in every process
    assert list(header) == sorted(header)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_header_is_all_text_and_tensors_have_the_precision(
    name: str, precision: str, small: LoraFile, tmp_path: Path
) -> None:
    exporters.load(name).write(small, tmp_path / "lora", precision)
    with safe_open(tmp_path / "lora", framework="pt") as file:
        assert all(isinstance(v, str) for pair in file.metadata().items() for v in pair)
        kinds = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert kinds == {{"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]}


@pytest.mark.parametrize("name", FILES)
def test_files_that_would_do_nothing_or_harm_are_refused(name: str, small: LoraFile, tmp_path: Path) -> None:
    first, *others = small.modules
    untrained = [dataclasses.replace(m, up=torch.zeros_like(m.up)) for m in small.modules]
    vanishing = [dataclasses.replace(m, up=m.up * 1e-9) for m in small.modules]
    refused: list[tuple[str, list[exporters.LoraModule]]] = [
        ("nothing to export", []),
        ("every update in it is zero in fp16", untrained),
        ("every update in it is zero in fp16", vanishing),
        ("not finite", [dataclasses.replace(first, up=first.up * float("nan")), *others]),
        ("too large for fp16", [dataclasses.replace(first, up=first.up * 1e7), *others]),
        ("alpha = 0.0", [dataclasses.replace(first, alpha=0.0), *others]),
        ("do not fit", [dataclasses.replace(first, up=first.up[:, :, None, None]), *others]),
        ("do not fit", [dataclasses.replace(first, up=first.up[:, :2]), *others]),
        ("in it twice", [first, first, *others]),
        ("must be named `text_model.`", [dataclasses.replace(first, name="encoder.layers.0.mlp.fc1"), *others]),
    ]
    for words, modules in refused:
        with pytest.raises(ModelError, match=words) as caught:
            exporters.load(name).write(LoraFile("sd", tuple(modules), small.facts), tmp_path / "lora", "fp16")
        assert "run-blip" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
