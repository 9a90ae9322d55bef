"""The samples that a memory bank holds: which are kept, and which go."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from aucseg.memory_bank.components import Bools
from aucseg.memory_bank.pixels import cut_pixels
from aucseg.memory_bank.plan import BatchPlan
from aucseg.memory_bank.samples import StoredSample, sample_nbytes, size_of

# The samples of each class; an integer stands for one that is still to be cut out of the images.
_Slots = list[list[StoredSample | int]]


class SampleStore:
    """Up to `capacity` samples of each tail class, together within `max_bytes`.

    The pixels of all samples lie in one tensor on the images' device, so that a step copies them in and out by one
    operation each. Where a sample has gone its place stays empty until the tensor is full; then what is left moves to
    a new one, half as large again as needed.

    Classes go by their position among the tail classes here, 0..num_tail-1.

    Args:
        num_tail: Number of tail classes.
        capacity: Samples of each class.
        max_bytes: Bound on `nbytes`, or None.

    Attributes:
        samples: Of each class, the oldest first.
    """

    def __init__(self, num_tail: int, capacity: int, max_bytes: int | None) -> None:
        self.capacity = capacity
        self.max_bytes = max_bytes
        self.samples: list[list[StoredSample]] = [[] for _ in range(num_tail)]
        self.pixels = torch.empty(0, 0, dtype=torch.uint8)
        self._used = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all stored pixels and their places."""
        return sum(self._nbytes_of(sample) for samples in self.samples for sample in samples)

    @property
    def _pixel_bytes(self) -> int:
        return self.pixels.shape[1] * self.pixels.element_size()

    def _nbytes_of(self, sample: StoredSample) -> int:
        return sample_nbytes(sample.runs.shape[1], sample.num_pixels, self._pixel_bytes)

    def add(self, plan: BatchPlan, images: Tensor, generator: torch.Generator) -> set[int]:
        """Stores a copy of each group's pixels; in a full class a random sample makes way.

        Args:
            plan: Of the masks of these images.
            images: (B, C, H, W) or (B, C, D, H, W), dense in memory, contiguous or channels-last.
            generator: CPU generator of the choices.

        Returns:
            The classes of which something was stored; a sample above `max_bytes` by itself is not.
        """
        with torch.inference_mode(False):  # what is made in it could not be written outside
            self._adopt_format(images)
        num_tail = len(self.samples)
        # Slots are chosen before any pixel is copied: what a later image of the same batch replaces need not be copied.
        positions = (plan.groups % num_tail).tolist()
        slots: _Slots = [list(samples) for samples in self.samples]
        wanted = []
        num_full = 0
        counts = [len(stored) for stored in slots]
        pixel_bytes = self._pixel_bytes
        sizes = zip(positions, plan.num_runs.tolist(), plan.num_pixels.tolist(), strict=True)
        for number, (position, num_runs, size) in enumerate(sizes):
            if self.max_bytes is not None and sample_nbytes(num_runs, size, pixel_bytes) > self.max_bytes:
                continue
            wanted.append((number, position))
            num_full += counts[position] == self.capacity
            counts[position] = min(counts[position] + 1, self.capacity)
        leaving = iter(torch.randint(self.capacity, (num_full,), generator=generator, device="cpu").tolist())
        for number, position in wanted:
            stored = slots[position]
            if len(stored) == self.capacity:
                del stored[next(leaving)]
            stored.append(number)

        changed = {position for _, position in wanted}
        new = sorted(entry for position in changed for entry in slots[position] if isinstance(entry, int))
        pixels, used = self.pixels, self._used
        num_pixels = int(plan.num_pixels[new].sum())
        if used + num_pixels > len(pixels):
            pixels, used, slots = self._moved(slots, num_pixels)
        samples = dict(zip(new, _cut(plan, images, new, pixels, used), strict=True))
        self.pixels, self._used = pixels, used + num_pixels
        for position in changed:
            slots[position] = [samples[entry] if isinstance(entry, int) else entry for entry in slots[position]]
        self.samples = [cast("list[StoredSample]", stored) for stored in slots]
        self._evict()
        return changed

    def _moved(self, slots: _Slots, room: int) -> tuple[Tensor, int, _Slots]:
        """A new tensor that holds the pixels of these samples, with room for more: itself, what is used, the slots."""
        kept = [entry for stored in slots for entry in stored if isinstance(entry, StoredSample)]
        used = sum(sample.num_pixels for sample in kept)
        with torch.inference_mode(False):
            pixels = self.pixels.new_empty(((used + room) * 3 // 2, self.pixels.shape[1]))
        if kept:
            torch.cat([self.pixels[s.first : s.first + s.num_pixels] for s in kept], out=pixels[:used])
        first = iter(np.cumsum([0, *(sample.num_pixels for sample in kept)]).tolist())
        moved: _Slots = [
            [
                entry if isinstance(entry, int) else StoredSample(entry.runs, entry.size, next(first), entry.num_pixels)
                for entry in stored
            ]
            for stored in slots
        ]
        return pixels, used, moved

    def state(self) -> list[list[dict[str, Any]]]:
        """The samples as plain containers of tensors."""
        return [[sample.state(self.pixels) for sample in samples] for samples in self.samples]

    def extend(self, state: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """Adds the samples of a `state()`, checked before; beyond the bounds the oldest go."""
        values = [sample["values"] for new in state for sample in new]
        if not values:
            return
        if not any(self.samples):
            self.pixels, self._used = values[0].new_empty(0, values[0].shape[1]), 0
        room = sum(map(len, values))
        pixels, used, slots = self._moved([list(own) for own in self.samples], room)
        torch.cat([part.to(pixels.device) for part in values], out=pixels[used : used + room])
        for stored, new in zip(slots, state, strict=True):
            for sample in new:
                runs, num_pixels = sample["runs"].cpu().numpy().copy(), len(sample["values"])
                stored.append(StoredSample(runs, size_of(sample), used, num_pixels))
                used += num_pixels
        self.pixels, self._used = pixels, used
        self.samples = [[e for e in stored if isinstance(e, StoredSample)][-self.capacity :] for stored in slots]
        self._evict()

    def _evict(self) -> None:
        """Drops samples until `max_bytes` is kept to."""
        if self.max_bytes is None:
            return
        excess = self.nbytes - self.max_bytes
        while excess > 0:
            most = max(len(samples) for samples in self.samples)
            candidates = [samples for samples in self.samples if len(samples) == most]
            fullest = max(candidates, key=lambda samples: sum(map(self._nbytes_of, samples)))
            excess -= self._nbytes_of(fullest.pop(0))

    def check_format(self, images: Tensor) -> None:
        """Refuses images (B, C, H, W) or volumes (B, C, D, H, W) unlike those that the samples are from.

        Raises:
            ValueError: Another dtype, another number of channels, or volumes beside images.
        """
        stored = next((samples[0] for samples in self.samples if samples), None)
        if stored is None:
            return
        if (self.pixels.dtype, self.pixels.shape[1]) != (images.dtype, images.shape[1]):
            raise ValueError(
                f"the bank holds {self.pixels.dtype} pixels of {self.pixels.shape[1]} channels, the images are "
                f"{images.dtype} with {images.shape[1]} channels: feed it at one place of the pipeline, or call "
                "clear() first"
            )
        if len(stored.size) != images.ndim - 2:
            kinds = ("images", "volumes") if len(stored.size) == 2 else ("volumes", "images")
            raise ValueError(f"the bank holds samples of {kinds[0]}, it is given {kinds[1]}: take one bank for each")

    def _adopt_format(self, images: Tensor) -> None:
        """Brings what is stored to the images' device; an empty store takes their format."""
        if not any(self.samples):
            if (self.pixels.dtype, self.pixels.shape[1]) != (images.dtype, images.shape[1]):
                self.pixels = images.new_empty(0, images.shape[1])
            self._used = 0
        if self.pixels.device != images.device:
            self.pixels = self.pixels.to(images.device)


def _cut(plan: BatchPlan, images: Tensor, groups: list[int], pixels: Tensor, first: int) -> list[StoredSample]:
    """Copies the pixels of some groups to where `pixels` is free."""
    if not groups:
        return []
    chosen = np.zeros(len(plan.groups), dtype=bool)
    chosen[groups] = True
    kept: Bools = np.repeat(chosen, plan.num_runs)
    start, length, component = plan.start[kept], plan.length[kept], plan.component[kept]
    cut_pixels(images, start, length, pixels[first : first + int(length.sum())])
    runs = np.stack([start % plan.pixels_per_image, length, component]).astype(np.int32)
    samples = []
    last = 0
    for num_runs, num_pixels in zip(plan.num_runs[groups].tolist(), plan.num_pixels[groups].tolist(), strict=True):
        # A copy, since a view would keep the runs of all samples of the batch alive.
        samples.append(StoredSample(runs[:, last : last + num_runs].copy(), plan.shape[1:], first, num_pixels))
        last += num_runs
        first += num_pixels
    return samples
