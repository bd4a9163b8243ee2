"""What `captune inspect FILE` shows of a LoRA file, as plain values. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from captune.errors import DataError
from captune.exporters import clients, names
from captune.importers import lora_header
from captune.runs import sha256_of

Array = npt.NDArray[np.float64]
_NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
MOST_TAGS = 20


class _File:
    """A safetensors file's header and tensors; read here because numpy has no bf16."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                self.begin = 8 + length
                if not 2 <= length <= path.stat().st_size - 8:
                    raise ValueError("its header is longer than the file")
                entries: dict[str, Any] = json.loads(file.read(length))
            self.header: dict[str, str] = entries.pop("__metadata__", {})
            self.entries = entries
            self.shapes: dict[str, tuple[int, ...]] = {key: tuple(entry["shape"]) for key, entry in entries.items()}
            ends = [entry["data_offsets"][1] for entry in entries.values()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a readable safetensors file: {error}") from error
        if self.begin + max(ends, default=0) > path.stat().st_size:
            raise DataError(f"{path} is cut short: its header tells of more tensors than it holds; copy it again")

    def array(self, key: str) -> Array | None:
        """The tensor in float64; None in a number format that is not read here."""
        entry = self.entries[key]
        if entry["dtype"] not in _NUMBERS:
            return None
        first, last = entry["data_offsets"]
        with open(self.path, "rb") as file:
            file.seek(self.begin + first)
            raw = np.frombuffer(file.read(last - first), _NUMBERS[entry["dtype"]])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            raw = (raw.astype("<u4") << 16).view("<f4")
        return raw.astype(np.float64).reshape(self.shapes[key])

    def tensors_sha256(self) -> str:
        """kohya's sshs_model_hash: of everything behind the header."""
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            file.seek(self.begin)
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        return digest.hexdigest()


def inspect_lora(path: Path) -> dict[str, Any]:
    """Family, ranks, alphas, modules, norms, header, hashes, and what each tool does with the file."""
    file = _File(path)
    told = lora_header.describe(file.header, file.shapes)
    modules: dict[str, dict[str, str]] = {}
    odd = []
    for key in file.shapes:
        name, part = lora_header.split_key(key)
        if part:
            modules.setdefault(name, {})[part] = key
        else:
            odd.append(key)
    ours = "captune_lora" in file.header
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "kind": told.kind,
        "spelling": "captune" if ours else told.spelling,
        "family": told.family,
        "version": told.version,
        "version_known_by": told.evidence,
        "precision": dict(Counter(entry["dtype"] for entry in file.entries.values()).most_common()),
        "parameters": sum(math.prod(shape) for key, shape in file.shapes.items() if not key.endswith(".alpha")),
        "modules": _by_component(told.family, modules),
        **_sizes(file, modules),
        "unknown_keys": sorted(odd + _unknown(told, modules)),
        **_said(file.header),
        "hashes": _hashes(file),
        "clients": {} if ours else _clients(told, file, modules),
        "header": {k: v for k, v in sorted(file.header.items()) if k != "ssmd_cover_images"},
    }


def _by_component(family: str | None, modules: Mapping[str, Any]) -> dict[str, int]:
    count = Counter(_component(family, name) for name in modules)
    return dict(sorted(count.items()))


def _component(family: str | None, name: str) -> str:
    if "." in name:  # diffusers' spelling
        return name.partition(".")[0]
    place = names.from_kohya(family, name) if family else None
    return place[0] if place else "unknown"


def _unknown(told: lora_header.Description, modules: Mapping[str, Mapping[str, str]]) -> list[str]:
    if told.spelling != "kohya" or told.family is None:
        return []
    return [key for name, own in modules.items() if names.from_kohya(told.family, name) is None for key in own.values()]


