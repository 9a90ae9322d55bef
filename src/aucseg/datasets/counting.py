"""Counting the ids in a mask, fast: masks are made of runs, and runs are few.

This module imports neither torch nor anything heavy: the processes of a counting pool start with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

# Where a class lies is kept on a grid of 8 x 8 cells, one bit each, seen through at most 128 x 128 sample points.
GRID = 8
_SAMPLES = 128
# Above this share of run ends a histogram of the pixels is faster than counting runs.
_MANY_RUNS = 0.08


@dataclass(frozen=True)
class MaskScan:
    """What there is to know of one mask.

    Attributes:
        ids: int64 (n,): the ids that occur, ascending.
        counts: int64 (n,): pixels of each.
        cells: uint64 (n,): for each the cells of an 8 x 8 grid in which it was seen, bit `8 row + column`.
        height: Height in pixels.
        width: Width in pixels.
        colors: int64 (n,): the colour of each id in the palette of the file, `65536 red + 256 green + blue`, -1 where
            it has none; None where the file has no palette.
    """

    ids: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    cells: npt.NDArray[np.uint64]
    height: int
    width: int
    colors: npt.NDArray[np.int64] | None = None


def count_ids(mask: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the ids that occur in an integer array of any shape, ascending, and how often each occurs.

    Example:
        >>> import numpy as np
        >>> count_ids(np.array([[3, 3, 7], [3, 7, 7]], dtype=np.uint8))
        (array([3, 7]), array([3, 3]))
    """
    flat = mask.reshape(-1)
    if flat.size == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    is_end = flat[1:] != flat[:-1]
    if flat.dtype == np.uint8 and np.count_nonzero(is_end) > _MANY_RUNS * flat.size:
        histogram = np.array(Image.fromarray(flat.reshape(1, -1)).histogram(), dtype=np.int64)
        ids = np.flatnonzero(histogram)
        return ids, histogram[ids]
    ends = np.append(np.flatnonzero(is_end), flat.size - 1)
    lengths = np.diff(ends, prepend=-1)
    if flat.dtype == np.uint8:
        # float64 weights are exact up to 2^53 pixels.
        sums = np.bincount(flat[ends], weights=lengths, minlength=256).astype(np.int64)
        ids = np.flatnonzero(sums)
        return ids, sums[ids]
    values, run_of = np.unique(flat[ends], return_inverse=True)
    return values.astype(np.int64), np.bincount(run_of, weights=lengths).astype(np.int64)


def scan_mask(mask: npt.NDArray[Any]) -> MaskScan:
    """Returns the ids of a mask (H, W), their pixels, and the cells of an 8 x 8 grid in which they lie.

    The cells come from sample points (at most 128 x 128), so an object smaller than their distance may leave no cell.
    """
    ids, counts = count_ids(mask)
    height, width = mask.shape
    rows, columns, _ = _sample_points(height, width)
    return MaskScan(ids, counts, _cells(ids, mask[rows[:, None], columns], height, width), height, width)


def scan_image(image: Image.Image) -> MaskScan:
    """Returns what `scan_mask` returns of a decoded image of mode L or P, whose pixels are ids.

    The pixels stay where Pillow has them: as an array they would have to be copied first.
    """
    width, height = image.size
    histogram = np.array(image.histogram()[:256], dtype=np.int64)
    ids = np.flatnonzero(histogram)
    rows, columns, _ = _sample_points(height, width)
    # Pillow takes the pixel under the middle of each target pixel. The sample points are at multiples of the step,
    # rounded down; a quarter of their least distance from the next pixel keeps rounding errors from mattering.
    step = width / max(len(columns), 1), height / max(len(rows), 1)
    shift = [0.25 / max(len(places), 1) - 0.5 * one for places, one in zip((columns, rows), step, strict=True)]
    sampled = image.transform(
        (len(columns), len(rows)),
        Image.Transform.AFFINE,
        (step[0], 0, shift[0], 0, step[1], shift[1]),
        Image.Resampling.NEAREST,
    )
    return MaskScan(ids, histogram[ids], _cells(ids, np.asarray(sampled), height, width), height, width)


def _cells(ids: npt.NDArray[np.int64], sampled: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[np.uint64]:
    """The cells in which the ids are seen at the sample points."""
    cells = np.zeros(len(ids), np.uint64)
    if len(ids):
        cell = _sample_points(height, width)[2]
        is_small = sampled.dtype == np.uint8
        # Where the ids are few they count themselves; else their places among those that occur do.
        places = sampled.astype(np.int64) if is_small else np.searchsorted(ids, sampled)
        num_places = 256 if is_small else len(ids)
        seen = np.bincount((places * GRID**2 + cell).reshape(-1), minlength=num_places * GRID**2) > 0
        of_ids = seen.reshape(-1, GRID**2)[ids if is_small else slice(None)]
        cells = np.packbits(of_ids, axis=1, bitorder="little").view("<u8").reshape(-1).astype(np.uint64)
    return cells


@lru_cache(maxsize=64)
def _sample_points(
    height: int, width: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns rows and columns of the sample points, and the cell in which each pair of them lies."""
    num_rows, num_columns = min(height, _SAMPLES), min(width, _SAMPLES)
    rows = np.arange(num_rows) * height // num_rows
    columns = np.arange(num_columns) * width // num_columns
    return rows, columns, (rows * GRID // height)[:, None] * GRID + columns * GRID // width


def unpack_cells(cells: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Returns (n, 8, 8) booleans for n sets of cells.

    Example:
        >>> import numpy as np
        >>> np.argwhere(unpack_cells(np.array([1 << 10], dtype=np.uint64)))
        array([[0, 1, 2]])
    """
    bits = np.unpackbits(cells.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    return bits.reshape(-1, GRID, GRID).astype(bool)
