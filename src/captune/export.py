"""Stage: a trained LoRA to files that other tools load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import captune
from captune import adapters, exporters
from captune.errors import DataError
from captune.exporters import LoraFile, LoraModule, PipelineLoader, readback
from captune.exporters.lycoris import as_lora
from captune.importers.lora import read_lora
from captune.progress import Progress
from captune.recipe import ExportSection
from captune.runs import StageFolder


def export_adapter(
    section: ExportSection,
    lora: LoraFile,
    name: str,
    folder: StageFolder,
    progress: Progress,
    load_pipeline: PipelineLoader | None = None,
) -> list[Path]:
    """Write the LoRA once per format, to files of that name and the format's suffix.

    `load_pipeline` gives a diffusers pipeline of the base in float32, which is changed; only `merged` calls it.
    """
    inputs = {
        "section": section.model_dump(mode="json"),
        "lora": fingerprint(lora),
        "name": name,
        "captune": captune.__version__,
    }
    chosen = [exporters.load(form, load_pipeline) for form in dict.fromkeys(section.formats)]
    paths = [folder.path / (name + exporter.suffix) for exporter in chosen]
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
    outputs = [file for path in paths for file in _files(path)]
    folder.finish(inputs, outputs=outputs, modules=len(lora.modules), warnings=warnings)
    return paths


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def export_file(
    source: Path, form: str, target: Path | None, precision: str, load_pipeline: PipelineLoader | None = None
) -> tuple[Path, list[str]]:
    """Write a LoRA file, ours or another tool's, in another format; where it lies, and what tools will leave out of it.

    Without a target it is written beside the source, under its name and the format's suffix.
    """
    exporters.check([form])
    exporter = exporters.load(form, load_pipeline)
    lora = read_any(source)
    path = target or source.with_name(
        source.name.removesuffix(".safetensors").removesuffix(".diffusers") + exporter.suffix
    )
    if path.exists() and path.samefile(source):
        raise DataError(f"{path} would be written over itself; name another file with --out")
    if target is None and path.exists():
        raise DataError(f"{path} is there already; name it with --out to write over it, or another file")
    exporter.write(lora, path, precision)
    return path, exporter.warnings(lora)


def read_any(path: Path) -> LoraFile:
    """A LoRA file of ours, in kohya's spelling, or in diffusers'."""
    header = readback.metadata(path)
    if "captune_lora" in header:
        return lora_file(path, {"output_name": path.stem})
    return read_lora(path)


def fingerprint(lora: LoraFile) -> str:
    """A hash of everything that shapes the files."""
    facts = (lora.family, lora.version, sorted(lora.facts.items()), lora.cover)
    digest = hashlib.sha256(repr(facts).encode())
    for module in sorted(lora.modules, key=lambda m: (m.component, m.name)):
        shapes = (tuple(module.down.shape), tuple(module.up.shape))
        digest.update(repr((module.component, module.name, module.alpha, shapes)).encode())
        for tensor in (module.down, module.up):
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def lora_file(path: Path, facts: Mapping[str, str], cover: bytes | None = None) -> LoraFile:
    """An adapter file of ours as the exporters take it, its module names in the spelling that checkpoints use."""
    tensors, spec, header = adapters.read(path)
    family = header.get("family", "sd")
    if spec.kind == "dora":
        raise DataError(
            f"{path} is a DoRA, of which no file for other tools is written: they differ in what its magnitude scales; "
            "set export.formats = []"
        )
    kernels = json.loads(header.get("kernels", "{}"))
    modules = []
    for place, own in adapters.by_module(tensors).items():
        component, name = place.split(".", 1)
        clip = component == "text_encoder" or (component, family) == ("text_encoder_2", "sdxl")
        if clip and not name.startswith(("text_model.", "text_projection")):
            name = f"text_model.{name}"  # transformers 5 dropped this level in memory; every file still has it
        if spec.kind == "lora":
            down, up = own["lora_A.weight"], own["lora_B.weight"]
        else:
            down, up = as_lora(own, tuple(kernels.get(place, ())))
        modules.append(LoraModule(component, name, down, up, spec.alpha * len(down) / spec.rank))
    told = {**facts, "objective": header.get("objective", "epsilon")}
    return LoraFile(family, tuple(modules), told, header.get("version", ""), cover)
