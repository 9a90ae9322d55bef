"""Images with any number of bands and bits, read by rasterio: what a card's `bands` and `value_range` ask for."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aucseg.datasets.card import DatasetCard
from aucseg.datasets.files import (
    READ_BY_WINDOWS,
    SampleError,
    check_exists,
    check_image,
    image_sizes,
    read_image,
    refuse_pages,
)
from aucseg.datasets.windows import Window, read_rgb_window, read_window
from aucseg.hints import import_extra

Array = npt.NDArray[Any]
_MAX_PIXELS = 2**28
_warnings_lock = threading.Lock()

PLAIN_CARD = DatasetCard("", "", ("",), ((0, 0, 0),), {}, ((0,),))
"""Reads any image as RGB, and grey masks."""


def read_card_image(
    path: Path, card: DatasetCard, data: bytes | None = None, window: Window | None = None
) -> tuple[Array, npt.NDArray[np.bool_] | None]:
    """Reads an image as its card says.

    Args:
        path: The image.
        card: Its `bands`, `value_range` and `exif` count.
        data: The bytes of the file where it is not on disk (a shard).
        window: The pixels to read, by rasterio, where the whole does not fit into memory; None for all.

    Returns:
        (H, W, C): without `bands` uint8 RGB. With them the bands in their order, uint8 as they are in the file, or
        with `value_range` float32 in which that range has become 0..255 (values beyond are cut off). And the pixels
        (H, W) that hold data: not those with a NaN, nor those of which every band has the file's no-data value, which
        are 0 in the image; None where all do.

    Raises:
        SampleError: The file cannot be read so.
        ImportError: Rasterio is missing.
    """
    if card.bands is None and window is None:
        return read_image(path, card.exif, data), None
    with open_raster(path, data) as raster:
        if card.bands is None:
            assert window is not None
            check_orientation(path, card, data)
            return _guarded(path, lambda: read_rgb_window(raster, path, window)), None
        _check(raster, path, card, data, is_whole=window is None)
        pixels, valid = _read(raster, path, card.bands, window)
    if card.value_range is not None:
        low, high = np.array(card.value_range, np.float64).T
        scaled = (pixels.astype(np.float64) - low) * (255 / (high - low))
        pixels = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255).astype(np.float32)
    pixels = np.ascontiguousarray(pixels)
    if valid.all():
        return pixels, None
    pixels[~valid] = 0
    return pixels, valid


def read_values(path: Path, bands: Sequence[int], window: Window | None = None) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Reads bands of an image with the values that are in the file.

    Args:
        path: The image.
        bands: Their numbers, the first one is 1.
        window: The pixels to read; None for all.

    Returns:
        (H, W, C) in the dtype of the file, and the pixels (H, W) that hold data, see `read_card_image`.

    Raises:
        SampleError: The file cannot be read so.
        ImportError: Rasterio is missing.
    """
    with open_raster(path) as raster:
        return _read(raster, path, bands, window)


def _read(raster: Any, path: Path, bands: Sequence[int], window: Window | None) -> tuple[Array, npt.NDArray[np.bool_]]:
    values: Array = _guarded(path, lambda: read_window(raster, bands, window))
    no_data = [raster.nodatavals[band - 1] for band in bands]
    valid: npt.NDArray[np.bool_] = np.asarray(np.isfinite(values).all(0))
    if all(value is not None for value in no_data):
        valid = valid & (values != np.array(no_data, np.float64)[:, None, None]).any(0)
    return np.moveaxis(values, 0, -1), valid


def check_card_image(path: Path, card: DatasetCard, decode: bool = False) -> tuple[int, int]:
    """Returns (height, width) of an image as `read_card_image` gives it, from its header alone unless `decode`.

    Raises:
        SampleError: As `read_card_image`.
    """
    if card.bands is None:
        return check_image(path, card.exif, decode)
    if decode:
        height, width, _ = read_card_image(path, card)[0].shape
        return height, width
    with open_raster(path) as raster:
        _check(raster, path, card)
        return raster.height, raster.width


