"""Colour images of 16 bits a channel, of which Pillow by itself gives the upper 8."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from aucseg.datasets.files import load_oriented

_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}


def read_deep_color(path: str | Path, exif: str = "ignore") -> npt.NDArray[np.uint16]:
    """Reads the values of an RGB or RGBA file of 16 bits a channel, PNG or TIFF.

    The file is decoded twice, the second time as if the two bytes of its numbers stood the other way round.

    Args:
        path: The file.
        exif: What to do with an orientation tag: `error`, `ignore`, `apply`.

    Returns:
        uint16 (H, W, 3). Transparency is dropped.

    Raises:
        ValueError: The file is of another kind, or damaged.
    """
    upper, lower = (_bytes(path, exif, other=other) for other in (False, True))
    values: npt.NDArray[np.uint16] = upper[..., :3].astype(np.uint16) * 256 + lower[..., :3]
    return values


def _bytes(path: str | Path, exif: str, other: bool) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        tiles: list[Any] = getattr(image, "tile", [])
        for i, tile in enumerate(tiles):
            args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
            mode, _, byte_order = str(args[0]).partition(";")
            if image.mode not in ("RGB", "RGBA") or mode != image.mode or byte_order not in _OTHER_BYTE:
                raise ValueError(f"{path}: {image.format} of mode {image.mode} and 16 bits, stored as {args[0]}")
            if other:
                swapped = (f"{mode};{_OTHER_BYTE[byte_order]}", *args[1:])
                tiles[i] = with_arguments(tile, swapped if isinstance(tile[3], tuple) else swapped[0])
        return np.array(load_oriented(image, path, exif))


def with_arguments(tile: Any, arguments: Any) -> Any:
    """Returns a tile of an image that is not decoded with other arguments for Pillow's decoder."""
    parts = (*tile[:3], arguments)
    # Plain tuples in older releases of Pillow.
    return type(tile)(*parts) if hasattr(tile, "_fields") else parts
