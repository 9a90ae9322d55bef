"""Samples of the memory bank: objects cut out of images, kept as horizontal runs and the pixels in them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aucseg.memory_bank.components import expand


class Sample(NamedTuple):
    """The components of one class in one image; never modified after it was made.

    Attributes:
        runs: (3, R) int32: start in the flattened canvas, length, and number of the component of each horizontal run,
            in reading order.
        values: (P, C), dtype of the images: the pixels of all runs, one after the other.
        height: rows of the canvas, that is, of the image it was cut from.
        width: columns of the canvas.
    """

    runs: Tensor
    values: Tensor
    height: int
    width: int

    @property
    def nbytes(self) -> int:
        """Bytes of pixels and places."""
        return self.runs.numel() * self.runs.element_size() + self.values.numel() * self.values.element_size()


def sample_nbytes(num_runs: int, num_pixels: int, images: Tensor) -> int:
    """``Sample.nbytes`` of a sample that has not been cut yet."""
    return num_runs * 3 * torch.int32.itemsize + num_pixels * images.shape[1] * images.element_size()


def cut_samples(
    images: Tensor,
    start: Tensor,
    length: Tensor,
    component: Tensor,
    run_counts: Sequence[int],
    pixel_counts: Sequence[int],
) -> list[Sample]:
    """Copies samples out of images.

    Args:
        images: (B, C, H, W), dense in memory, contiguous or channels-last.
        start: (R,) int64, where each run begins, in the flattened (B, H, W); sorted by sample, then by place.
        length: (R,) int64, pixels of each run.
        component: (R,) int64, number of each run's component within its sample.
        run_counts: runs of each sample.
        pixel_counts: pixels of each sample.
    """
    height, width = images.shape[2:]
    run, column = expand(length, sum(pixel_counts))
    values = torch.split(gather_pixels(images, start, run, column), list(pixel_counts))
    runs = torch.split(torch.stack([start % (height * width), length, component]).int(), list(run_counts), dim=1)
    # A clone, since a view would keep the memory of all samples of the batch alive.
    return [Sample(r.clone(), v.clone(), height, width) for r, v in zip(runs, values, strict=True)]


def gather_pixels(images: Tensor, begin: Tensor, run: Tensor, column: Tensor) -> Tensor:
    """Reads pixels: (P, C).

    Args:
        images: (B, C, H, W), dense in memory, contiguous or channels-last.
        begin: (R,) int64, where each run begins, in the flattened (B, H, W).
        run: (P,) int64, run of each pixel.
        column: (P,) int64, position of each pixel in its run.
    """
    offsets = _offsets(images, begin, run, column)
    return images.as_strided((images.numel(),), (1,)).index_select(0, offsets.flatten()).view(offsets.shape)


def scatter_pixels(images: Tensor, begin: Tensor, run: Tensor, column: Tensor, pixels: Tensor) -> None:
    """Writes pixels (P, C); the other arguments as in ``gather_pixels``."""
    offsets = _offsets(images, begin, run, column)
    images.as_strided((images.numel(),), (1,)).scatter_(0, offsets.flatten(), pixels.flatten())


def _offsets(images: Tensor, begin: Tensor, run: Tensor, column: Tensor) -> Tensor:
    """Places in memory, (P, C), of the pixels of runs; serves every memory format without a copy."""
    _, channels, height, width = images.shape
    by_image, by_channel, by_row, by_column = images.stride()
    row, x = begin // width, begin % width
    base = row // height * by_image + row % height * by_row + x * by_column
    return (base.index_select(0, run) + column * by_column).unsqueeze(1) + torch.arange(
        channels, device=begin.device
    ) * by_channel
