"""Where everything came from and how to have it again: files, hashes, versions, seeds, machine, command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from captune import runs
from captune.report.story import Story
from captune.report.wording import Column, columns_of, duration, listed, size
from captune.types import BASE

DIFFUSERS_ALONE = ".diffusers."  # in the names of files that other tools do not read


@dataclass(frozen=True)
class Exported:
    """A file for other tools."""

    column: Column
    name: str
    folder: str
    size: str
    sha256: str
    tools: str


@dataclass(frozen=True)
class Use:
    """How one tool loads the files."""

    tool: str
    how: str
    code: str = ""


def exports(story: Story) -> list[Exported]:
    """Every exported file, arm by arm."""
    found = []
    for column in columns_of(story):
        for path in story.exports.get(column.name, []):
            tools = "ComfyUI, AUTOMATIC1111, Forge, sd-scripts, diffusers"
            if path.is_dir():
                tools = "diffusers, as a whole model"
            elif DIFFUSERS_ALONE in path.name:
                tools = "diffusers"
            count, sha256 = weighed(path)
            found.append(Exported(column, path.name, relative(story, path.parent), size(count), sha256[:12], tools))
    return found


def weighed(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of an exported file, or of a folder's files together."""
    if path.is_file():
        return path.stat().st_size, runs.sha256_of(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    hashes = {p.relative_to(path).as_posix(): runs.sha256_of(p) for p in files}
    return sum(p.stat().st_size for p in files), runs.fingerprint(hashes)


def uses(story: Story) -> list[Use]:
    """How the files are loaded elsewhere, by the example of the first."""
    files = [path for paths in story.exports.values() for path in paths]
    if not files:
        return []
    files = [path for path in files if path.is_file()] or files
    kohya = next((path for path in files if path.is_file() and DIFFUSERS_ALONE not in path.name), None)
    found = []
    if kohya is not None:
        found += [
            Use("ComfyUI", "Put the file into models/loras and pick it in the node “Load LoRA”."),
            Use(
                "AUTOMATIC1111, Forge",
                "Put the file into models/Lora and write in the prompt:",
                f"<lora:{kohya.stem}:1>",
            ),
        ]
    path = kohya or files[0]
    if path.is_dir():
        code = f'DiffusionPipeline.from_pretrained("{_run(story)}/{relative(story, path)}")'
        return [*found, Use("diffusers", "Load it as a model:", code)]
    folder = f"{_run(story)}/{relative(story, path.parent)}"
    code = f'pipe.load_lora_weights("{folder}", weight_name="{path.name}")'
    return [*found, Use("diffusers", "Load it into the pipeline:", code)]


def relative(story: Story, path: Path) -> str:
    """The path within the run folder."""
    try:
        return path.absolute().relative_to(story.run.absolute()).as_posix()
    except ValueError:
        return path.as_posix()


def _run(story: Story) -> str:
    return story.run.name if story.run.is_absolute() else story.run.as_posix()


def how_made(story: Story) -> list[tuple[str, str]]:
    """Seeds, seconds and machine, each with its name."""
    recipe = story.recipe
    trained = sorted({adapter.training_seed for found in story.adapters.values() for adapter in found})
    total = sum(float(manifest.get("seconds", 0)) for manifest in story.costs.values())
    rows = [
        ("Training seeds", _numbers(trained or recipe.training_seeds)),
        ("Sampling seeds", _numbers(recipe.sample.seeds) if recipe.prompts else ""),
        ("Seeds of training pictures asked back", _numbers(recipe.study.reproduction_seeds)),
        ("Time in all stages", duration(total) if total else ""),
        ("Machine", machine_of(story)),
    ]
    return [(name, text) for name, text in rows if text]


def _numbers(seeds: list[int]) -> str:
    return listed([str(seed) for seed in seeds]) if seeds else ""


def machine_of(story: Story) -> str:
    """The machine or machines that the stages ran on, as their manifests name them."""
    found: dict[str, None] = {}
    for manifest in story.costs.values():
        said = manifest.get("machine", "")
        found[", ".join(str(v) for v in said.values()) if isinstance(said, Mapping) else str(said)] = None
    return "; ".join(name for name in found if name)


def versions_of(story: Story) -> list[tuple[str, str]]:
    """The versions of what made the run, as the manifests keep them."""
    found: dict[str, str] = {}
    for manifest in story.costs.values():
        found.update(manifest.get("versions", {}))
    return list((found or runs.versions()).items())


def hashes_of(story: Story) -> list[tuple[str, str]]:
    """SHA-256 of every LoRA, and of what they were made from."""
    rows = [
        (f"LoRA of {arm}, training seed {adapter.training_seed}", adapter.sha256)
        for arm, found in story.adapters.items()
        for adapter in found
    ]
    rows.append(("Recipe", runs.fingerprint(story.recipe.model_dump(mode="json"))))
    rows.append(("Training pictures", runs.fingerprint([[e.id, e.sha256] for e in story.examples])))
    if story.held_out:
        rows.append(("Held-out pictures", runs.fingerprint([[e.id, e.sha256] for e in story.held_out])))
    bases = {str(m["inputs"]["base"]) for m in story.costs.values() if "base" in m.get("inputs", {})}
    return [*rows, *((f"{BASE.capitalize()} model", found) for found in sorted(bases))]
