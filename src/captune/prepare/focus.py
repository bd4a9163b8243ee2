"""Where a picture's subject is, so that a square is cut around it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

from captune import images

LONGEST = 64  # pixels of the picture that saliency is computed on, as in the paper
NEIGHBOURS = 3  # cells of the spectrum whose mean is what is expected
SPREAD = 2.5  # standard deviation, in pixels, of the final smoothing
FLAT = 1.0  # a picture whose 8-bit grey values vary less has nothing that stands out
WORTH = 0.05  # share of all saliency that a move off the centre must gain
NEARLY = 0.01  # windows that hold this share less than the best are as good

Centering = tuple[float, float]


def saliency(image: Image.Image) -> NDArray[np.float64]:
    """How much each place of a picture stands out (height, width), at most 64 pixels a side.

    The spectral residual (Hou and Zhang 2007, "Saliency Detection: A Spectral Residual Approach"): what the logarithm of
    the amplitude spectrum has over its own local mean, brought back with the phase.
    """
    scale = LONGEST / max(image.size)
    size = tuple(max(4, round(side * scale)) for side in image.size)
    grey = np.asarray(image.convert("L").resize((size[0], size[1]), Image.Resampling.BOX), dtype=np.float64)
    if grey.std() < FLAT:
        return np.zeros_like(grey)
    spectrum = np.fft.fft2(grey)
    amplitude = np.log(np.abs(spectrum) + 1e-9)
    residual = amplitude - ndimage.uniform_filter(amplitude, NEIGHBOURS, mode="wrap")
    found = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    smooth: NDArray[np.float64] = ndimage.gaussian_filter(found, SPREAD)
    return smooth


def on_salient(image: Image.Image, target: tuple[int, int]) -> Centering:
    """The cut to `target` that holds most of what stands out above the mean; the centre where no other is clearly better."""
    left, top, right, bottom = images.crop_box(image.size, target, images.CENTER)
    standing_out = saliency(image)
    standing_out = np.clip(standing_out - standing_out.mean(), 0, None)
    return (
        _best(standing_out.sum(axis=0), (right - left) / image.width),
        _best(standing_out.sum(axis=1), (bottom - top) / image.height),
    )


def on_point(size: tuple[int, int], target: tuple[int, int], x: float, y: float) -> Centering:
    """The cut of a picture of `size` to `target` that has a point as near its middle as the borders allow."""
    left, top, right, bottom = images.crop_box(size, target, images.CENTER)
    return _toward(x, right - left, size[0]), _toward(y, bottom - top, size[1])


def _toward(middle: float, window: float, whole: float) -> float:
    spare = whole - window
    return 0.5 if spare < 1e-6 else float(np.clip((middle - window / 2) / spare, 0, 1))


def _best(profile: NDArray[np.float64], share: float) -> float:
    """Where (0: start, 1: end) a window over `share` of a profile holds most of it; 0.5 unless that is worth it."""
    total, length = float(profile.sum()), len(profile)
    if share > 1 - 1e-6 or total <= 0:
        return 0.5
    sums = np.concatenate([[0.0], np.cumsum(profile)]) / total
    places = np.linspace(0, 1, 2 * length + 1)
    starts = places * (1 - share) * length
    edges = np.arange(length + 1)
    held = np.interp(starts + share * length, edges, sums) - np.interp(starts, edges, sums)
    if held.max() - held[length] < WORTH:
        return 0.5
    good = places[held >= held.max() - NEARLY]
    return float(good[np.argmin(np.abs(good - 0.5))])
