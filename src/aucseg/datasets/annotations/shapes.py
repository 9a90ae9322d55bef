"""Outlines and run lengths as masks, checked before pycocotools sees them.

pycocotools rasterizes, counts and decodes in C. It takes what it is given: run lengths that are too short leave memory
as it was, coordinates that are not numbers or far away cost time and memory without end. So both are checked here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from aucseg.datasets.annotations.model import AnnotationError, Rle
from aucseg.hints import import_extra

_ELLIPSE_CORNERS = 180

Shape = Callable[[int, int], Rle]


def _library() -> Any:
    return import_extra("pycocotools.mask", "masks")


def polygons(outlines: Sequence[Any], scale: float | None = None) -> Shape:
    """Returns the shape of one or more polygons, joined.

    A pixel belongs to a polygon as in COCO's own tools: where its centre lies within, to about half a pixel.

    Args:
        outlines: Each a flat sequence x, y, x, y, ... or a sequence of pairs (x, y).
        scale: None for coordinates in pixels; else what stands for the whole width or height (1 or 100).
    """
    return partial(_from_polygons, outlines, scale)


def ellipse(center: Sequence[float], radii: Sequence[float], degrees: float = 0.0, scale: float | None = None) -> Shape:
    """Returns the shape of an ellipse, turned clockwise, as a polygon with 180 corners."""
    return partial(_from_ellipse, center, radii, degrees, scale)


def box(x: float, y: float, width: float, height: float, degrees: float = 0.0, scale: float | None = None) -> Shape:
    """Returns the shape of a box with its upper left corner at (x, y), turned clockwise about that corner."""
    return partial(_from_box, (x, y, width, height, degrees), scale)


def run_lengths(counts: Any, size: Any = None) -> Shape:
    """Returns the shape of COCO run lengths down the columns, as a list of numbers or compressed.

    Args:
        counts: Lengths of runs that do not and do belong to the region, in turn; a list, or COCO's string.
        size: `[height, width]` as the file has it; None where it has none.
    """
    return partial(_from_run_lengths, counts, size)


def bitmap(pixels: npt.NDArray[Any], top: int = 0, left: int = 0) -> Shape:
    """Returns the shape of pixels (h, w) that are not zero, with the first one at (top, left) of the image."""
    return partial(_from_bitmap, pixels, top, left)


def refuse(message: str) -> Shape:
    """Returns the shape of an entry that cannot be used."""

    def shape(height: int, width: int) -> Rle:
        raise AnnotationError(message)

    return shape


def _from_polygons(outlines: Sequence[Any], scale: float | None, height: int, width: int) -> Rle:
    if not outlines:
        raise AnnotationError("it has no outline")
    flat = [_corners(outline, scale, height, width).ravel().tolist() for outline in outlines]
    library = _library()
    merged: Rle = library.merge(library.frPyObjects(flat, height, width))
    return merged


def _corners(outline: Any, scale: float | None, height: int, width: int) -> npt.NDArray[np.float64]:
    try:
        points = np.array(outline, np.float64)
    except (ValueError, TypeError) as error:
        raise AnnotationError("its outline holds something else than numbers") from error
    if points.ndim == 1 and len(points) % 2 == 1:
        raise AnnotationError(f"its outline holds {len(points)} numbers, which are not pairs of x and y")
    if points.ndim > 2 or (points.ndim == 2 and points.shape[1] != 2):
        raise AnnotationError("its outline is not a list of points (x, y)")
    points = points.reshape(-1, 2)
    if len(points) < 3:
        raise AnnotationError(f"an outline needs three points or more, this one has {len(points)}")
    if not np.isfinite(points).all():
        raise AnnotationError("its outline holds values that are not numbers (NaN)")
    if scale is not None:
        points = points * (np.array([width, height]) / scale)
    low, high = points.min(0), points.max(0)
    if (low < (-width, -height)).any() or (high > (2 * width, 2 * height)).any():
        raise AnnotationError(
            f"its outline reaches from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}), the image is {width} x "
            f"{height} (width x height): was it drawn on an image of another size?"
        )
    if (high <= 0).any() or (low >= (width, height)).any():
        raise AnnotationError(f"its outline lies outside the image of {width} x {height}")
    return points


def _from_ellipse(
    center: Sequence[float], radii: Sequence[float], degrees: float, scale: float | None, height: int, width: int
) -> Rle:
    unit = np.array([width, height]) / (scale or 1.0) if scale is not None else np.ones(2)
    angles = np.linspace(0, 2 * math.pi, _ELLIPSE_CORNERS, endpoint=False)
    circle = np.stack((np.cos(angles), np.sin(angles)), 1) * (np.array(radii, np.float64) * unit)
    return _from_polygons([_turn(circle, degrees) + np.array(center, np.float64) * unit], None, height, width)


def _from_box(numbers: Sequence[float], scale: float | None, height: int, width: int) -> Rle:
    x, y, box_width, box_height, degrees = numbers
    if not (box_width > 0 and box_height > 0):
        raise AnnotationError(f"a box of {box_width:g} x {box_height:g} has no pixels")
    unit = np.array([width, height]) / scale if scale is not None else np.ones(2)
    corners = np.array([(0, 0), (box_width, 0), (box_width, box_height), (0, box_height)], np.float64) * unit
    return _from_polygons([_turn(corners, degrees) + np.array([x, y]) * unit], None, height, width)


def _turn(points: npt.NDArray[np.float64], degrees: float) -> npt.NDArray[np.float64]:
    angle = math.radians(degrees)
    turn = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
    turned: npt.NDArray[np.float64] = points @ turn
    return turned


def _from_run_lengths(counts: Any, size: Any, height: int, width: int) -> Rle:
    if size is not None and list(size) != [height, width]:
        raise AnnotationError(f"its run lengths are of an image of size {size} (height, width), not {[height, width]}")
    lengths = _decompressed(counts) if isinstance(counts, str | bytes) else counts
    if not isinstance(lengths, list) or not all(isinstance(n, int) and n >= 0 for n in lengths):
        raise AnnotationError("its run lengths are not a list of whole numbers")
    if sum(lengths) != height * width:
        raise AnnotationError(
            f"its run lengths add up to {sum(lengths)} pixels, the image has {height} x {width} = {height * width}"
        )
    rle: Rle = _library().frPyObjects({"size": [height, width], "counts": lengths}, height, width)
    return rle


def pixels_of(rle: Rle) -> npt.NDArray[np.bool_]:
    """Returns the pixels (H, W) of run lengths; pycocotools' own function warns under NumPy 2.

    Example:
        >>> pixels_of({"size": [2, 3], "counts": b"231"}).astype(int)
        array([[0, 1, 1],
               [0, 1, 0]])
    """
    height, width = rle["size"]
    lengths = _decompressed(rle["counts"])
    columns = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height)
    return columns.T


def _decompressed(counts: str | bytes) -> list[int]:
    """COCO's compressed run lengths: 5 bits a character, low ones first, from the fourth on less the one two before."""
    data = counts.encode("latin-1", "replace") if isinstance(counts, str) else counts
    lengths: list[int] = []
    value = shift = 0
    for byte in data:
        bits = byte - 48
        if not 0 <= bits < 64:
            raise AnnotationError(f"its run lengths hold {chr(byte)!r}, which COCO's compression does not write")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise AnnotationError("its run lengths break off")
    return lengths


def _from_bitmap(pixels: npt.NDArray[Any], top: int, left: int, height: int, width: int) -> Rle:
    h, w = pixels.shape
    if top < 0 or left < 0 or top + h > height or left + w > width:
        raise AnnotationError(
            f"its pixels lie in rows {top} to {top + h - 1} and columns {left} to {left + w - 1}, the image has "
            f"{height} rows and {width} columns"
        )
    whole = np.zeros((height, width), np.uint8, order="F")
    whole[top : top + h, left : left + w] = pixels != 0
    rle: Rle = _library().encode(whole)
    return rle