def _sizes(file: _File, modules: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Ranks, alphas and norms of the changes alpha / rank * up @ down, without making the products."""
    config = _peft_config(file.header)
    ranks: Counter[int] = Counter()
    alphas: Counter[float] = Counter()
    norms: dict[str, float] = {}
    broken = []
    for name, own in modules.items():
        if "down" not in own or "up" not in own:
            continue
        down, up = file.array(own["down"]), file.array(own["up"])
        if down is None or up is None:
            continue
        rank = down.shape[0]
        alpha = _alpha(file, own, config, name, rank)
        ranks[rank] += 1
        alphas[alpha] += 1
        down, up = down.reshape(rank, -1), up.reshape(up.shape[0], -1)
        if up.shape[1] != rank:
            broken.append(name)
            continue
        # |up @ down|^2 is the trace of (up' up)(down down'), which is rank x rank
        squared = float(np.sum((up.T @ up) * (down @ down.T)))
        norms[name] = alpha / rank * math.sqrt(max(squared, 0.0)) if math.isfinite(squared) else math.nan
    finite = sorted((norm, name) for name, norm in norms.items() if math.isfinite(norm))
    return {
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "alphas": {f"{alpha:g}": count for alpha, count in sorted(alphas.items())},
        "norms": _spread(finite),
        "zero_modules": sorted(name for name, norm in norms.items() if norm == 0),
        "broken_modules": sorted([*broken, *(name for name, norm in norms.items() if not math.isfinite(norm))]),
    }


def _spread(norms: list[tuple[float, str]]) -> dict[str, Any]:
    if not norms:
        return {}
    (smallest, first), (largest, last) = norms[0], norms[-1]
    middle = float(np.median([norm for norm, _ in norms]))
    return {"min": smallest, "min_module": first, "median": middle, "max": largest, "max_module": last}


def _peft_config(header: Mapping[str, str]) -> dict[str, Any]:
    """peft's settings in the header, or the one alpha that an adapter file of ours has."""
    try:
        ours = json.loads(header.get("captune_lora", "{}"))
        config = json.loads(header.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return {}
    return {"alpha": ours["alpha"]} if isinstance(ours, dict) and "alpha" in ours else config


def _alpha(file: _File, own: Mapping[str, str], config: Mapping[str, Any], name: str, rank: int) -> float:
    """The module's alpha: a tensor, a setting in the header, or else the rank, as all tools take it."""
    if "alpha" in own:
        value = file.array(own["alpha"])
        return float(value.reshape(-1)[0]) if value is not None and value.size else float(rank)
    component, _, module = name.partition(".")
    return float(config.get("alpha", lora_header.configured_alpha(config, component, module, rank)))


def _said(header: Mapping[str, str]) -> dict[str, Any]:
    """What the header tells a user: trigger word, tags, base, resolution."""
    facts = lora_header.facts(header)
    tags: Counter[str] = Counter()
    for name in ("tag_frequency", "ss_tag_frequency"):
        try:
            for folder in json.loads(facts.get(name, "{}")).values():
                tags.update({str(tag): int(count) for tag, count in folder.items()})
        except (ValueError, AttributeError, TypeError):
            continue
    return {
        "trigger_word": facts.get("trigger_word", ""),
        "tags": dict(tags.most_common(MOST_TAGS)),
        "base_model": facts.get("base_model", ""),
        "resolution": facts.get("resolution", "") or facts.get("ss_resolution", ""),
        "title": facts["output_name"],
        "cover_images": header.get("ssmd_cover_images", "[]").count('"') // 2,
    }


def _hashes(file: _File) -> dict[str, Any]:
    """What web interfaces know the file by; A1111 believes the header's hash, so a wrong one is told."""
    made, told = file.tensors_sha256(), file.header.get("sshs_model_hash")
    found: dict[str, Any] = {"sha256": sha256_of(file.path), "sshs_model_hash": made}
    if told is not None and told != made:
        found["sshs_model_hash_in_header"] = told
    return found


def _clients(
    told: lora_header.Description, file: _File, modules: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, Any]]:
    if told.kind != "lora" or told.spelling is None or told.family is None or told.version is None:
        return {}
    shapes = {name: file.shapes[own["down"]] for name, own in modules.items() if "down" in own}
    config = _peft_config(file.header)
    scaled = any(
        "alpha" not in own and _alpha(file, own, config, name, shapes[name][0]) != shapes[name][0]
        for name, own in modules.items()
        if name in shapes
    )
    told_by = clients.readings(told.family, told.version, told.spelling, shapes, scaled_by_header=scaled)
    return {
        reading.client: {"loads": reading.loads, "ignored": sorted(reading.ignored), "reason": reading.reason}
        for reading in told_by
    }
