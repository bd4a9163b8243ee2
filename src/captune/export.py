"""Stage: a trained LoRA to files that other tools load."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import captune
from captune import adapters, exporters
from captune.exporters import LoraFile, LoraModule
from captune.progress import Progress
from captune.recipe import ExportSection
from captune.runs import StageFolder


def export_adapter(section: ExportSection, lora: LoraFile, folder: StageFolder, progress: Progress) -> list[Path]:
    """Write the LoRA once per format, named by its fact `output_name` and the format's suffix."""
    inputs = {"section": section.model_dump(mode="json"), "lora": fingerprint(lora), "captune": captune.__version__}
    chosen = [exporters.load(name) for name in dict.fromkeys(section.formats)]
    paths = [folder.path / (lora.facts["output_name"] + exporter.suffix) for exporter in chosen]
    if folder.done(inputs):
        return paths
    folder.begin(inputs, keep=True)
    with progress.track("export", len(paths)) as bar:
        for exporter, path in zip(chosen, paths, strict=True):
            exporter.write(lora, path, section.precision)
            bar.advance(note=path.name)
    warnings = [
        f"{path.name}: {line}" for exporter, path in zip(chosen, paths, strict=True) for line in exporter.warnings(lora)
    ]
    for line in warnings:
        progress.say(line)
    folder.finish(inputs, outputs=paths, modules=len(lora.modules), warnings=warnings)
    return paths


def fingerprint(lora: LoraFile) -> str:
    """A hash of everything that shapes the files."""
    digest = hashlib.sha256(repr((lora.family, sorted(lora.facts.items()))).encode())
    for module in sorted(lora.modules, key=lambda m: (m.component, m.name)):
        shapes = (tuple(module.down.shape), tuple(module.up.shape))
        digest.update(repr((module.component, module.name, module.alpha, shapes)).encode())
        for tensor in (module.down, module.up):
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def lora_file(path: Path, facts: Mapping[str, str]) -> LoraFile:
    """An adapter file of ours as the exporters take it, its module names in the spelling that checkpoints use."""
    tensors, spec, header = adapters.read(path)
    modules = []
    for key in sorted(k for k in tensors if k.endswith(".lora_A.weight")):
        component, name = key.removesuffix(".lora_A.weight").split(".", 1)
        if component == "text_encoder" and not name.startswith("text_model."):
            name = f"text_model.{name}"  # transformers 5 dropped this level in memory; every file still has it
        up = tensors[key.replace(".lora_A.", ".lora_B.")]
        modules.append(LoraModule(component, name, tensors[key], up, spec.alpha))
    return LoraFile(
        header.get("family", "sd"), tuple(modules), {**facts, "objective": header.get("objective", "epsilon")}
    )
