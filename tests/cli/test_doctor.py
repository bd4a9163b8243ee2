"""The doctor tells what is missing and what to do, and is content only when nothing needed is missing."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from captune import doctor, weights

NEEDS = ["numpy>=1", "pillow>=999", "no-such-package>=2", "pytest>=1; extra == 'dev'", "no-such-tool; extra == 'dev'"]
NEEDS += ["only-elsewhere; sys_platform == 'nowhere'"]


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> dict[str, doctor.Finding]:
    """What the doctor says of packages when captune needs NEEDS."""
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: NEEDS)

    class Described:
        def get_all(self, name: str, default: list[str]) -> list[str]:
            return ["dev"] if name == "Provides-Extra" else default

    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: Described())
    return {finding.topic: finding for finding in doctor._packages()}


def test_each_package_is_told_once_with_its_state(findings: dict[str, doctor.Finding]) -> None:
    assert {topic: finding.state for topic, finding in findings.items()} == {
        "numpy": "ok",
        "pillow": "warn",
        "no-such-package": "missing",
        "pytest (dev)": "ok",
        "no-such-tool (dev)": "missing",
    }


def test_advice_can_be_pasted(findings: dict[str, doctor.Finding]) -> None:
    assert findings["no-such-package"].advice == "pip install 'no-such-package>=2'"
    assert findings["no-such-tool (dev)"].advice == "optional: pip install 'captune[dev]'"


def test_only_what_is_needed_counts(findings: dict[str, doctor.Finding]) -> None:
    assert not doctor.healthy(list(findings.values()))
    del findings["no-such-package"]
    assert doctor.healthy(list(findings.values()))


def test_missing_weights_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "EMBEDDED", tmp_path)
    (finding,) = doctor._embedded_models()
    assert (finding.state, finding.required) == ("missing", True)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"0" * 2_000_000)
    (finding,) = doctor._embedded_models()
    assert (finding.state, finding.found) == ("ok", "clip: 2.0 MB")


def test_everything_but_the_ok_has_advice() -> None:
    found = doctor.examine()
    assert {"python", "threads", "cpu", "disk", "hub"} <= {finding.topic for finding in found}
    assert [finding for finding in found if finding.state != "ok" and not finding.advice] == []
