"""Ways through the logits in pieces that fit the cache: as they are, or upsampled band by band.

A piece is `(b, K, p)`: all channels of some pixels. `FullResolution` cuts logits at the target's size;
`UpsampledBands` makes the bilinear upsampling of smaller logits a few output rows at a time and turns the gradient of a
band into that of the small logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of a piece. Small pieces pay for the number of operations, large ones leave the cache of a CPU and need
# scratch memory: a part of the whole, within limits. An accelerator wants few, large launches.
CPU_PIECE = 1 << 19, 1 << 21
CPU_SHARE = 1 / 16
ACCELERATOR_PIECE = 1 << 24
# What a pixel has beside its scores (labels, weights), in elements.
_PIXEL_ELEMENTS = 8

# A position in a label map as arranged by `PieceSource.arrange`.
Index = tuple[slice, slice] | tuple[int, slice]


def piece_size(elements: int, device: torch.device) -> int:
    """Elements of one piece, given those of the whole."""
    if device.type != "cpu":
        return ACCELERATOR_PIECE
    least, most = CPU_PIECE
    return min(max(int(CPU_SHARE * elements), least), most)


class Buffers:
    """Scratch tensors that are reused from piece to piece, in the memory order of the piece."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self._device = dtype, device
        self._storage: dict[str, Tensor] = {}

    def take(self, name: str, piece: Tensor) -> Tensor:
        """An uninitialized tensor shaped like `piece` `(b, K, p)`; the same memory at every call with this name."""
        storage = self._storage.get(name)
        if storage is None or storage.numel() < piece.numel():
            storage = self._storage[name] = torch.empty(piece.numel(), dtype=self.dtype, device=self._device)
        images, channels, pixels = piece.shape
        flat = storage[: piece.numel()]
        if piece.stride(1) == 1 and channels > 1:
            return flat.view(images, pixels, channels).transpose(1, 2)
        return flat.view(images, channels, pixels)


class PieceSource(Protocol):
    """Pieces of logits, and the way back for their gradient."""

    def arrange(self, label_map: Tensor) -> Tensor:
        """Views a `(B, *spatial)` or `(N,)` map so that a piece's index selects its `(b, p)` part."""

    def pieces(self) -> Iterator[tuple[Index, Tensor]]:
        """Index and logits `(b, K, p)` of every piece. The logits must not be written to."""

    def gradient_out(self, index: Index, piece: Tensor) -> Tensor | None:
        """Where the gradient of a piece may be written directly, if anywhere."""

    def write(self, index: Index, gradient: Tensor) -> None:
        """Hands in the gradient of the piece that was yielded last, unless it was written directly."""


def as_planes(logits: Tensor) -> Tensor:
    """`(B, K, *spatial)` or `(N, K)` as `(b, K, p)`: a view of contiguous and channels-last logits."""
    return logits.t().unsqueeze(0) if logits.dim() == 2 else logits.flatten(2)


