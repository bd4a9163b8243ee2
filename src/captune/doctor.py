"""What is installed, what this machine can do, and what to mend."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import captune
from captune import console

if TYPE_CHECKING:
    from packaging.requirements import Requirement

State = Literal["ok", "warn", "missing"]
NEEDED_DISK_GB = 2.0  # a demo run with its pictures and checkpoints takes far less; real models far more
NEEDED_MEMORY_GB = 2.0  # what the mini models need, libraries included
STYLES = {"ok": "green", "warn": "yellow", "missing": "red"}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, what was found, and what to do about it."""

    topic: str
    state: State
    found: str
    advice: str = ""
    required: bool = True  # without it captune cannot do its work


def examine() -> list[Finding]:
    """Everything worth knowing about this installation and machine; loads no model and asks no network."""
    return [*_python(), *_packages(), *_embedded_models(), *_torch(), *_pictures(), *_space(), *_hub()]


def healthy(findings: list[Finding]) -> bool:
    """Whether nothing that captune needs is missing."""
    return not any(f.required and f.state == "missing" for f in findings)


def show(findings: list[Finding]) -> None:
    """Print one line per finding, with its advice below it."""
    width = max(len(f.topic) for f in findings)
    for finding in findings:
        console.print_marked(
            finding.state.ljust(7), STYLES[finding.state], f"{finding.topic:<{width}}  {finding.found}"
        )
        if finding.advice:
            console.print_lines(f"{'':8}{'':{width}}  -> {finding.advice}")


def _python() -> Iterator[Finding]:
    old = sys.version_info < (3, 11)
    advice = "captune needs Python 3.11 or newer" if old else ""
    yield Finding("captune", "ok", f"{captune.__version__} in {Path(captune.__file__).parent}")
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", "missing" if old else "ok", found, advice)


