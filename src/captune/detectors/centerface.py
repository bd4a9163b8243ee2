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
LOADED = 2  # networks kept, each for one size of pictures
OVERLAP = 0.3  # boxes that share more than this (intersection over union) are one face


class CenterFace:
    """Every cell of a heatmap is the centre of a face or not; its size and offset are read at the same place."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._networks: OrderedDict[tuple[int, int], cv2.dnn.Net] = OrderedDict()
        self._network((MULTIPLE, MULTIPLE))  # a wrong file is told at once

    def detect(self, image: Image.Image) -> list[Face]:
        """The faces of an RGB picture in its own pixels, the surest first."""
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
