"""What is wrong with a recipe's values, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from captune.parts import nearest


def _known_keys(location: Sequence[str | int], whole: type[BaseModel]) -> list[str]:
    """The keys that the section at `location` (of an unknown key) has."""
    model: Any = whole
    for part in location[:-1]:
        if isinstance(part, int) or model is None:
            continue
        field = model.model_fields.get(part)
        model = None
        if field is not None:
            for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    model = kind
    return list(model.model_fields) if model is not None else []


def _place(location: Iterable[str | int]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A line for every problem; an unknown key comes with the nearest that its section has."""
    lines = []
    for problem in error.errors():
        place, message = _place(problem["loc"]), problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"], model)
            guess = nearest(str(problem["loc"][-1]), known)
            hint = f"; did you mean {guess!r}?" if guess else f" (known: {', '.join(known)})"
            lines.append(f"{place}: unknown key{hint}")
        elif problem["type"] == "missing":
            lines.append(f"{place}: is missing")
        elif problem["type"] == "value_error":
            lines += [f"{place}: {line}" if place else line for line in message.splitlines()]
        else:
            message = message[0].lower() + message[1:]
            lines.append(f"{place} = {problem['input']!r}: {message}")
    return lines
