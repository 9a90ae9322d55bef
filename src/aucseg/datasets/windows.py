"""Rasters that do not fit into memory: the tiles they are cut into, and reading one window of a file, by rasterio."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aucseg.datasets.files import Array, SampleError
from aucseg.hints import import_extra

# Of a tile's side: what a window shows around its tile, on each side.
_MARGIN = 8
_READERS = 8


class Window(NamedTuple):
    """A rectangle of pixels of a raster."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class Tile:
    """A part of a raster that is a sample of its own.

    Attributes:
        size: (height, width) of the whole raster.
        core: The pixels that count for this tile; each pixel of the raster is in the core of one tile.
        side: Height and width of the window that is read for it, where the raster is not smaller.
    """

    size: tuple[int, int]
    core: Window
    side: int

    @property
    def window(self) -> Window:
        """The window around the core, as far as possible with the core in its middle."""
        tops, lefts = self._starts()
        return self._at(
            min(max(self.core.top - (self._window_size[0] - self.core.height) // 2, tops[0]), tops[1]),
            min(max(self.core.left - (self._window_size[1] - self.core.width) // 2, lefts[0]), lefts[1]),
        )

    def random_window(self, draw: Callable[[int, int], int]) -> Window:
        """Returns any of the windows that hold the whole core.

        Args:
            draw: From two whole numbers to one between them, both included.
        """
        tops, lefts = self._starts()
        return self._at(draw(*tops), draw(*lefts))

    @property
    def _window_size(self) -> tuple[int, int]:
        return min(self.side, self.size[0]), min(self.side, self.size[1])

    def _starts(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The first and the last start of windows that hold the core, down and to the right."""
        (height, width), core = self._window_size, self.core
        return (
            (max(core.top + core.height - height, 0), min(core.top, self.size[0] - height)),
            (max(core.left + core.width - width, 0), min(core.left, self.size[1] - width)),
        )

    def _at(self, top: int, left: int) -> Window:
        return Window(top, left, *self._window_size)

    def outside_core(self, window: Window) -> Array:
        """Returns which pixels (height, width) of a window are not of the core."""
        outside = np.ones((window.height, window.width), bool)
        top, left = self.core.top - window.top, self.core.left - window.left
        outside[top : top + self.core.height, left : left + self.core.width] = False
        return outside


def cut(size: tuple[int, int], side: int) -> list[Tile]:
    """Returns the tiles of a raster.

    Their cores are nearly of one size, so that windows of `side` show some of the raster around them.

    Args:
        size: (height, width) of the raster.
        side: Height and width of the windows.

    Example:
        >>> [tile.core for tile in cut((100, 250), 128)]
        [Window(top=0, left=0, height=100, width=83), Window(top=0, left=83, height=100, width=83), Window(top=0, left=166, height=100, width=84)]
        >>> [tile.window.left for tile in cut((100, 250), 128)]
        [0, 61, 122]
    """  # noqa: E501
    rows, columns = (_parts(length, side) for length in size)
    return [
        Tile(size, Window(top, left, bottom - top, right - left), side)
        for top, bottom in rows
        for left, right in columns
    ]


def _parts(length: int, side: int) -> list[tuple[int, int]]:
    step = side - 2 * (side // _MARGIN)
    number = 1 if length <= side else -(-length // step)
    borders = [length * i // number for i in range(number + 1)]
    return list(itertools.pairwise(borders))


def tiles_of_files(paths: Sequence[Path], side: int) -> Iterator[list[Tile | None]]:
    """Yields for each image its tiles; None alone where it is not larger than a window, or cannot be opened.

    Raises:
        ImportError: Rasterio is missing.
    """
    from aucseg.datasets.bands import open_raster

    import_extra("rasterio", "geo")

    def size_of(path: Path) -> tuple[int, int]:
        try:
            with open_raster(path) as raster:
                return raster.height, raster.width
        except SampleError:  # reported where the image is read
            return 0, 0

    # Threads hide the latency of a network disk.
    with ThreadPoolExecutor(_READERS) as readers:
        for size in readers.map(size_of, paths):
            yield [*cut(size, side)] if max(size) > side else [None]


def read_window(raster: Any, bands: Sequence[int], window: Window | None) -> Array:
    """Returns bands (C, H, W) of an open raster, of the whole or of a window."""
    if window is None:
        whole: Array = raster.read(list(bands))
        return whole
    rasterio_window = import_extra("rasterio.windows", "geo").Window
    values: Array = raster.read(
        list(bands), window=rasterio_window(window.left, window.top, window.width, window.height)
    )
    return values


def read_rgb_window(raster: Any, path: Path, window: Window) -> Array:
    """Returns a window of an open raster of 8 bits as uint8 RGB (H, W, 3): grey, palette or colour, as Pillow does.

    Raises:
        SampleError: Other bits or colours.
    """
    check_colors(raster, path)
    kinds = set(raster.dtypes)
    if kinds != {"uint8"}:
        raise SampleError(
            f"{path}: the image has bands of {', '.join(sorted(kinds))} (more than 8 bits a channel); set 'bands' and "
            "'value_range' in the card"
        )
    names = [color.name for color in raster.colorinterp]
    if names[0] == "palette":
        palette = palette_of(raster)
        indices = read_window(raster, [1], window)[0]
        if indices.max(initial=0) >= len(palette):
            raise SampleError(f"{path}: an index of its palette has no colour; export the file again")
        colors: Array = palette[indices]
        return colors
    if raster.count <= 2:
        gray = read_window(raster, [1], window)[0] * np.uint8(255 // (2 ** bits_of(raster) - 1))
        return np.repeat(gray[..., None], 3, axis=2)
    if names[:3] != ["red", "green", "blue"]:
        raise SampleError(
            f"{path}: {raster.count} bands that are not red, green and blue; name those to read in the card, for "
            "example 'bands: [1, 2, 3]'"
        )
    return np.ascontiguousarray(np.moveaxis(read_window(raster, [1, 2, 3], window), 0, -1))


def palette_of(raster: Any) -> Array:
    """The colours uint8 (N, 3) of the indices of a palette raster."""
    entries: dict[int, tuple[int, ...]] = raster.colormap(1)
    palette = np.zeros((max(entries, default=-1) + 1, 3), np.uint8)
    for index, color in entries.items():
        palette[index] = color[:3]
    return palette


def bits_of(raster: Any) -> int:
    """Bits of a pixel in the first band, as the file has them: 1, 2, 4, 8, ..."""
    bits = raster.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    return int(bits) if bits is not None else 8 * np.dtype(raster.dtypes[0]).itemsize


def check_colors(raster: Any, path: Path) -> None:
    """Refuses rasters whose numbers are not what is seen.

    Raises:
        SampleError: White is 0, or the colours are those of print.
    """
    tags = raster.tags(ns="IMAGE_STRUCTURE")
    if tags.get("MINISWHITE") == "YES":
        raise SampleError(f"{path}: white is stored as 0; save the file with black as 0 to read it by windows")
    if tags.get("SOURCE_COLOR_SPACE") == "CMYK" or raster.colorinterp[0].name == "cyan":
        raise SampleError(f"{path}: colours of print (CMYK) are not read by windows; convert the file to RGB")
