"""Reading a window of a mask as raw ids, where the whole does not fit into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from aucseg.datasets.bands import check_orientation, open_raster
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.files import Array, SampleError, size_message
from aucseg.datasets.mask_files import (
    RawMask,
    check_palette,
    encoding_message,
    npy_ids,
    npy_memory_map,
    pack_colors,
    read_mask,
    whole_numbers,
)
from aucseg.datasets.tree import ending_of
from aucseg.datasets.windows import Tile, Window, bits_of, check_colors, palette_of, read_window

_LOSSY_DRIVERS = ("JPEG", "JP2OpenJPEG", "AVIF", "HEIF")
_BLACK_WHITE = [[0, 0, 0], [255, 255, 255]]
_LOSSY_COMPRESSIONS = ("JPEG", "YCbCr JPEG", "WEBP", "JXL")


def read_mask_window(path: Path, card: DatasetCard, window: Window, size: tuple[int, int]) -> RawMask:
    """Reads a window of a mask as raw ids, as `aucseg.datasets.mask_files.read_mask` would give them.

    Args:
        path: Image that rasterio reads, or `.npy` array.
        card: Says how the ids are encoded.
        window: What to read.
        size: (height, width) of the image, which the mask must have.

    Raises:
        SampleError: The file cannot be read so, is compressed with loss, is not encoded as the card says, or has
            another size.
        ImportError: Rasterio is missing.
    """
    if card.mask_encoding == "mat":
        raise SampleError(
            f"{path}: MATLAB files are not read by windows; save the mask as TIFF, or leave out data.tile"
        )
    if ending_of(path.name) == ".npy":
        values = npy_memory_map(path)
        _check_size(path, values.shape[:2], size)
        return RawMask(npy_ids(values[window.slices], path, card.mask_encoding))
    with open_raster(path) as raster:
        _check_size(path, (raster.height, raster.width), size)
        check_colors(raster, path)
        check_orientation(path, card, None)
        _check_lossless(raster, path)
        encoding = _encoding(raster)
        if encoding != card.mask_encoding and not (card.mask_encoding == "rgb" and encoding == "palette"):
            kinds = ", ".join(dict.fromkeys(raster.dtypes))
            raise SampleError(encoding_message(path, f"{raster.count} x {kinds}", encoding, card.mask_encoding))
        return _read(raster, path, card, window, encoding)


def read_tile_of_mask(path: Path, card: DatasetCard, tile: Tile | None) -> RawMask:
    """Reads the core of a tile of a mask, or the whole mask where there is no tile."""
    return read_mask(path, card) if tile is None else read_mask_window(path, card, tile.core, tile.size)


def _check_size(path: Path, found: tuple[int, ...], size: tuple[int, int]) -> None:
    if tuple(found) != size:
        raise SampleError(size_message(path, tuple(found), "", size))


def _check_lossless(raster: Any, path: Path) -> None:
    tags = raster.tags(ns="IMAGE_STRUCTURE")
    compression = tags.get("COMPRESSION", "")
    is_lossy = (
        raster.driver in _LOSSY_DRIVERS
        or (compression in _LOSSY_COMPRESSIONS or float(tags.get("MAX_Z_ERROR", 0)) > 0)
        or raster.driver == "WEBP"
    ) and tags.get("COMPRESSION_REVERSIBILITY") != "LOSSLESS"
    if is_lossy:
        raise SampleError(
            f"{path}: the mask is a {raster.driver} file with {compression or 'lossy'} compression, which changes ids "
            "along every edge; make it again from its source, with deflate or LZW"
        )


def _encoding(raster: Any) -> str | None:
    if raster.colorinterp[0].name == "palette":
        # GDAL gives each TIFF file of 1 bit a palette.
        is_plain = raster.driver == "GTiff" and bits_of(raster) == 1 and palette_of(raster).tolist() == _BLACK_WHITE
        return "gray" if is_plain else "palette"
    is_bytes = set(raster.dtypes) == {"uint8"}
    if raster.count in (3, 4):
        return "rgb" if is_bytes else None
    if raster.count > 2 or raster.dtypes[0].startswith("complex"):
        return None
    return "gray" if raster.dtypes[0] in ("uint8", "int8") else "gray16"


def _read(raster: Any, path: Path, card: DatasetCard, window: Window, encoding: str | None) -> RawMask:
    bands = read_window(raster, range(1, raster.count + 1), window)
    if raster.colorinterp[-1].name == "alpha":
        if (bands[-1] != 255).any():
            raise SampleError(
                f"{path}: some pixels are transparent, which windows of a mask may not be: give them an id of their "
                "own and save the mask without transparency"
            )
        bands = bands[:-1]
    values: Array = bands[0]
    if encoding == "palette":
        palette = palette_of(raster)
        if card.mask_encoding == "rgb":
            colors = np.zeros((256, 3), np.uint8)
            colors[: len(palette)] = palette
            return RawMask(pack_colors(colors[values]))
        if card.check_palette:
            check_palette(palette, values, path, card)
        return RawMask(values, palette)
    if encoding == "rgb":
        return RawMask(pack_colors(np.moveaxis(bands, 0, -1)))
    if values.dtype != np.uint8:
        values = whole_numbers(values, path, "the mask")
    return RawMask(values.astype(np.uint8) if encoding == "gray" else values)
