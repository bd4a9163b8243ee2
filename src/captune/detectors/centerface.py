"""CenterFace (Xu et al. 2019, "CenterFace: Joint Face Detection and Alignment Using Face as Point"), by OpenCV's dnn."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from captune.detectors import Face
from captune.errors import ModelError

OUTPUTS = ("537", "538", "539")  # heatmap, log sizes, offsets; the last output, landmarks, is not needed
STRIDE = 4  # pixels of the picture per cell of the heatmap
MULTIPLE = 32  # the network halves the picture five times
THRESHOLD = 0.3
LOADED = 4  # networks kept, each for one size of pictures
CLOSE_SIDE = 256  # the longest side of a picture in which the largest faces are looked for again
LARGE = 0.3  # of the picture's longest side: a face from this size on is as it is found there
PART = 0.25  # of a large face's longest side: what is found in it from this size on is a part of it
OVERLAP = 0.3  # boxes that share more than this (intersection over union) are one face


class CenterFace:
    """Every cell of a heatmap is the centre of a face or not; its size and offset are read at the same place."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._networks: OrderedDict[tuple[int, int], cv2.dnn.Net] = OrderedDict()
        self._network((MULTIPLE, MULTIPLE))  # a wrong file is told at once

    def detect(self, image: Image.Image) -> list[Face]:
        """The faces of an RGB picture in its own pixels, the surest first.

        The network knows faces up to about 400 pixels: of a larger one it finds parts, or nothing. So every picture is
        looked at a second time, in small, where only the largest faces count.
        """
        found, factor = self._look(image), max(image.size) / CLOSE_SIDE
        if factor <= 1:
            return found
        size = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
        x, y = image.width / size[0], image.height / size[1]
        close = self._look(image.resize(size, Image.Resampling.BOX))
        scaled = [Face((f.box[0] * x, f.box[1] * y, f.box[2] * x, f.box[3] * y), f.score) for f in close]
        large = [face for face in scaled if _side(face) >= LARGE * max(image.size)]
        rest = [face for face in found if not any(_is_part(face, whole) for whole in large)]
        return sorted([*large, *rest], key=lambda face: -face.score)

    def _look(self, image: Image.Image) -> list[Face]:
        width, height = (-(-side // MULTIPLE) * MULTIPLE for side in image.size)
        blob = cv2.dnn.blobFromImage(np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)))
        network = self._network((width, height))
        network.setInput(blob)
        heatmap, sizes, offsets = (output[0] for output in network.forward(OUTPUTS))
        rows, columns = np.nonzero(heatmap[0] > THRESHOLD)
        high, wide = np.exp(sizes[:, rows, columns]) * STRIDE
        top = (rows + offsets[0, rows, columns] + 0.5) * STRIDE - high / 2
        left = (columns + offsets[1, rows, columns] + 0.5) * STRIDE - wide / 2
        scores = heatmap[0, rows, columns]
        boxes = np.stack([left, top, wide, high], axis=1)
        kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), THRESHOLD, OVERLAP)
        x, y = image.width / width, image.height / height
        return [
            Face((left[i] * x, top[i] * y, (left[i] + wide[i]) * x, (top[i] + high[i]) * y), float(scores[i]))
            for i in np.asarray(kept, dtype=int).ravel()
        ]

    def _network(self, size: tuple[int, int]) -> cv2.dnn.Net:
        """The network for pictures of one size: OpenCV 4.14 gives nonsense where a loaded one is given another size."""
        if size not in self._networks:
            try:
                self._networks[size] = cv2.dnn.readNetFromONNX(str(self._model))
            except cv2.error as error:
                raise ModelError(f"{self._model} is no CenterFace model that OpenCV reads: {error.err}") from None
        self._networks.move_to_end(size)
        while len(self._networks) > LOADED:
            self._networks.popitem(last=False)
        return self._networks[size]


def _side(face: Face) -> float:
    """The longest side of a face."""
    return max(face.box[2] - face.box[0], face.box[3] - face.box[1])


def _is_part(face: Face, whole: Face) -> bool:
    """Whether a face is the other one seen wrongly, and not a small one beside or behind it."""
    x, y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    left, top, right, bottom = whole.box
    return left <= x <= right and top <= y <= bottom and _side(face) >= PART * _side(whole)
