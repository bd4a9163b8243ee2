"""Which modules of a captioner a LoRA changes: presets and patterns, and refusal of what hits nothing or something else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from captune.captions import some
from captune.errors import RecipeError

PLAIN = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")  # a name without anything of a pattern's own


def chosen(
    targets: str | Sequence[str], presets: Mapping[str, str], towers: Mapping[str, str], modules: Sequence[str]
) -> str:
    """One pattern, matched against whole names, of all the modules that `targets` means.

    `modules` are the network's linear layers. A preset means its own. Any other entry is a pattern of whole names, or a
    plain name that stands for all modules ending in it; it must hit something, and in one tower, unless it names the tower.
    Raises a RecipeError that says which entry hits nothing or too much, which presets there are, and which modules.
    """
    entries = [targets] if isinstance(targets, str) else list(targets)
    patterns, nothing, astray = [], [], []
    for entry in entries:
        pattern = presets.get(entry) or _pattern(entry)
        hit = [name for name in modules if re.fullmatch(pattern, name)]
        where = sorted({_tower(name, towers) for name in hit})
        if not hit:
            nothing.append(entry)
        elif entry not in presets and not _names_tower(entry, towers) and (len(where) > 1 or where == ["vision"]):
            counts = Counter(_tower(name, towers) for name in hit)
            astray.append(f"{entry!r} hits {', '.join(f'{counts[tower]} modules of {tower}' for tower in where)}")
        patterns.append(pattern)
    if not entries:
        raise RecipeError(f"tune.targets is empty; {_known(presets, modules)}")
    if nothing:
        raise RecipeError(
            f"tune.targets: {', '.join(map(repr, nothing))} {'hits' if len(nothing) == 1 else 'hit'} no module of this "
            f"captioner; {_known(presets, modules)}"
        )
    if astray:
        begins = " or ".join(sorted(towers.values()))
        raise RecipeError(
            f"tune.targets: {'; '.join(astray)}. If that is meant, say so by a preset or by a pattern that begins with "
            f"{begins}; {_known(presets, modules)}"
        )
    return "|".join(f"(?:{pattern})" for pattern in dict.fromkeys(patterns))


def _pattern(entry: str) -> str:
    """An entry as a pattern of whole names."""
    if PLAIN.fullmatch(entry):
        return rf"(?:.*\.)?{re.escape(entry)}"
    try:
        re.compile(entry)
    except re.error as error:
        raise RecipeError(f"tune.targets: {entry!r} is no regular expression: {error}") from None
    return entry


def _tower(name: str, towers: Mapping[str, str]) -> str:
    return next((tower for tower, start in towers.items() if name.startswith(start)), "the rest")


def _names_tower(entry: str, towers: Mapping[str, str]) -> bool:
    return entry.removeprefix("^").replace("\\", "").startswith(tuple(towers.values()))


def _known(presets: Mapping[str, str], modules: Sequence[str]) -> str:
    """The presets, and the modules by their kinds: layer numbers as N."""
    kinds = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "N", name) for name in modules))
    return f"presets: {', '.join(presets)}; modules: {some(kinds, 24)}"
