"""The files of one split of a data set, for whatever looks at files without making tensors of them.

This module imports neither torch nor anything heavy: counting and checking start at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from aucseg.datasets.bands import check_card_image, read_card_image
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.files import Array, SampleError
from aucseg.datasets.label_map import LabelMap
from aucseg.datasets.mask_windows import read_tile_of_mask
from aucseg.datasets.pairing import Pair, find_pairs
from aucseg.datasets.windows import tiles_of_files
from aucseg.hints import check_choice

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)
# Smaller windows show a model nothing.
MIN_TILE = 64


def evenly_spaced(items: Sequence[_T], count: int) -> list[_T]:
    """At most a given number of the items, in order, for a look at a part of them.

    Example:
        >>> evenly_spaced("abcdefgh", 3), evenly_spaced("ab", 3)
        (['a', 'c', 'f'], ['a', 'b'])
    """
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


class SplitOfFiles:
    """Where the images and masks of one split lie.

    Args:
        card: A card, the name of one that comes with the package, or the path of a card file.
        root: Folder of the data; None for data embedded in the package.
        split: A split that the card names.
        on_error: `raise`, or `skip`: pairs that lack a file are logged and left out.
        follow_symlinks: Whether files may lie outside the root, reached by symbolic links below it.
        tile: Side in pixels of the windows by which larger images are read; each of their tiles is a sample. None
            reads images whole.

    Attributes:
        pairs: Paths of image and mask of each sample, below the root, and its tile.
        missing: Pairs of which the image or the mask does not exist; not among the samples.
        label_map: Raw ids to train ids.

    Raises:
        ValueError: Unknown card or split, missing root, no image, images without masks, a tile below 64.
        ImportError: Tiles without rasterio.

    Example:
        >>> split = SplitOfFiles("freedoom_lt", split="val")
        >>> split.image_path(0).suffix, len(split) == len(split.pairs)
        ('.jpg', True)
    """

    def __init__(
        self,
        card: DatasetCard | str | Path,
        root: str | Path | None = None,
        split: str = "train",
        on_error: str = "raise",
        *,
        follow_symlinks: bool = True,
        tile: int | None = None,
    ) -> None:
        if tile is not None and tile < MIN_TILE:
            raise ValueError(f"tile is the side of a window in pixels, at least {MIN_TILE}, got {tile}")
        check_choice("on_error", on_error, ("raise", "skip"))
        self.card = card if isinstance(card, DatasetCard) else DatasetCard.load(card)
        folder = self.card.embedded_root() if root is None else Path(root)
        if folder is None:
            raise ValueError(
                f"data set {self.card.name!r} is not embedded in the package: give its root folder (--root DIR). "
                f"{self.card.source}".rstrip()
            )
        self.root = folder
        self._real_root = os.path.realpath(folder)
        self._real_folders: dict[str, str] = {}
        self.split = split
        self.on_error = on_error
        self.follow_symlinks = follow_symlinks
        files = find_pairs(self.card, folder, split)
        self.pairs, self.missing = files.pairs, files.missing
        self.label_map = LabelMap(self.card, train_ids=files.train_ids)
        if self.missing:
            self._report_missing()
        self.tile = tile
        if tile is not None:
            self.pairs = self._cut(tile)

    def _cut(self, side: int) -> list[Pair]:
        """The pairs with one for each tile of a large image."""
        paths = [self._inside(pair.image) for pair in self.pairs]
        tiles = tiles_of_files(paths, side)
        return [replace(pair, tile=one) for pair, found in zip(self.pairs, tiles, strict=True) for one in found]

    def _report_missing(self) -> None:
        missing = self.missing
        shown = "; ".join(
            pair.image if pair.mask is None else f"{pair.image} needs {pair.mask}" for pair in missing[:3]
        )
        message = (
            f"{self.root}: {len(missing)} of {len(missing) + len(self.pairs)} samples of split {self.split!r} lack "
            f"image or mask: {shown}"
        )
        if self.on_error == "raise" or not self.pairs:
            raise ValueError(
                f"{message}. Add the files, or correct the patterns in the card. Training ('aucseg fit' with "
                "--data.on_error skip) and 'aucseg stats' (--on-error skip) can leave such samples out; in Python: "
                "on_error='skip'"
            )
        _logger.warning("%s; they are left out", message)

    def __len__(self) -> int:
        return len(self.pairs)

    def read_mask(self, index: int) -> Array:
        """Returns the mask of a sample as an array (H, W) of train ids, without its image; errors are raised."""
        pair = self.pairs[index]
        try:
            return self.label_map(self.read_raw(index))
        except SampleError:
            raise
        except ValueError as error:
            raise SampleError(f"{self.root / (pair.mask or '')}: {error}") from error

    def read_raw(self, index: int) -> Array:
        """Returns the raw ids (H, W) of a sample's mask, of a tile those of its core."""
        return read_tile_of_mask(self.mask_path(index), self.card, self.pairs[index].tile).values

    def read_image(self, index: int) -> tuple[Array, npt.NDArray[np.bool_] | None]:
        """Returns what `aucseg.datasets.bands.read_card_image` gives for a sample, of a tile for its core."""
        tile = self.pairs[index].tile
        return read_card_image(self.image_path(index), self.card, window=None if tile is None else tile.core)

    def image_size(self, index: int) -> tuple[int, int]:
        """Returns (height, width) of a sample's image, or of the window that is read of it, without reading it."""
        tile = self.pairs[index].tile
        if tile is not None:
            return tile.window.height, tile.window.width
        return check_card_image(self.image_path(index), self.card)

    def mask_path(self, index: int) -> Path:
        """Returns the path of a sample's mask."""
        mask = self.pairs[index].mask
        if mask is None:
            raise SampleError(f"split {self.split!r} of data set {self.card.name!r} has no masks")
        return self._inside(mask)

    def image_path(self, index: int) -> Path:
        """Returns the path of a sample's image."""
        return self._inside(self.pairs[index].image)

    def _inside(self, file: str) -> Path:
        path = self.root / file
        folder = os.path.dirname(file)
        if not self.follow_symlinks:
            # Resolving asks the disk once for every part of a path: folders are resolved once, files where they are
            # links.
            if folder not in self._real_folders:
                self._real_folders[folder] = os.path.realpath(self.root / folder)
            real = os.path.realpath(path) if path.is_symlink() else self._real_folders[folder]
            if os.path.commonpath([real, self._real_root]) != self._real_root:
                raise SampleError(
                    f"{path}: a symbolic link leads out of the root folder, to {real}; set "
                    "follow_symlinks=True (data.follow_symlinks) if it is yours, or copy the files"
                )
        return path
