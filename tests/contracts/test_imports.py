"""The import contract: layers point one way, stages never meet, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"

# From the outermost layer to the innermost; a module may import its own layer and those after it.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"__main__", "cli", "console", "doctor", "demo"}),
    frozenset(
        {"pipeline", "running", "judging", "checking", "planning", "designing", "measuring", "tuning"}
        | {"captioning", "formats", "lint"}
    ),
    frozenset(
        {
            "prepare",
            "caption",
            "caption_lengths",
            "derived",
            "train",
            "sample",
            "evaluate",
            "export",
            "inspection",
            "report",
        }
    ),
    frozenset({"families", "captioners", "detectors", "metrics", "exporters", "importers", "engines"}),
    frozenset(
        {"captions", "images", "adapters", "randomness", "runs", "mini", "weights", "tensors", "tokens", "objective"}
        | {"named_data"}
    )
    | {"rules", "provenance", "ledger"},
    frozenset({"recipe", "types"}),
    frozenset({"errors", "parts", "progress"}),
)
STAGES = LAYERS[2]

# What `captune --help`, a recipe's errors and a plan need: quick without torch, and so must all be that they import.
WITHOUT_TORCH = (
    *("captune.__main__", "captune.cli", "captune.console", "captune.doctor", "captune.planning", "captune.train.plan"),
    "captune.train.optimizers",
    *("captune.recipe", "captune.types", "captune.errors", "captune.parts", "captune.progress", "captune.runs"),
    *("captune.captions", "captune.images", "captune.weights", "captune.prepare", "captune.captioners"),
    "captune.detectors",
    *("captune.metrics", "captune.metrics.captions", "captune.engines"),
    *("captune.rules", "captune.provenance", "captune.ledger", "captune.captioning", "captune.formats"),
)
HEAVY = frozenset({"torch", "transformers", "diffusers", "peft", "accelerate", "tokenizers", "matplotlib", "cv2"})

# Libraries that only one module may import, so that there is one place to look at.
ONLY_IN = {"accelerate": "captune.train.loop", "datasets": "captune.named_data"}


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str  # a dotted name; for `from a import b` both a and a.b are listed
    line: int
    at_load: bool  # run when the module is imported: not in a function, not under TYPE_CHECKING

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def _module(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in sorted((SOURCE / "captune").rglob("*.py"))}


def imports_in(text: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """Every import of a module's source text, wherever it stands."""

    def walk(node: ast.AST, at_load: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, node.lineno, at_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                kept = parents[: len(parents) - node.level + 1]
                source = ".".join([*kept, source] if source else kept)
            yield Import(module, source, node.lineno, at_load)
            yield from (Import(module, f"{source}.{alias.name}", node.lineno, at_load) for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for child in ast.iter_child_nodes(node):
                yield from walk(child, False)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from walk(child, False)
            for child in node.orelse:
                yield from walk(child, at_load)
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child, at_load)

    return walk(ast.parse(text), True)


IMPORTS = [
    found
    for module, path in MODULES.items()
    for found in imports_in(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
]


def _part(module: str) -> str | None:
    """The first name below captune, None for captune itself and for other packages."""
    names = module.split(".")
    return names[1] if names[0] == "captune" and len(names) > 1 else None


def _layer(part: str) -> int | None:
    return next((index for index, layer in enumerate(LAYERS) if part in layer), None)


def _reached(start: str) -> set[str]:
    """The package's modules that are loaded when `start` is imported, parents included."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in reached or name not in MODULES:
            continue
        reached.add(name)
        waiting += [name.rpartition(".")[0]]
        waiting += [found.imported for found in IMPORTS if found.importer == name and found.at_load]
    return reached


def test_every_module_has_a_layer() -> None:
    placed = frozenset().union(*LAYERS)
    parts = {part for module in MODULES if (part := _part(module)) is not None}
    assert parts - placed == set(), "give the new module a place in LAYERS"


def test_imports_point_to_inner_layers() -> None:
    wrong = []
    for found in IMPORTS:
        importer, imported = _part(found.importer), _part(found.imported)
        if importer is None or imported is None or importer == imported:
            continue
        outer, inner = _layer(importer), _layer(imported)
        if outer is not None and inner is not None and outer > inner:
            wrong.append(str(found))
    assert wrong == []


def test_stages_never_import_each_other() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if {_part(found.importer), _part(found.imported)} <= STAGES and _part(found.importer) != _part(found.imported)
    ]
    assert wrong == []


@pytest.mark.parametrize("module", [module for module in WITHOUT_TORCH if module in MODULES])
def test_light_modules_load_no_heavy_library(module: str) -> None:
    reached = _reached(module)
    wrong = [
        str(found)
        for found in IMPORTS
        if found.at_load and found.importer in reached and found.imported.split(".")[0] in HEAVY
    ]
    assert wrong == []


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_is_imported_in_one_place(library: str) -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.imported.split(".")[0] == library and found.importer != ONLY_IN[library]
    ]
    assert wrong == []


def test_package_needs_nothing_from_the_training_of_its_models() -> None:
    assert [str(found) for found in IMPORTS if found.imported.split(".")[0] in {"mini_training", "tests"}] == []


def test_reader_of_imports_sees_what_it_must() -> None:
    text = """
import torch
from . import plan
from ..runs import RunFolder
if TYPE_CHECKING:
    import diffusers
else:
    import peft
def load():
    import transformers
class Model:
    import accelerate
"""
    found = {i.imported: i.at_load for i in imports_in(text, "captune.train.loop")}
    assert found == {
        **{"torch": True, "captune.train": True, "captune.train.plan": True},
        **{"captune.runs": True, "captune.runs.RunFolder": True},
        **{"diffusers": False, "peft": True, "transformers": False, "accelerate": True},
    }