def _packages() -> Iterator[Finding]:
    """Each dependency that the installed package names, with its range; then those of the extras."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires("captune") or ()]
    except importlib.metadata.PackageNotFoundError:
        advice = "run `make setup`, or `pip install -e .` in the checkout"
        yield Finding("packages", "warn", "captune runs from a folder and is not installed", advice)
        return
    extras = ["", *importlib.metadata.metadata("captune").get_all("Provides-Extra", [])]
    for extra in extras:
        yield from (
            _package(requirement, extra) for requirement in requirements if _extra_of(requirement, extras) == extra
        )


def _extra_of(requirement: Requirement, extras: list[str]) -> str | None:
    """The first extra ("" for none) with which this requirement holds here; None if it is for other systems."""
    marker = requirement.marker
    return next((extra for extra in extras if marker is None or marker.evaluate({"extra": extra})), None)


def _package(requirement: Requirement, extra: str) -> Finding:
    topic = f"{requirement.name} ({extra})" if extra else requirement.name
    install = f"pip install 'captune[{extra}]'" if extra else f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        advice = f"optional: {install}" if extra else install
        return Finding(topic, "missing", "not installed", advice, required=not extra)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(topic, "warn", f"{version}, made for {requirement.specifier}", install, required=not extra)
    return Finding(topic, "ok", version, required=not extra)


def _embedded_models() -> Iterator[Finding]:
    from captune import weights

    files = sorted(weights.EMBEDDED.rglob("*.safetensors"))
    if not files:
        advice = "install captune again: its package data is not there"
        yield Finding("mini models", "missing", f"no weights in {weights.EMBEDDED}", advice)
        return
    names = ", ".join(sorted({file.relative_to(weights.EMBEDDED).parts[0] for file in files}))
    size = sum(file.stat().st_size for file in files) / 1e6
    yield Finding("mini models", "ok", f"{names}: {size:.1f} MB")


def _torch() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return  # told among the packages
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(
            "torch", "missing", f"cannot be imported: {error}", "install torch again: see https://pytorch.org"
        )
        return
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    set_by = f", OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}" if "OMP_NUM_THREADS" in os.environ else ""
    few = torch.get_num_threads() < cpus
    advice = f"unset OMP_NUM_THREADS to use all {cpus} processors" if few and set_by else ""
    yield Finding("threads", "ok", f"{torch.get_num_threads()} of {cpus} processors{set_by}", advice)
    yield Finding("cpu", "ok", f"{torch.backends.cpu.get_cpu_capability()}, {_precision('cpu')}")
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = f"{facts.total_memory / 1e9:.0f} GB"
        yield Finding(f"cuda:{index}", "ok", f"{facts.name}, {memory}, {_precision(f'cuda:{index}')}")
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", f"Apple GPU, {_precision('mps')}")
    elif not torch.cuda.is_available():
        advice = "the mini models are made for the CPU; full-size models need a GPU to train in reasonable time"
        if shutil.which("nvidia-smi"):
            advice = f"there is an NVIDIA driver, but this is torch {torch.__version__}: install a CUDA build"
        yield Finding("gpu", "warn", "none that torch can use", advice, required=False)


def _precision(device: str) -> str:
    """The number format that `base.precision = "auto"` comes to on a device."""
    import torch

    from captune.families import _devices

    dtype = _devices.choose_dtype("auto", torch.device(device))
    bf16 = "bf16 natively" if dtype is torch.bfloat16 else "no native bf16"
    return f"{bf16}; auto is {str(dtype).removeprefix('torch.')}"


def _pictures() -> Iterator[Finding]:
    """Which formats beyond Pillow's usual ones, and which face detectors, prepare can use here."""
    if any(importlib.util.find_spec(name) is None for name in ("PIL", "numpy")):
        return  # told among the packages
    from captune import detectors, images

    there = [suffix for suffix in (".avif", ".heic") if suffix in images.extensions()]
    yield Finding(
        "formats", "ok", f"{len(images.extensions())} file endings, with {', '.join(there) or 'no AVIF, no HEIC'}"
    )
    for name in detectors.DETECTORS:
        reason = detectors.missing(name)
        if name not in detectors.PREFERRED:
            yield Finding(f"faces: {name}", "ok", "with a model file of your own (prepare.face_model)", required=False)
        elif reason is None:
            yield Finding(f"faces: {name}", "ok", "can be used", required=False)
        else:
            yield Finding(f"faces: {name}", "missing", reason, f"optional: {detectors.INSTALL}", required=False)
    found = detectors.packages()
    if len(found) > 1:
        advice = "they share one folder and break each other: uninstall all of them and install one again"
        yield Finding("opencv", "warn", ", ".join(found), advice, required=False)


def _space() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    advice = "free some space, or give --out a folder on another disk"
    low = free < NEEDED_DISK_GB
    yield Finding("disk", "warn" if low else "ok", f"{free:.1f} GB free in {Path.cwd()}", advice if low else "")
    memory = _free_memory_gb()
    if memory is not None:
        low = memory < NEEDED_MEMORY_GB
        advice = f"the mini models want about {NEEDED_MEMORY_GB:.0f} GB: close other programs" if low else ""
        yield Finding("memory", "warn" if low else "ok", f"{memory:.1f} GB free", advice)


def _free_memory_gb() -> float | None:
    """Memory that new work can have, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / 1e9
    return None


def _hub() -> Iterator[Finding]:
    """The state of the Hugging Face cache, without asking the network."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return  # comes with diffusers, which is told among the packages
    cache = Path(constants.HF_HUB_CACHE)
    kept = sorted(folder.name for folder in cache.glob("models--*"))
    found = f"{len(kept)} models kept in {cache}"
    if constants.HF_HUB_OFFLINE:
        advice = "HF_HUB_OFFLINE is set: only kept models and local folders load; unset it to download others"
        yield Finding("hub", "ok", f"{found}, offline", advice)
    else:
        yield Finding("hub", "ok", f"{found}; others are downloaded when a recipe names them")
