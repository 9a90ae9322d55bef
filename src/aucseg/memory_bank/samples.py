"""Samples of the memory bank: objects cut out of images, kept as horizontal runs and the pixels in them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class StoredSample(NamedTuple):
    """The components of one class in one image; never modified after it was made.

    Attributes:
        runs: (3, R) int32 on the host: start in the flattened canvas, length, and number of the component of each
            horizontal run, in reading order.
        size: (H, W) or (D, H, W) of the canvas, that is, of the image or volume it was cut from.
        first: Place of its first pixel in the store's pixels; those of all runs follow one after the other.
        num_pixels: P.
    """

    runs: npt.NDArray[np.int32]
    size: tuple[int, ...]
    first: int
    num_pixels: int

    def state(self, pixels: Tensor) -> dict[str, Any]:
        """Plain containers: `runs` and `values` (P, C) as tensors, `height`, `width`, of volumes `depth`."""
        sides = dict(zip(("width", "height", "depth"), reversed(self.size), strict=False))
        # A copy, which keeps neither what lies around the values alive nor changes when their place is used again.
        values = pixels[self.first : self.first + self.num_pixels].clone()
        return {"runs": torch.from_numpy(self.runs.copy()), "values": values, **sides}


def size_of(state: Mapping[str, Any]) -> tuple[int, ...]:
    """Size of the canvas of a sample's `state()`."""
    return tuple(state[name] for name in ("depth", "height", "width") if name in state)


def sample_nbytes(num_runs: int, num_pixels: int, pixel_bytes: int) -> int:
    """Bytes of a sample's places and pixels, of which one has `pixel_bytes` in all its channels."""
    return num_runs * 3 * np.dtype(np.int32).itemsize + num_pixels * pixel_bytes
