"""YuNet (Wu et al. 2023, "YuNet: A Tiny Millisecond-level Face Detector") from a model file of opencv_zoo."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from captune.detectors import Face
from captune.errors import ModelError

THRESHOLD, OVERLAP, MOST = 0.6, 0.3, 5000  # score, shared area of two boxes, candidates


class YuNet:
    """OpenCV's own reader of the model."""

    def __init__(self, model: Path) -> None:
        try:
            self._network = cv2.FaceDetectorYN.create(str(model), "", (320, 320), THRESHOLD, OVERLAP, MOST)
        except cv2.error as error:
            raise ModelError(f"{model} is no YuNet model that OpenCV reads: {error.err}") from None

    def detect(self, image: Image.Image) -> list[Face]:
        """The faces of an RGB picture in its own pixels, the surest first."""
        self._network.setInputSize(image.size)
        _, found = self._network.detect(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))
        rows = sorted(([float(v) for v in row] for row in (found if found is not None else ())), key=lambda r: -r[-1])
        return [Face((r[0], r[1], r[0] + r[2], r[1] + r[3]), r[-1]) for r in rows]
