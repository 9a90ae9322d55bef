"""How often tail classes are seen, before pasting and after, and which of them are never stored."""

import warnings
from collections.abc import Sequence

import numpy as np

from aucseg.memory_bank.components import Bools

# Images that hold a class of which nothing could be stored, before the warning.
_NUM_IN_VAIN = 20


class PresenceCounts:
    """In how many images each tail class was seen, and in how many units it was after pasting.

    Args:
        num_tail: Number of tail classes.
    """

    def __init__(self, num_tail: int) -> None:
        self.images = 0
        self.images_with = [0] * num_tail
        self._units = 0
        self._units_reached = [0] * num_tail

    @property
    def seen(self) -> list[float]:
        """Share of the images that held each class; 0 before the first image."""
        return [count / max(self.images, 1) for count in self.images_with]

    @property
    def reached(self) -> list[float]:
        """Share of the units that held each class after pasting; 0 before the first one."""
        return [count / max(self._units, 1) for count in self._units_reached]

    def see(self, present: Bools) -> None:
        """Counts images before pasting: (B, num_tail) whether each holds each class."""
        self.images += len(present)
        self.images_with = (self.images_with + present.sum(0)).tolist()

    def reach(self, held: Bools) -> None:
        """Counts units after pasting: (units, num_tail) whether each holds each class."""
        self._units += len(held)
        self._units_reached = (self._units_reached + held.sum(0)).tolist()


def in_any(rows: Bools) -> Bools:
    """Which classes any of the images holds, (1, num_tail)."""
    return np.logical_or.reduce(rows, axis=0, keepdims=True)


class NeverStored:
    """Warns once about a tail class that images hold and of which nothing is ever stored.

    Args:
        tail_classes: Ids of the tail classes.
        min_pixels: Setting of the bank.
        max_bytes: Setting of the bank.
    """

    def __init__(self, tail_classes: Sequence[int], min_pixels: int, max_bytes: int | None) -> None:
        self._tail_classes = tail_classes
        self._min_pixels = min_pixels
        self._max_bytes = max_bytes
        # For each class that was never stored nor warned about: how many images held it.
        self._in_vain = dict.fromkeys(range(len(tail_classes)), 0)

    def update(self, present: Bools, stored: set[int]) -> None:
        """Counts a batch.

        Args:
            present: (B, num_tail) whether each image holds each class.
            stored: The classes of which something was stored.
        """
        for position in stored:
            self._in_vain.pop(position, None)
        if not self._in_vain:
            return
        num_images = present.sum(0).tolist()
        for position in self._in_vain:
            self._in_vain[position] += num_images[position]
        never = [position for position, count in self._in_vain.items() if count >= _NUM_IN_VAIN]
        if not never:
            return
        for position in never:
            del self._in_vain[position]
        ids = ", ".join(str(self._tail_classes[position]) for position in never)
        classes = f"tail class {ids}" if len(never) == 1 else f"tail classes {ids}"
        no_bound = self._max_bytes is None
        warnings.warn(
            f"the memory bank has stored nothing of {classes}, though {_NUM_IN_VAIN} images or more held each: no "
            f"component has min_pixels={self._min_pixels} pixels"
            f"{'' if no_bound else f', or a sample is larger than max_bytes={self._max_bytes}'}. Without a sample a "
            "class is never pasted: give TailMemoryBank a smaller min_pixels (1 stores every component)"
            f"{'' if no_bound else ' or a larger max_bytes'}",
            stacklevel=2,
        )
