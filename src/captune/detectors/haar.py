"""OpenCV 4's cascade of Haar-like features (Viola and Jones 2001) for frontal faces."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from captune.detectors import Face
from captune.errors import ModelError

SCALE, NEIGHBOURS = 1.1, 3  # a step of the window's size; windows that must agree
SMALLEST = 24  # pixels of a face's side


class Haar:
    """A window slides over the picture in many sizes; it has no score, so every face counts as sure."""

    def __init__(self, model: Path) -> None:
        self._cascade = cv2.CascadeClassifier(str(model))
        if self._cascade.empty():
            raise ModelError(f"{model} is no cascade that OpenCV reads")

    def detect(self, image: Image.Image) -> list[Face]:
        """The faces of an RGB picture in its own pixels, the largest first."""
        grey = cv2.equalizeHist(np.asarray(image.convert("L")))
        found = self._cascade.detectMultiScale(grey, SCALE, NEIGHBOURS, minSize=(SMALLEST, SMALLEST))
        boxes = sorted(([int(v) for v in row] for row in found), key=lambda box: (-box[2], box))
        return [Face((x, y, x + w, y + h), 1.0) for x, y, w, h in boxes]
