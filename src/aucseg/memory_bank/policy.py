"""Which of the missing classes are pasted: the policies of the memory bank, and the presence that they go by.

A policy draws among the tail classes that a unit (an image, or a batch with ``scope="batch"``) lacks. Classes go by
their position among the tail classes here.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from aucseg.memory_bank.components import Bools


class PresenceCounts:
    """In how many images each tail class was seen, and in how many units it was after pasting.

    Args:
        num_tail: number of tail classes.
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


def draw_share_of_missing(
    stored: Sequence[int], num_missing: int, sample_ratio: float, generator: torch.Generator
) -> list[int]:
    r"""The paper's policy: :math:`\lceil |C_{miss}| R_S \rceil` classes, without replacement.

    Args:
        stored: missing classes that have something stored.
        num_missing: missing classes, those with nothing stored included.
        sample_ratio: :math:`R_S`, 0..1.
        generator: CPU generator of the draw.

    Example:
        >>> sorted(draw_share_of_missing([2, 5], num_missing=4, sample_ratio=0.5, generator=torch.Generator()))
        [2, 5]
    """
    # The small number keeps 0.07 * 100 = 7.000000000000001 from becoming 8.
    wanted = math.ceil(num_missing * sample_ratio - 1e-9)
    drawn: list[int] = torch.randperm(len(stored), generator=generator, device="cpu")[:wanted].tolist()
    return [stored[index] for index in drawn]


def draw_to_presence(
    stored: Sequence[int],
    shares: Sequence[float],
    target: float,
    generator: torch.Generator,
    max_factor: float | None = None,
) -> list[int]:
    r"""Each class on its own, with the probability :math:`\max(0, (t - p) / (1 - p))` that lifts it to the target.

    Args:
        stored: missing classes that have something stored.
        shares: :math:`p` of each tail class, the share of the units that hold it, 0..1.
        target: :math:`t`, 0..1.
        generator: CPU generator of the draws.
        max_factor: the target of a class is at most this many times :math:`p`; None for no bound.

    Example:
        >>> draw_to_presence([0, 1], shares=[0.2, 0.9], target=1.0, generator=torch.Generator())
        [0, 1]
        >>> draw_to_presence([0, 1], shares=[0.6, 0.9], target=0.5, generator=torch.Generator())
        []
        >>> draw_to_presence([0, 1], shares=[0.0, 0.5], target=1.0, generator=torch.Generator(), max_factor=2.0)
        [1]
    """
    targets = [target if max_factor is None else min(target, max_factor * share) for share in shares]
    uniform: list[float] = torch.rand(len(stored), generator=generator, dtype=torch.float64, device="cpu").tolist()
    return [
        position
        for position, draw in zip(stored, uniform, strict=True)
        if shares[position] < 1 and draw < (targets[position] - shares[position]) / (1 - shares[position])
    ]
