"""What a plan needs to know of a data set: sizes, counts and splits, and no image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from aucseg.datasets.card import DatasetCard
from aucseg.datasets.counting import MaskScan
from aucseg.datasets.propose import HELD_OUT_SHARE
from aucseg.statistics.advice import choose_groups
from aucseg.statistics.class_statistics import ClassStatistics

# Quantile of the sizes of a tail class's objects that counts as small.
_SMALL = 0.1
# Masks that are read for the number of objects in them.
_MASKS_READ = 48


@dataclass(frozen=True)
class DataFingerprint:
    """The figures of a data set that a plan follows from.

    Attributes:
        title: What the data set is called.
        statistics: Counts of the images of the training split, those held out included.
        groups: `{"head": [class ids], "middle": [...], "tail": [...]}`.
        by_share: Whether the groups follow from the counts, and not from the card.
        num_channels: Channels of an image.
        size: Median (height, width) of the training images, in pixels.
        largest: (height, width) of the largest one.
        one_size: Whether all are of one size.
        mean_pixels: Mean pixels of an image.
        tail_share: Share of the image that an object of the tail has, on average over an image, in nine of ten of its
            occurrences or more; None without a tail.
        val_split: Name of the split to validate on, None where training images are held out for that.
        num_validation: Images to validate on.
        held_out_share: Share of the training images that is validated on, 0 where there is a split.
        fold: Number of the fold that these are, and how many there are; None where they are held out.
        bands: Mean and standard deviation of each band in 0..255 where the card names bands, else None.
        value_range: For each band the values that become 0 and 255; None where they are 0 and 255.
        proposes_range: Whether that range was found in the images, and not given by a card.
    """

    title: str
    statistics: ClassStatistics
    groups: Mapping[str, Sequence[int]]
    by_share: bool
    num_channels: int
    size: tuple[int, int]
    largest: tuple[int, int]
    one_size: bool
    mean_pixels: float
    tail_share: float | None
    val_split: str | None
    num_validation: int
    held_out_share: float
    bands: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    value_range: tuple[tuple[float, float], ...] | None = None
    proposes_range: bool = False
    fold: tuple[int, int] | None = None

    @property
    def num_training(self) -> int:
        """Images to train on, without those held out or in the fold."""
        return max(1, self.statistics.num_images - round(self.held_out_share * self.statistics.num_images))


class ImageSizes:
    """Collects the sizes of images, and of the classes in them, from the scans of their masks.

    Example:
        >>> from aucseg.datasets.counting import scan_mask
        >>> sizes = ImageSizes()
        >>> for width in (40, 40, 60):
        ...     sizes.add(scan_mask(np.repeat(np.arange(2), width // 2)[None].repeat(30, 0)), 0)
        >>> sizes.median, sizes.largest, sizes.smallest_share([1])
        ((30, 40), (30, 60), 0.5)
    """

    def __init__(self) -> None:
        self._sizes: list[tuple[int, int]] = []
        self._shares: dict[int, list[tuple[float, int]]] = {}

    def add(self, scan: MaskScan, index: int) -> None:
        """Notes one image, given the scan of its mask of train ids, and its place in the data set."""
        self._sizes.append((scan.height, scan.width))
        for class_id, count in zip(scan.ids.tolist(), scan.counts.tolist(), strict=True):
            self._shares.setdefault(class_id, []).append((count / (scan.height * scan.width), index))

    @property
    def median(self) -> tuple[int, int]:
        """(height, width): the median of each."""
        height, width = np.median(np.array(self._sizes), axis=0).round().astype(int).tolist()
        return height, width

    @property
    def largest(self) -> tuple[int, int]:
        """(height, width) of the image with most pixels."""
        return max(self._sizes, key=lambda size: size[0] * size[1])

    @property
    def one_size(self) -> bool:
        """Whether all images are of one size."""
        return len(set(self._sizes)) == 1

    @property
    def mean_pixels(self) -> float:
        """Mean pixels of an image."""
        return float(np.mean([height * width for height, width in self._sizes]))

    def smallest_share(
        self, classes: Sequence[int], read_mask: Callable[[int], npt.NDArray[Any]] | None = None
    ) -> float | None:
        """Share of the image that an object has in nine of ten images with one; None where the classes never occur.

        Args:
            classes: Ids of the classes.
            read_mask: Mask of train ids of an image, by its place. Some are read to divide what a class has in an image
                by the number of its objects; None takes each class of an image for one object.
        """
        found = [(share, index, c) for c in classes for share, index in self._shares.get(c, ())]
        if not found:
            return None
        if read_mask is None:
            return float(np.quantile([share for share, _, _ in found], _SMALL))
        step = -(-len(found) // _MASKS_READ)
        masks = lru_cache(maxsize=1)(read_mask)
        chosen = sorted(found[::step], key=lambda entry: entry[1])
        return float(np.quantile([share / count_objects(masks(i) == c) for share, i, c in chosen], _SMALL))


def count_objects(is_class: npt.NDArray[np.bool_]) -> int:
    """Number of objects in a mask (H, W), at least 1.

    This is the Euler number of the pixels with their four neighbours (Gray, IEEE Transactions on Computers 1971), which
    a hole lowers by one.

    Example:
        >>> mask = np.zeros((9, 9), bool)
        >>> mask[1:3, 1:4], mask[5:, 6:], mask[7, 1] = True, True, True
        >>> count_objects(mask)
        3
    """
    right, down = is_class[:, 1:] & is_class[:, :-1], is_class[1:] & is_class[:-1]
    squares = down[:, 1:] & down[:, :-1]
    pixels, edges = np.count_nonzero(is_class), np.count_nonzero(right) + np.count_nonzero(down)
    return max(1, int(pixels - edges + np.count_nonzero(squares)))


def fingerprint(
    card: DatasetCard,
    statistics: ClassStatistics,
    sizes: ImageSizes,
    *,
    val_split: str = "val",
    num_validation: int | None = None,
    held_out_share: float | None = None,
    fold: tuple[int, int] | None = None,
    bands: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    proposes_range: bool = False,
    read_mask: Callable[[int], npt.NDArray[Any]] | None = None,
) -> DataFingerprint:
    """Puts together what was counted.

    Args:
        card: The card of the data.
        statistics: Counts of the training split.
        sizes: Sizes of the same images.
        val_split: Split to validate on.
        num_validation: Its number of images; None where there is no such split, or training images are to be held out.
        held_out_share: Share of the training images to hold out in that case; None for the card's, or else a fifth.
        fold: Number of the fold to validate on instead, and how many there are.
        bands: Mean and standard deviation of each band where the card names bands.
        proposes_range: Whether the card's range of values was found in the images.
        read_mask: Mask of a training image by its place, see `ImageSizes.smallest_share`.
    """
    groups, _ = choose_groups(statistics, card)
    share = 0.0
    if fold is not None:
        share = 1 / fold[1]
        num_validation = max(1, round(share * statistics.num_images))
    elif num_validation is None:
        share = held_out_share or card.held_out_share or HELD_OUT_SHARE
        num_validation = max(1, round(share * statistics.num_images))
    return DataFingerprint(
        title=card.title or card.name,
        statistics=statistics,
        groups=groups,
        by_share=groups == statistics.groups(),
        num_channels=card.num_channels,
        size=sizes.median,
        largest=sizes.largest,
        one_size=sizes.one_size,
        mean_pixels=sizes.mean_pixels,
        tail_share=sizes.smallest_share(groups["tail"], read_mask),
        val_split=None if share else val_split,
        num_validation=num_validation,
        held_out_share=share,
        bands=bands,
        value_range=card.value_range,
        proposes_range=proposes_range,
        fold=fold,
    )