class FullResolution:
    """Logits `(B, K, *spatial)` or `(N, K)` at the size of the target.

    Args:
        logits: The logits.
        num_buffered: Channels that the scratch memory of a pixel holds.
        gradient: Their gradient, to be written to.
    """

    def __init__(self, logits: Tensor, num_buffered: int, gradient: Tensor | None = None) -> None:
        self._num_buffered = num_buffered
        self._planes = as_planes(logits)
        self._gradient = None if gradient is None else as_planes(gradient)

    def arrange(self, label_map: Tensor) -> Tensor:
        """`(B, P)`."""
        return label_map.unsqueeze(0) if label_map.dim() == 1 else label_map.flatten(1)

    def pieces(self) -> Iterator[tuple[Index, Tensor]]:
        """Parts of one image, or several small images at once."""
        num_images, _, num_pixels = self._planes.shape
        size = piece_size(self._planes.numel(), self._planes.device)
        pixels = max(1, size // (self._num_buffered + _PIXEL_ELEMENTS))
        images = max(1, pixels // max(num_pixels, 1))
        for image in range(0, num_images, images):
            for pixel in range(0, num_pixels, pixels):
                index = slice(image, image + images), slice(pixel, pixel + pixels)
                yield index, self._planes[index[0], :, index[1]]

    def gradient_out(self, index: Index, piece: Tensor) -> Tensor | None:
        """The gradient's own memory if its dtype is that of the computation."""
        assert self._gradient is not None
        return self._gradient[index[0], :, index[1]] if self._gradient.dtype == piece.dtype else None

    def write(self, index: Index, gradient: Tensor) -> None:
        """Copies into the gradient."""
        assert self._gradient is not None
        self._gradient[index[0], :, index[1]] = gradient


def bilinear_rows(first: int, last: int, source: int, size: int) -> tuple[int, int, Tensor]:
    """Bilinear weights (`align_corners=False`) of output rows `first..last-1` over the source rows they touch.

    Returns:
        First source row, one past the last, and a (rows, source rows) table of weights, float64, on the CPU.
    """
    scale = source / size

    def low(row: int) -> int:
        return min(int(max((row + 0.5) * scale - 0.5, 0.0)), source - 1)

    start, stop = low(first), min(low(last - 1) + 1, source - 1) + 1
    position = ((torch.arange(first, last, dtype=torch.float64) + 0.5) * scale - 0.5).clamp(min=0)
    lower = position.long().clamp(max=source - 1)
    share = (position - lower).unsqueeze(1)
    table = torch.zeros(last - first, stop - start, dtype=torch.float64)
    table.scatter_add_(1, (lower - start).unsqueeze(1), 1 - share)
    table.scatter_add_(1, ((lower + 1).clamp(max=source - 1) - start).unsqueeze(1), share)
    return start, stop, table


class UpsampledBands:
    """Logits `(B, K, h, w)`, upsampled bilinearly to `(H, W)` a band of rows at a time.

    Columns of a few source rows come first, then rows by a small matrix. A piece is a band of output rows of one image,
    laid out as (rows, K, W): then the rows of a band are one matrix product.

    Args:
        logits: The logits.
        size: `(H, W)`.
        dtype: Of what is made of them.
        gradient: Their gradient, to be written to.
        saturate: Whether the gradient may leave the range of its dtype, and becomes the largest number then.
    """

    def __init__(
        self,
        logits: Tensor,
        size: tuple[int, int],
        dtype: torch.dtype,
        gradient: Tensor | None = None,
        *,
        saturate: bool = False,
    ) -> None:
        self._logits, self._size, self._dtype, self._gradient = logits, size, dtype, gradient
        self._saturate = saturate
        self._band_gradient = torch.empty(0)
        self._image_gradient = torch.empty(0)

    def arrange(self, label_map: Tensor) -> Tensor:
        """`(B, H, W)` as it is: (image, rows) selects (rows, W)."""
        return label_map

    def pieces(self) -> Iterator[tuple[Index, Tensor]]:
        """Bands of rows."""
        height, width = self._size
        channels, source_height = self._logits.shape[1:3]
        size = piece_size(self._logits.shape[0] * channels * height * width, self._logits.device)
        rows = max(1, min(height, size // (channels * width)))
        # Source rows whose upsampled columns are kept at a time: neighbouring blocks share one, so not too few.
        block = rows * max(1, round(8 * height / source_height / rows))
        for image in range(self._logits.shape[0]):
            if self._gradient is not None:
                # Blocks add up here: their sum may leave the range of the logits' dtype, and would lose digits in it.
                self._image_gradient = torch.zeros_like(self._gradient[image], dtype=self._dtype)
            for first in range(0, height, block):
                yield from self._block(image, first, min(first + block, height), rows)
            if self._gradient is not None:
                if self._saturate:
                    limit = torch.finfo(self._gradient.dtype).max
                    self._image_gradient.clamp_(-limit, limit)
                self._gradient[image] = self._image_gradient

    def _block(self, image: int, first: int, last: int, rows: int) -> Iterator[tuple[Index, Tensor]]:
        height, width = self._size
        source_height = self._logits.shape[2]
        start, stop, _ = bilinear_rows(first, last, source_height, height)
        source = self._logits[image, :, start:stop].transpose(0, 1).to(self._dtype)
        columns = self._widen(source, width)
        gradient = None if self._gradient is None else torch.zeros_like(columns)
        band = columns.new_empty(rows, *columns.shape[1:])
        for row in range(first, last, rows):
            end = min(row + rows, last)
            low, high, table = bilinear_rows(row, end, source_height, height)
            weights = table.to(self._dtype).to(columns.device, non_blocking=True)
            part = slice(low - start, high - start)
            piece = band[: end - row]
            torch.mm(weights, columns[part].flatten(1), out=piece.flatten(1))
            yield (image, slice(row, end)), piece
            if gradient is not None:
                gradient[part].flatten(1).addmm_(weights.t(), self._band_gradient.flatten(1))
        if gradient is not None:
            self._image_gradient[:, start:stop] += self._narrow(gradient, source).transpose(0, 1)

    def _widen(self, source: Tensor, width: int) -> Tensor:
        """Upsampled columns; on an accelerator a product, as torch's operator is slow for many channels there."""
        if source.device.type == "cpu":
            return F.interpolate(source, size=width, mode="linear", align_corners=False)
        return source @ self._across(source, width).t()

    def _narrow(self, gradient: Tensor, source: Tensor) -> Tensor:
        width = gradient.shape[-1]
        if source.device.type == "cpu":
            narrow: Tensor = torch.ops.aten.upsample_linear1d_backward(gradient, [width], list(source.shape), False)
            return narrow
        return gradient @ self._across(source, width)

    def _across(self, source: Tensor, width: int) -> Tensor:
        table = bilinear_rows(0, width, source.shape[-1], width)[2]
        return table.to(self._dtype).to(source.device, non_blocking=True)

    def gradient_out(self, index: Index, piece: Tensor) -> Tensor | None:
        """Nowhere: the band's gradient is folded into that of the source rows."""
        return None

    def write(self, index: Index, gradient: Tensor) -> None:
        """Keeps the band's gradient until the band is folded."""
        self._band_gradient = gradient
