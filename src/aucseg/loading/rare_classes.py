"""Images of rare classes more often: two samplers. Crops around their pixels: `aucseg.loading.crops`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from aucseg.hints import check_choice

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
        """Makes the index."""
        drawn = super().__new__(cls, index)
        drawn.draw = draw
        return drawn


class _DrawnSampler(Sampler[int]):
    """Draws as many images an epoch as asked for, on all ranks together.

    Each epoch is one sequence of draws that depends on seed and epoch alone; rank r of R takes the draws r, r + R, r +
    2R, ..., so the sequence does not depend on the number of ranks, nor on that of the loader's workers.
    """

    def __init__(
        self, statistics: ClassStatistics, num_samples: int | None, by: str, seed: int, num_replicas: int, rank: int
    ) -> None:
        check_choice("by", by, ("presence", "frequency"))
        if num_replicas < 1 or not 0 <= rank < num_replicas:
            raise ValueError(f"rank must lie in 0..num_replicas-1, not rank={rank} with num_replicas={num_replicas}")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if not statistics.image_classes.any():
            raise ValueError("no class occurs in these statistics; count the training set first")
        self.num_drawn = num_samples or statistics.num_images
        self.num_samples = math.ceil(self.num_drawn / num_replicas)
        self.seed, self.num_replicas, self.rank = seed, num_replicas, rank
        self.epoch = 0
        self._first = 0

    @abstractmethod
    def _images_of(self, total: int, generator: torch.Generator) -> Tensor:
        """The images of an epoch, in their order."""

    def __len__(self) -> int:
        """Draws that this rank still makes in the epoch."""
        return self.num_samples - self._first

    def __iter__(self) -> Iterator[int]:
        images = self._images_of(self.num_drawn, numbered_generator(self.seed, self.epoch)).tolist()
        first, self._first = self._first, 0
        total = self.num_samples * self.num_replicas
        for i in range(self.rank + first * self.num_replicas, total, self.num_replicas):
            # So that all ranks have as many, the first draws come once more at the end.
            place = i % self.num_drawn
            yield DrawnIndex(images[place], self.epoch * self.num_drawn + place)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the sequence of draws; call it before each epoch."""
        self.epoch = epoch

    def state_dict(self, num_consumed: int = 0) -> dict[str, int]:
        """Returns what `load_state_dict` needs to go on in the middle of an epoch.

        Args:
            num_consumed: Samples of this epoch that this rank has trained on. The sampler cannot know: a loader's
                workers are ahead.
        """
        return {"epoch": self.epoch, "num_consumed": num_consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken: the next epoch's iteration begins after the consumed samples."""
        if not 0 <= state["num_consumed"] <= self.num_samples:
            raise ValueError(f"num_consumed must lie in 0..{self.num_samples}, got {state['num_consumed']}")
        self.epoch, self._first = state["epoch"], state["num_consumed"]


class RareClassSampler(_DrawnSampler):
    """Draws a class, rare ones more often, then an image that holds it (DAFormer, Hoyer et al., CVPR 2022).

    `P(c) ~ exp((1 - q_c) / T)` over the classes that occur, with q_c the class's presence (share of the images) or
    frequency (share of the pixels; DAFormer's choice); then an image uniformly among those with the class. Images are
    drawn with replacement, those without a rare class seldom.

    Each epoch is one sequence of draws that depends on seed and epoch alone; rank r of R takes the draws r, r + R, r +
    2R, ..., so the sequence does not depend on the number of ranks, nor on that of the loader's workers.

    Args:
        statistics: Counts of the data set, image i being its sample i.
        num_samples: Draws an epoch over all ranks; the number of images by default. Where ranks do not divide it, the
            first draws come once more at the end.
        temperature: T > 0; smaller means rarer classes more often. 0.3 did better than 0.1 on Cityscapes.
        by: `presence` or `frequency`.
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
        super().__init__(statistics, num_samples, by, seed, num_replicas, rank)
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be positive, got {temperature}")
        image_classes, share = torch.from_numpy(statistics.image_classes), _share(statistics, by)
        occurs = image_classes.any(0)
        self.class_probabilities = torch.softmax(((1 - share) / temperature).masked_fill(~occurs, -math.inf), 0)
        # Images grouped by class, one after the other: class c has the places start[c] .. start[c] + count[c] - 1.
        self._images = image_classes.T.nonzero()[:, 1]
        self._count = image_classes.sum(0)
        self._start = self._count.cumsum(0) - self._count

    def _images_of(self, total: int, generator: torch.Generator) -> Tensor:
        classes = torch.multinomial(self.class_probabilities, total, replacement=True, generator=generator)
        place = (torch.rand(total, generator=generator, dtype=torch.float64) * self._count[classes]).long()
        return self._images[self._start[classes] + place]


class RepeatFactorSampler(_DrawnSampler):
    r"""Draws each image as often as its rarest class asks for (Gupta, Dollár & Girshick, LVIS, CVPR 2019).

    .. math:: r_c = \min(r_{max}, \max(1, \sqrt{t / q_c})), \qquad r_i = \max_{c \in i} r_c,

    with :math:`q_c` the class's presence (share of the images) or frequency (share of the pixels). An image comes
    :math:`r_i / \bar r` times an epoch on average: each epoch has this number of it, rounded up or down, so that no
    image is left out for long. LVIS has no bound :math:`r_{max}`, and longer epochs instead of the mean :math:`\bar r`.

    Args:
        statistics: Counts of the data set, image i being its sample i.
        num_samples: Draws an epoch over all ranks; the number of images by default. Where ranks do not divide it, the
            first draws come once more at the end.
        threshold: :math:`t`, above 0: classes with a greater share ask for nothing.
        max_factor: :math:`r_{max}`, at least 1.
        by: `presence` or `frequency`.
        seed: Seed of the draws.
        num_replicas: Number of ranks.
        rank: This rank.

    Attributes:
        factors: (number of images,) times an epoch that each image comes on average.

    Raises:
        ValueError: An argument out of its range, or statistics without a class.

    Example:
        >>> import numpy as np
        >>> from aucseg.statistics.class_statistics import ClassStatistics
        >>> statistics = ClassStatistics(2)
        >>> for labels in ([[0, 0]], [[0, 0]], [[0, 0]], [[0, 1]]):
        ...     statistics.update(np.array(labels))
        >>> RepeatFactorSampler(statistics, threshold=1.0).factors.tolist()
        [0.8, 0.8, 0.8, 1.6]
    """

    def __init__(
        self,
        statistics: ClassStatistics,
        *,
        num_samples: int | None = None,
        threshold: float = 0.3,
        max_factor: float = 5.0,
        by: str = "presence",
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(statistics, num_samples, by, seed, num_replicas, rank)
        if not (math.isfinite(threshold) and threshold > 0):
            raise ValueError(f"threshold must be positive, got {threshold}")
        if not max_factor >= 1:
            raise ValueError(f"max_factor must be at least 1, got {max_factor}")
        image_classes = torch.from_numpy(statistics.image_classes)
        by_class = (threshold / _share(statistics, by)).sqrt().clamp(1, max_factor)
        # An image of ignored pixels alone has no class.
        by_image = torch.where(image_classes, by_class, 1).amax(1)
        self.factors: Tensor = by_image / by_image.mean()

    def _images_of(self, total: int, generator: torch.Generator) -> Tensor:
        # Places at equal distances over the factors, one beside the other: each image has its factor's number of them,
        # rounded up or down.
        order = torch.randperm(len(self.factors), generator=generator)
        reach = self.factors[order].cumsum(0)
        places = (torch.arange(total) + torch.rand((), generator=generator, dtype=torch.float64)) * (reach[-1] / total)
        images = order[torch.searchsorted(reach, places, right=True).clamp(max=len(order) - 1)]
        return images[torch.randperm(total, generator=generator)]


def _share(statistics: ClassStatistics, by: str) -> Tensor:
    """Each class's share of the images or of the pixels (K,), float64."""
    return torch.from_numpy(statistics.presence if by == "presence" else statistics.frequency)


SAMPLERS: dict[str, type[RareClassSampler] | type[RepeatFactorSampler]] = {
    "rare_class": RareClassSampler,
    "repeat_factor": RepeatFactorSampler,
}
"""Samplers that need the counts of the classes, by the name that `data.sampler` has for them."""
