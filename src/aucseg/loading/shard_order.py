"""An endless stream of training samples from shards, in step with `aucseg.loading.sample_order.SampleStream`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from aucseg.datasets.files import SampleError
from aucseg.datasets.shards import StreamedSegmentationDataset
from aucseg.randomness import seeded


class ShardStream(IterableDataset[dict[str, Any]]):
    """Training samples from shards, epoch after epoch, the augmentation of each drawn from its place in the run.

    Place and seed are those that the sample would have from a folder: with one rank, at most one loader process and
    no shuffling, a run sees what a run from the folder with `sampler: sequential` sees. A resumed run reads over what
    the first part has used up, without decoding it (with `on_error="skip"` it decodes, to leave out the same).

    Args:
        dataset: The shards, without a transform.
        transform: What is done to each sample.
        batch_size: Samples in a batch on this rank.
        seed_of: From the position of a sample in the run, over all ranks, to the seed of its augmentation.
        rank: This process.
        world_size: Number of processes.
        start_batch: Batch to begin with, counted from the beginning of the run.

    Raises:
        ValueError: On iteration, where a loader process gets no shard or no sample.
    """

    def __init__(
        self,
        dataset: StreamedSegmentationDataset,
        transform: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        batch_size: int,
        seed_of: Callable[[int], int],
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.batch_size = batch_size
        self.seed_of = seed_of
        self.rank = rank
        self.world_size = world_size
        self.start_batch = start_batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        num_workers = 1 if info is None else info.num_workers
        # The loader asks worker 0 for its first batch, also on a resumed run, whose first batch was another's turn.
        worker = (self.start_batch + (0 if info is None else info.id)) % num_workers
        batches_done = len(range(worker, self.start_batch, num_workers))
        samples = self._samples(worker, num_workers, batches_done * self.batch_size)
        for batch in itertools.count(worker + batches_done * num_workers, num_workers):
            first = batch * self.batch_size * self.world_size + self.rank
            for place in range(self.batch_size):
                sample = next(samples)
                with seeded(self.seed_of(first + place * self.world_size)):
                    transformed = self.transform(sample)
                yield transformed

    def _samples(self, worker: int, num_workers: int, num_done: int) -> Iterator[dict[str, Any]]:
        """Yields the samples of a worker without those it has had."""
        dataset, number = self.dataset, 0
        for epoch in itertools.count():
            before = number
            for entries in dataset.entries(epoch, (worker, num_workers)):
                if number < num_done and dataset.on_error == "raise":
                    number += 1
                    continue
                try:
                    sample = dataset.decode(entries)
                except SampleError as error:
                    dataset.handle(error)
                    continue
                number += 1
                if number > num_done:
                    yield sample
            if number == before:
                raise ValueError(
                    f"no sample for loader process {worker + 1} of {num_workers} on rank {self.rank} of "
                    f"{self.world_size}, with {len(dataset.urls)} shards: write more shards, or lower data.num_workers"
                )
