"""The documents say what the code says, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from captune import recipe
from captune.cli import STAGES

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMANDS = {
    *("run", "demo", "plan", "study", "doctor", "export", "inspect", "import", "score-captions", "tune-captioner"),
    *("captions", "compile-captions", "lint"),
    *STAGES,
}


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_recipe_reference_is_up_to_date() -> None:
    file = ROOT / "docs" / "make_recipe_reference.py"
    spec = importlib.util.spec_from_file_location("make_recipe_reference", file)
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.PAGE.read_text(encoding="utf-8") == maker.reference(), "run `make docs`"


def test_smallest_recipe_in_the_reference_is_valid() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8"), re.DOTALL)
    assert recipe.from_values(tomllib.loads(text)).arm[0].captioner.name == "blip"


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_to_files(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [
        link for link in re.findall(r"\]\(([^)\s#]+)", text) if "://" not in link and not link.startswith("mailto:")
    ]
    assert [link for link in links if not (document.parent / link).exists()] == []


def code_in(text: str) -> list[str]:
    """The lines of fenced and indented blocks, and what stands between backticks."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()]
    lines += [line for line in prose.splitlines() if line.startswith("    ")]
    return [line.strip().removeprefix("$ ") for line in [*lines, *re.findall(r"`([^`\n]+)`", prose)]]


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_commands_in_documents_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    known = {"captune": COMMANDS, "make": targets}
    found = [re.match(r"(captune|make) ([a-z][a-z-]*)", line) for line in code_in(document.read_text(encoding="utf-8"))]
    assert [match[0] for match in found if match and match[2] not in known[match[1]]] == []


def test_reader_of_code_sees_what_it_must() -> None:
    text = "captune is\n    $ make a\n`make b` and\n```sh\nmake c  # said\n```\n"
    assert code_in(text) == ["make c  # said", "make a", "make b"]
