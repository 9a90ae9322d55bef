"""Rasters that are predicted window by window, without ever being in memory as a whole."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from aucseg.datasets.bands import PLAIN_CARD, open_raster, read_card_image
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.files import SampleError
from aucseg.datasets.windows import Window, cut

Array = npt.NDArray[Any]

# Images with more pixels are read by windows; 128 megapixels are 400 MB as RGB.
LARGE_PIXELS = 2**27
# Pixels along the longer side of an overlay of a large raster, and along the sides of the parts it is made of.
_OVERLAY_SIDE = 4096
_PART_SIDE = 2048
# Formats of which each window is decoded from the top of the file.
_FROM_THE_TOP = ("PNG", "JPEG", "WEBP", "GIF")


class LargeRaster:
    """A raster file that reads like an array (H, W, C), each part from the file.

    Args:
        path: The file.
        size: Its height and width.
        card: Says which bands are read; None for RGB.
        exif: "apply" refuses files with an orientation tag, "ignore" reads them as stored, as does a card with bands
            that says so.
    """

    ndim = 3

    def __init__(self, path: Path, size: tuple[int, int], card: DatasetCard | None, exif: str) -> None:
        self.path = path
        is_stored = exif == "ignore" or (card is not None and card.bands is not None and card.exif == "ignore")
        self.card = replace(card or PLAIN_CARD, exif="ignore" if is_stored else "error")
        self.shape = (*size, self.card.num_channels)

    def __getitem__(self, place: tuple[slice, slice]) -> Array:
        (top, bottom, _), (left, right, _) = (
            one.indices(length) for one, length in zip(place, self.shape, strict=False)
        )
        return read_card_image(self.path, self.card, window=Window(top, left, bottom - top, right - left))[0]


def open_large(path: Path, card: DatasetCard | None, exif: str, max_pixels: int) -> LargeRaster | None:
    """Returns a raster to read by windows; None where it is small enough to be read whole, or rasterio is missing.

    Raises:
        SampleError: It has more than `max_pixels`.
    """
    if importlib.util.find_spec("rasterio") is None:
        return None
    try:
        with open_raster(path) as raster:
            size = (raster.height, raster.width)
            if raster.driver in _FROM_THE_TOP:
                return None
    except SampleError:  # Pillow may know it, or says what is wrong
        return None
    if size[0] * size[1] <= LARGE_PIXELS:
        return None
    if size[0] * size[1] > max_pixels:
        raise SampleError(f"{path}: more than {max_pixels} pixels; raise max_pixels (--max-pixels) if that is right")
    return LargeRaster(path, size, card, exif)


@contextmanager
def label_array(folder: Path | None, size: tuple[int, ...], dtype: npt.DTypeLike) -> Iterator[Array]:
    """An array (H, W) for labels: in a file in a folder, removed in the end, or in memory where there is no folder."""
    if folder is None:
        yield np.empty(size, dtype)
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        yield np.memmap(file, dtype=dtype, mode="w+", shape=size)


def small_overlay(image: LargeRaster, labels: Array, colors: npt.NDArray[np.uint8], opacity: float) -> Image.Image:
    """Returns the raster under the colours of its labels, of every n-th pixel so that it can be looked at."""
    from aucseg.inference.predict_files import as_picture

    step = -(-max(labels.shape) // _OVERLAY_SIDE)
    mixed = np.zeros((-(-labels.shape[0] // step), -(-labels.shape[1] // step), 3), np.uint8)
    for tile in cut(labels.shape, _PART_SIDE):
        rows, columns = tile.core.slices
        top, left = (-rows.start % step, -columns.start % step)
        picture = Image.fromarray(as_picture(image[rows, columns][top::step, left::step]))
        part = Image.blend(picture, Image.fromarray(colors[labels[rows, columns][top::step, left::step]]), opacity)
        at = (rows.start + top) // step, (columns.start + left) // step
        mixed[at[0] : at[0] + part.height, at[1] : at[1] + part.width] = np.asarray(part)
    return Image.fromarray(mixed)
