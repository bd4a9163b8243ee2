"""Which size a picture is brought to: one square, or the bucket of about the same area with the nearest aspect ratio.

Pure arithmetic, with the rules of kohya's sd-scripts (library/model_util.make_bucket_resolutions and
BucketManager.select_bucket), so that the same folder falls into the same buckets there and here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from captune.errors import RecipeError
from captune.recipe import PrepareSection

Size = tuple[int, int]  # width, height


def down_to(value: int, multiple: int) -> int:
    """The largest multiple that is not above `value`."""
    return value // multiple * multiple


def bucket_sizes(resolution: int, step: int, smallest: int, largest: int) -> list[Size]:
    """All buckets of at most resolution^2 pixels whose sides are multiples of `step` in smallest..largest, sorted."""
    square = down_to(resolution, step)
    sizes = {(square, square)}
    for width in range(-(-smallest // step) * step, largest + 1, step):
        height = min(down_to(largest, step), down_to(resolution * resolution // width, step))
        if height >= smallest:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def nearest_bucket(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """The bucket for a picture: its own size if there is one, else the nearest width / height (the first of equals)."""
    if (width, height) in sizes:
        return width, height
    return min(sizes, key=lambda size: abs(size[0] / size[1] - width / height))


def chooser(resolution: int, section: PrepareSection, multiple: int) -> Callable[[int, int], Size]:
    """What says which size a picture of some width and height is brought to.

    It can be sent to another process. Raises RecipeError where the sizes asked for cannot be had with sides that are
    multiples of `multiple`.
    """
    sizes = allowed_sizes(resolution, section, multiple)
    if section.bucket_no_upscale:
        return partial(own_bucket, resolution=resolution, step=section.bucket_step)
    return partial(nearest_bucket, sizes=sizes)


def own_bucket(width: int, height: int, resolution: int, step: int) -> Size:
    """The bucket that a picture makes without being enlarged: its own size, or of its shape with resolution^2 pixels.

    Of a larger picture one side is rounded to `step`, the one that keeps the shape better; then both are cut down to it.
    """
    if width * height > resolution**2:
        shape = width / height
        wide, high = (_rounded(resolution * math.sqrt(x), step) for x in (shape, 1 / shape))
        by_width, by_height = wide / _rounded(wide / shape, step), _rounded(high * shape, step) / high
        if abs(by_width - shape) < abs(by_height - shape):
            width, height = wide, int(wide / shape + 0.5)
        else:
            width, height = int(high * shape + 0.5), high
    return max(step, down_to(width, step)), max(step, down_to(height, step))


def _rounded(value: float, step: int) -> int:
    """The nearest multiple, and at least one."""
    return max(1, int(value / step + 0.5)) * step


def allowed_sizes(resolution: int, section: PrepareSection, multiple: int) -> list[Size]:
    """The sizes that pictures may be brought to: one for squares, the buckets otherwise.

    Raises RecipeError where the sizes asked for cannot be had with sides that are multiples of `multiple`.
    """
    if resolution < multiple:
        raise RecipeError(f"dataset.resolution = {resolution}: this base needs sides of at least {multiple} pixels")
    if section.crop == "square":
        side = down_to(resolution, multiple)
        return [(side, side)]
    step = section.bucket_step
    if step % multiple:
        raise RecipeError(f"prepare.bucket_step = {step}: this base needs a multiple of {multiple}")
    if step > resolution:
        raise RecipeError(f"prepare.bucket_step = {step}: must not exceed dataset.resolution = {resolution}")
    smallest = section.bucket_min if section.bucket_min is not None else resolution // 2
    largest = section.bucket_max if section.bucket_max is not None else resolution * 2
    square = down_to(resolution, step)
    if smallest > square:
        raise RecipeError(
            f"prepare.bucket_min = {smallest}: must not exceed {square}, the side of the square bucket "
            f"(dataset.resolution = {resolution} in steps of {step})"
        )
    if largest < square:
        raise RecipeError(
            f"prepare.bucket_max = {largest}: must be at least {square}, the side of the square bucket "
            f"(dataset.resolution = {resolution} in steps of {step})"
        )
    return bucket_sizes(resolution, step, smallest, largest)


def size_warnings(resolution: int, section: PrepareSection, multiple: int) -> list[str]:
    """What should be known about the sizes before training: a resolution that is rounded, buckets that are none."""
    sizes = allowed_sizes(resolution, section, multiple)
    step = multiple if section.crop == "square" else section.bucket_step
    side = down_to(resolution, step)
    warnings = []
    if side != resolution:
        warnings.append(f"dataset.resolution = {resolution} is not a multiple of {step}: the square is {side} x {side}")
    if section.crop == "bucket" and len(sizes) == 1 and not section.bucket_no_upscale:
        warnings.append(
            f'crop = "bucket" with bucket_step = {step} leaves one bucket, {side} x {side}: every picture is cut to a '
            f"square; a smaller bucket_step gives more"
        )
    return warnings
