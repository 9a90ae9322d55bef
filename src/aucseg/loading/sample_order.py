"""In which order samples come, and with which seed: by their position in the run alone."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from aucseg.datasets import SegmentationDataset
from aucseg.loading.rare_classes import SAMPLERS
from aucseg.randomness import seeded, stable_seed
from aucseg.statistics.class_statistics import ClassStatistics

EpochOrder = Callable[[int], Sequence[int]]
"""From an epoch's number to the indices of its samples, the same on every rank."""


class SampleStream(Sampler[list[tuple[int, int]]]):
    """An endless stream of batches of `(index, seed)` in which the position alone decides sample and augmentation.

    A run that starts at any position therefore sees exactly what an uninterrupted run would see from there on, whatever
    the number of loader processes: there is no state to save but the position. Epochs follow each other inside batches,
    so no sample is dropped and a batch may be larger than the data set.

    Args:
        epoch_order: From an epoch's number to the indices of its samples.
        batch_size: Samples in a batch on this rank.
        seed: Seed of the augmentations.
        rank: This process; it takes every `world_size`-th sample.
        world_size: Number of processes.
        start_batch: Batch to begin with, counted from the beginning of the run.

    Raises:
        ValueError: For an epoch without samples.

    Example:
        >>> from itertools import islice
        >>> stream = SampleStream(lambda epoch: [2, 0, 1], batch_size=2, seed=0)
        >>> [[index for index, _ in batch] for batch in islice(stream, 3)]
        [[2, 0], [1, 2], [0, 1]]
        >>> resumed = SampleStream(lambda epoch: [2, 0, 1], batch_size=2, seed=0, start_batch=2)
        >>> next(iter(resumed)) == list(islice(stream, 3))[2]
        True
    """

    def __init__(
        self,
        epoch_order: EpochOrder,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
    ) -> None:
        if len(epoch_order(0)) == 0:
            raise ValueError("an epoch must have at least one sample, got none: is the training split empty?")
        self.epoch_order = epoch_order
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_batch = start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = 0, self.epoch_order(0)
        length = len(order)
        for batch in itertools.count(self.start_batch):
            samples = []
            first = batch * self.batch_size * self.world_size + self.rank
            for position in range(first, first + self.batch_size * self.world_size, self.world_size):
                if position // length != epoch:
                    epoch = position // length
                    order = self.epoch_order(epoch)
                samples.append((order[position % length], stable_seed(self.seed, position)))
            yield samples


class SeededDataset(Dataset[dict[str, Any]]):
    """Draws the augmentation of each sample from the seed that comes with its index.

    The seed goes to torch, `random` and numpy, so that transforms may draw from any of them; their states are put back.

    Args:
        dataset: The data set, its transform included.
    """

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index_and_seed: tuple[int, int]) -> dict[str, Any]:
        index, seed = index_and_seed
        with seeded(seed):
            return self.dataset[index]


def random_order(length: int, seed: int) -> EpochOrder:
    """Every sample once an epoch, in an order drawn from `seed` and the epoch's number.

    Example:
        >>> sorted(random_order(4, seed=0)(epoch=7))
        [0, 1, 2, 3]
    """

    def order(epoch: int) -> array[int]:
        generator = torch.Generator().manual_seed(stable_seed(seed, epoch))
        # Eight bytes an image; a list would take five times as much.
        return array("q", torch.randperm(length, generator=generator).numpy().tobytes())

    return order


def sequential_order(length: int, epoch: int) -> range:
    """Every sample once an epoch, in the order of the data set, whatever the `epoch`."""
    return range(length)


def drawn_order(sampler: str, statistics: ClassStatistics, seed: int, **options: Any) -> EpochOrder:
    """As many samples an epoch as there are images, drawn by a sampler of `aucseg.loading.rare_classes`.

    Args:
        sampler: Its name, of `SAMPLERS`.
        statistics: Counts of the data set, image i being its sample i.
        seed: Seed of the draws.
        **options: Options of the sampler, such as `temperature` and `by`.
    """
    drawn = SAMPLERS[sampler](statistics, seed=seed, **options)

    def order(epoch: int) -> list[int]:
        drawn.set_epoch(epoch)
        return [int(index) for index in drawn]

    return order


def epoch_order(
    sampler: str,
    length: int,
    seed: int,
    statistics_of: Callable[[], ClassStatistics],
    options: Mapping[str, Any],
) -> EpochOrder:
    """The order of a sampler: "random", "sequential", "rare_class" or "repeat_factor".

    Args:
        sampler: Its name.
        length: Number of training images.
        seed: Seed of the draws.
        statistics_of: Counts the training images, for those that need it.
        options: Of a sampler that needs the counts.

    Raises:
        ValueError: The counts are not of all images.
    """
    if sampler == "random":
        return random_order(length, seed)
    if sampler == "sequential":
        return partial(sequential_order, length)
    statistics = statistics_of()
    if statistics.num_images > length:
        raise ValueError(
            f"the sampler {sampler!r} needs the counts of the {length} training images, but those that were given are "
            f"of {statistics.num_images}: count this split ('aucseg stats --save'), or leave data.statistics out"
        )
    if statistics.num_images < length:
        raise ValueError(
            f"the sampler {sampler!r} needs the counts of all {length} training images, but "
            f"there are counts of {statistics.num_images}: leave data.statistics out where it is of another split, or "
            "repair or remove the files that cannot be read ('aucseg stats' names them)"
        )
    return drawn_order(sampler, statistics, seed, **options)


def images_of_epoch(num_images: int, limit: float | None, per_batch: int) -> int:
    """Number of images of an epoch, of which `limit_train_batches` may leave a part.

    Args:
        num_images: Images to train on, or those that the sampler draws.
        limit: Batches (int) or a share of the images in 0..1 (float); None for all.
        per_batch: Images of a batch, those of all processes together.

    Example:
        >>> images_of_epoch(100, None, 8), images_of_epoch(100, 0.1, 8), images_of_epoch(100, 5, 8)
        (100, 10, 40)
    """
    if limit is None:
        return num_images
    return min(num_images, int(limit * (per_batch if isinstance(limit, int) else num_images)))


def batches_of_epochs(epochs: float, num_images: int, per_batch: int) -> int:
    """Number of batches in some epochs, at least 1; the last batch of an epoch goes on with the next.

    Example:
        >>> batches_of_epochs(0.5, 100, 8), batches_of_epochs(2, 10, 8)
        (6, 2)
    """
    return max(1, round(epochs * num_images / per_batch))


def steps_of_epochs(epochs: int, num_images: int, per_step: int) -> int:
    """Number of steps of the optimizer that see all images of some epochs.

    Example:
        >>> steps_of_epochs(40, 10, 8)
        50
    """
    return -(-epochs * num_images // per_step)