@contextmanager
def open_raster(path: Path, data: bytes | None = None) -> Iterator[Any]:
    """Opens a raster with rasterio.

    Raises:
        SampleError: No such file, no raster, or several (the pages of a stack).
        ImportError: Rasterio is missing.
    """
    rasterio = import_extra("rasterio", "geo")
    if data is None:
        check_exists(path)
    memory = None if data is None else rasterio.io.MemoryFile(data)
    try:
        # Filters of warnings are those of all threads.
        with _warnings_lock, warnings.catch_warnings():
            # Photographs and microscope images lie nowhere on the earth.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            raster = _guarded(path, lambda: rasterio.open(path) if memory is None else memory.open())
            pages = _guarded(path, lambda: _number_of_pages(raster, rasterio))
        with raster:
            refuse_pages(pages, path)
            yield raster
    finally:
        if memory is not None:
            memory.close()


def _number_of_pages(raster: Any, rasterio: Any) -> int:
    """How many images of its size a TIFF file holds."""
    if raster.driver != "GTiff" or not raster.subdatasets:
        return 1
    sizes = []
    for name in raster.subdatasets:
        with rasterio.open(name) as page:
            sizes.append(page.shape)
    return sizes.count(raster.shape)


def _guarded(path: Path, action: Any) -> Any:
    rasterio = import_extra("rasterio", "geo")
    try:
        return action()
    except SampleError:
        raise
    except (rasterio.errors.RasterioError, ValueError, OSError) as error:
        raise SampleError(f"{path}: not a readable raster: {error}; fetch or export the file again") from error


def _check(raster: Any, path: Path, card: DatasetCard, data: bytes | None = None, is_whole: bool = True) -> None:
    bands = card.bands or ()
    if max(bands) > raster.count:
        raise SampleError(
            f"{path}: the card asks for band {max(bands)}, but the file has {raster.count}; correct 'bands' in the card"
        )
    if is_whole and raster.width * raster.height > _MAX_PIXELS:
        raise SampleError(f"{path}: {raster.width} x {raster.height} pixels do not fit; {READ_BY_WINDOWS}")
    kinds = {raster.dtypes[band - 1] for band in bands}
    if any(kind.startswith("complex") for kind in kinds):
        raise SampleError(f"{path}: bands of complex numbers are not read; save amplitudes")
    if card.value_range is None and kinds != {"uint8"}:
        raise SampleError(
            f"{path}: its bands are {', '.join(sorted(kinds))}; say in the card which values are to become 0 and 255 "
            "(value_range: [LOW, HIGH], or a pair for each band)"
        )
    if "palette" in {raster.colorinterp[band - 1].name for band in bands}:
        raise SampleError(f"{path}: a band of palette indices is not a measurement; leave 'bands' out of the card")
    check_orientation(path, card, data)


def check_orientation(path: Path, card: DatasetCard, data: bytes | None) -> None:
    """Raises `SampleError` for an orientation tag, unless the card says to ignore it: rasters are read as stored."""
    if card.exif != "ignore" and _is_turned(path, data):
        raise SampleError(
            f"{path}: an orientation tag turns the picture, and rasters are read as stored: say 'exif: ignore' in the "
            "card, or predict with --exif ignore, if masks are on the pixels as stored; else turn the image and remove "
            "the tag"
        )


def _is_turned(path: Path, data: bytes | None) -> bool:
    try:
        stored, shown = image_sizes(path, data)
    except SampleError:  # more bands than Pillow opens
        return False
    return stored != shown


def band_statistics(images: Iterator[tuple[Array, npt.NDArray[np.bool_] | None]]) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation of each band over the pixels that hold data, in units of 0..255.

    Args:
        images: What `read_card_image` gives for each image.

    Raises:
        ValueError: No pixel holds data.

    Example:
        >>> band_statistics(iter([(np.array([[[0.0, 7.0], [2.0, 7.0]]]), None)]))
        ([1.0, 7.0], [1.0, 0.0])
    """
    count = 0
    mean: Array = np.zeros(1)
    squares: Array = np.zeros(1)
    for pixels, valid in images:
        values = pixels.reshape(-1, pixels.shape[-1]) if valid is None else pixels[valid]
        if not len(values):
            continue
        # Chan, Golub, LeVeque: means and squared deviations of two parts, added up without cancellation.
        part_mean = values.mean(0, dtype=np.float64)
        part_squares = ((values - part_mean) ** 2).sum(0, dtype=np.float64)
        total = count + len(values)
        difference = part_mean - mean
        mean = mean + difference * (len(values) / total)
        squares = squares + part_squares + difference**2 * (count * len(values) / total)
        count = total
    if count == 0:
        raise ValueError("no pixel of the images holds data")
    return mean.tolist(), np.sqrt(squares / count).tolist()
