"""The samples that a memory bank holds: which are kept, and which go."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aucseg.memory_bank.components import keep_where
from aucseg.memory_bank.samples import Sample, cut_samples, sample_nbytes

# Images that hold a class of which nothing could be stored, before it is said.
_NUM_IN_VAIN = 20


class SampleStore:
    """Up to ``capacity`` samples of each tail class, together within ``max_bytes``.

    Classes go by their position among the tail classes here, 0..num_tail-1.

    Args:
        num_tail: number of tail classes.
        capacity: samples of each class.
        max_bytes: bound on ``nbytes``, or None.

    Attributes:
        samples: of each class, the oldest first.
    """

    def __init__(self, num_tail: int, capacity: int, max_bytes: int | None) -> None:
        self.capacity = capacity
        self.max_bytes = max_bytes
        self.samples: list[list[Sample]] = [[] for _ in range(num_tail)]

    @property
    def nbytes(self) -> int:
        """Bytes of all stored pixels and their places."""
        return sum(sample.nbytes for samples in self.samples for sample in samples)

    def add(
        self,
        images: Tensor,
        start: Tensor,
        length: Tensor,
        group: Tensor,
        component: Tensor,
        generator: torch.Generator,
    ) -> set[int]:
        """Stores a copy of each group's pixels; in a full class a random sample makes way.

        Args:
            images: (B, C, H, W).
            start: (R,) int64, where each run begins in the flattened (B, H, W); sorted by group, then by place.
            length: (R,) int64, pixels of each run.
            group: (R,) int64, image times number of tail classes plus position of the class.
            component: (R,) int64, number of each run's component within its group.
            generator: CPU generator of the choices.

        Returns:
            The classes of which something was stored; a sample above ``max_bytes`` by itself is not.
        """
        num_tail = len(self.samples)
        groups, index, num_runs = torch.unique_consecutive(group, return_inverse=True, return_counts=True)
        num_pixels = torch.zeros_like(groups).scatter_add_(0, index, length)
        table: list[list[int]] = torch.stack([groups, num_runs, num_pixels], dim=1).tolist()

        # Slots are chosen before any pixel is copied: what a later image of the same batch replaces need not be
        # copied. An integer stands for a sample that is still to be cut.
        slots: list[list[Sample | int]] = [list(samples) for samples in self.samples]
        added = set()
        for number, (group_id, r, p) in enumerate(table):
            if self.max_bytes is not None and sample_nbytes(r, p, images) > self.max_bytes:
                continue
            stored = slots[group_id % num_tail]
            if len(stored) == self.capacity:
                del stored[int(torch.randint(self.capacity, (), generator=generator))]
            stored.append(number)
            added.add(group_id % num_tail)

        new = sorted(entry for stored in slots for entry in stored if isinstance(entry, int))
        if len(new) < len(table):
            chosen = torch.zeros(len(table), dtype=torch.bool)
            chosen[new] = True
            start, length, component = keep_where(chosen.to(index.device)[index], start, length, component)
        run_counts = [table[number][1] for number in new]
        pixel_counts = [table[number][2] for number in new]
        cut = dict(zip(new, cut_samples(images, start, length, component, run_counts, pixel_counts), strict=True))
        self.samples = [[cut[e] if isinstance(e, int) else e for e in stored] for stored in slots]
        self._evict()
        return added

    def state(self) -> list[list[dict[str, Any]]]:
        """The samples as plain containers of tensors."""
        return [[sample._asdict() for sample in samples] for samples in self.samples]

    def extend(self, state: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """Adds the samples of a ``state()``, checked before; beyond the bounds the oldest go."""
        self.samples = [
            [*own, *(Sample(**sample) for sample in new)][-self.capacity :]
            for own, new in zip(self.samples, state, strict=True)
        ]
        self._evict()

    def _evict(self) -> None:
        """Drops samples until ``max_bytes`` is kept to."""
        if self.max_bytes is None:
            return
        excess = self.nbytes - self.max_bytes
        while excess > 0:
            most = max(len(samples) for samples in self.samples)
            candidates = [samples for samples in self.samples if len(samples) == most]
            fullest = max(candidates, key=lambda samples: sum(sample.nbytes for sample in samples))
            excess -= fullest.pop(0).nbytes

    def move(self, device: torch.device) -> None:
        """Brings all samples to a device."""
        # Each sample is asked: what another process has given may still lie on the CPU.
        if any(sample.values.device != device for samples in self.samples for sample in samples):
            self.samples = [
                [s._replace(runs=s.runs.to(device), values=s.values.to(device)) for s in samples]
                for samples in self.samples
            ]

    def check_format(self, images: Tensor) -> None:
        """Refuses images (B, C, H, W) unlike those that the samples are from.

        Raises:
            ValueError: another dtype, or another number of channels.
        """
        stored = next((samples[0].values for samples in self.samples if samples), None)
        if stored is not None and (stored.dtype != images.dtype or stored.shape[1] != images.shape[1]):
            raise ValueError(
                f"the bank holds {stored.dtype} pixels of {stored.shape[1]} channels, the images are {images.dtype} "
                f"with {images.shape[1]} channels: feed it at one place of the pipeline, or call clear() first"
            )


class NeverStored:
    """Says once of a tail class that images hold it and nothing of it is ever stored.

    Args:
        tail_classes: ids of the tail classes.
        min_pixels: setting of the bank.
        max_bytes: setting of the bank.
    """

    def __init__(self, tail_classes: Sequence[int], min_pixels: int, max_bytes: int | None) -> None:
        self._tail_classes = tail_classes
        self._min_pixels = min_pixels
        self._max_bytes = max_bytes
        # For each class of which nothing was stored, and nothing was said: how many images held it.
        self._in_vain = dict.fromkeys(range(len(tail_classes)), 0)

    def update(self, present: Sequence[Sequence[bool]], stored: set[int]) -> None:
        """Counts a batch.

        Args:
            present: (B, num_tail) whether each image holds each class.
            stored: the classes of which something was stored.
        """
        for position in stored:
            self._in_vain.pop(position, None)
        for position in self._in_vain:
            self._in_vain[position] += sum(row[position] for row in present)
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
