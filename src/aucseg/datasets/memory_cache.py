"""Decoded samples in memory, for data sets that are read many times and are small enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aucseg.datasets.files import SampleError
from aucseg.datasets.pairing import Pair
from aucseg.runtime.resources import free_memory

# Few large buffers instead of one tensor a sample: processes that are spawned get each as one piece of shared memory.
_BUFFER_BYTES = 64 * 2**20
_ALIGNMENT = 8  # of int64 masks


class _Place(NamedTuple):
    """Where a tensor lies."""

    buffer: int
    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class DecodedSamples:
    """The decoded images and masks of a data set; each file is read once.

    Loader processes that are forked share the memory with this one.

    Args:
        pairs: Files of the samples.
        read: From the files of a sample to `{"image": (C, H, W), "name": str}`, with `"mask": (H, W)` where there
            is one.
        num_threads: Threads that read.

    Raises:
        ValueError: The samples do not fit into the memory that is left (where the system tells how much that is).
    """

    def __init__(self, pairs: Sequence[Pair], read: Callable[[Pair], dict[str, Any]], num_threads: int = 1) -> None:
        self._buffers: list[Tensor] = []
        self._used = 0
        self._places: dict[Pair, dict[str, _Place]] = {}
        self._problems: dict[Pair, str] = {}

        def attempt(pair: Pair) -> dict[str, Any] | str:
            try:
                return read(pair)
            except SampleError as error:
                return str(error)

        with ThreadPoolExecutor(num_threads) as pool:
            for pair, result in zip(pairs, pool.map(attempt, pairs), strict=True):
                if isinstance(result, str):
                    self._problems[pair] = result
                else:
                    self._add(pair, result, len(pairs))

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def sample(self, pair: Pair) -> dict[str, Any]:
        """Returns a copy of a sample, laid out as it was read.

        Raises:
            SampleError: Its files could not be used.
        """
        if pair in self._problems:
            raise SampleError(self._problems[pair])
        places = self._places[pair]
        sample: dict[str, Any] = {"image": self._copy(places["image"]).permute(2, 0, 1), "name": pair.name}
        if "mask" in places:
            sample["mask"] = self._copy(places["mask"])
        return sample

    def _add(self, pair: Pair, sample: dict[str, Any], num_samples: int) -> None:
        tensors = {"image": sample["image"].permute(1, 2, 0)}
        if "mask" in sample:
            tensors["mask"] = sample["mask"]
        self._places[pair] = {key: self._store(tensor.contiguous(), num_samples) for key, tensor in tensors.items()}

    def _store(self, tensor: Tensor, num_samples: int) -> _Place:
        start = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        if not self._buffers or start + tensor.nbytes > self._buffers[-1].nbytes:
            size = max(_BUFFER_BYTES, tensor.nbytes)
            free = free_memory()
            if free is not None and free < 2 * size:
                raise ValueError(
                    f"data.cache: memory: {len(self._places)} of {num_samples} samples are {self.nbytes / 1e9:.1f} GB, "
                    f"and {free / 1e9:.1f} GB of memory are left: leave data.cache out, or train on smaller images"
                )
            self._buffers.append(torch.empty(size, dtype=torch.uint8))
            start = 0
        self._used = start + tensor.nbytes
        self._buffers[-1][start : self._used] = tensor.flatten().view(torch.uint8)
        return _Place(len(self._buffers) - 1, start, self._used, tuple(tensor.shape), tensor.dtype)

    def _copy(self, place: _Place) -> Tensor:
        return self._buffers[place.buffer][place.start : place.stop].clone().view(place.dtype).view(place.shape)
