"""Images of rare classes more often: the sampler. Crops around their pixels: `aucseg.loading.crops`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from aucseg.statistics.class_statistics import ClassStatistics

_MIX = 0x9E3779B97F4A7C15


def numbered_generator(seed: int, number: int) -> torch.Generator:
    """A CPU generator whose draws depend on the seed and the number alone: that of an epoch, of a sample, ..."""
    return torch.Generator().manual_seed((seed * _MIX + number) % 2**63)


class DrawnIndex(int):
    """An index into a data set that knows which draw of the run it is, so that transforms can draw the same again."""

    draw: int

    def __new__(cls, index: int, draw: int = 0) -> DrawnIndex:
        """Make the index."""
        drawn = super().__new__(cls, index)
        drawn.draw = draw
        return drawn


class RareClassSampler(Sampler[int]):
    """Draws a class, rare ones more often, then an image that holds it (DAFormer, Hoyer et al., CVPR 2022).

    ``P(c) ~ exp((1 - q_c) / T)`` over the classes that occur, with q_c the class's presence (share of the images) or
    frequency (share of the pixels; DAFormer's choice); then an image uniformly among those with the class. Images are
    drawn with replacement.

    Each epoch is one sequence of draws that depends on seed and epoch alone; rank r of R takes the draws r, r + R, r +
    2R, ..., so the sequence does not depend on the number of ranks, nor on that of the loader's workers.

    Args:
        statistics: Counts of the data set, image i being its sample i.
        num_samples: Draws an epoch over all ranks; the number of images by default. Rounded up to a multiple of
            ``num_replicas``.
        temperature: T > 0; smaller means rarer classes more often. 0.3 did better than 0.1 on Cityscapes.
        by: ``presence`` or ``frequency``.
        seed: Seed of the draws.
        num_replicas: Number of ranks.
        rank: This rank.

    Raises:
        ValueError: An argument out of its range, or statistics without a class.

    Example:
        >>> import numpy as np
        >>> from aucseg.statistics.class_statistics import ClassStatistics
        >>> statistics = ClassStatistics(2)
        >>> for labels in ([[0, 0]], [[0, 0]], [[0, 1]]):
        ...     statistics.update(np.array(labels))
        >>> sampler = RareClassSampler(statistics, num_samples=1000, temperature=0.05)
        >>> sum(index == 2 for index in sampler) > 900
        True
    """

    def __init__(
        self,
        statistics: ClassStatistics,
        *,
        num_samples: int | None = None,
        temperature: float = 0.3,
        by: str = "presence",
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        if by not in ("presence", "frequency"):
            raise ValueError(f"by must be 'presence' or 'frequency', not {by!r}")
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be positive, not {temperature}")
        if num_replicas < 1 or not 0 <= rank < num_replicas:
            raise ValueError(f"rank must lie in 0..num_replicas-1, not rank={rank} with num_replicas={num_replicas}")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        image_classes = torch.from_numpy(statistics.image_classes)
        occurs = image_classes.any(0)
        if not occurs.any():
            raise ValueError("no class occurs in these statistics; count the training set first")
        share = torch.from_numpy(statistics.presence if by == "presence" else statistics.frequency)
        self.class_probabilities = torch.softmax(((1 - share) / temperature).masked_fill(~occurs, -math.inf), 0)
        # Images grouped by class, one after the other: class c has the places start[c] .. start[c] + count[c] - 1.
        self._images = image_classes.T.nonzero()[:, 1]
        self._count = image_classes.sum(0)
        self._start = self._count.cumsum(0) - self._count
        self.num_samples = math.ceil((num_samples or statistics.num_images) / num_replicas)
        self.seed, self.num_replicas, self.rank = seed, num_replicas, rank
        self.epoch = 0
        self._first = 0

    def __len__(self) -> int:
        """Draws that this rank still makes in the epoch."""
        return self.num_samples - self._first

    def __iter__(self) -> Iterator[int]:
        total = self.num_samples * self.num_replicas
        generator = numbered_generator(self.seed, self.epoch)
        classes = torch.multinomial(self.class_probabilities, total, replacement=True, generator=generator)
        place = (torch.rand(total, generator=generator, dtype=torch.float64) * self._count[classes]).long()
        images = self._images[self._start[classes] + place].tolist()
        first, self._first = self._first, 0
        for i in range(self.rank + first * self.num_replicas, total, self.num_replicas):
            yield DrawnIndex(images[i], self.epoch * total + i)

    def set_epoch(self, epoch: int) -> None:
        """Choose the sequence of draws; call it before each epoch."""
        self.epoch = epoch

    def state_dict(self, num_consumed: int = 0) -> dict[str, int]:
        """Return what :meth:`load_state_dict` needs to go on in the middle of an epoch.

        Args:
            num_consumed: Samples of this epoch that this rank has trained on. The sampler cannot know: a loader's
                workers are ahead.
        """
        return {"epoch": self.epoch, "num_consumed": num_consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken: the next epoch's iteration begins after the consumed samples."""
        if not 0 <= state["num_consumed"] <= self.num_samples:
            raise ValueError(f"num_consumed must lie in 0..{self.num_samples}, not {state['num_consumed']}")
        self.epoch, self._first = state["epoch"], state["num_consumed"]
