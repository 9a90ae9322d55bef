"""Logits at the size of the labels, a band of rows at a time: the whole of them need never be in memory.

Bilinear interpolation (linear, trilinear) with `align_corners=False`, that of `torch.nn.functional.interpolate`, in
single operations, each of them rounded correctly: the numbers are the same whatever the bands, the layout in memory
and the device. (Those of `interpolate` differ in their last digit from layout to layout.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_MODES = {3: "linear", 4: "bilinear", 5: "trilinear"}
# Elements of an upsampled band: on a CPU small enough to stay near the cache, large enough that the Python loop costs
# nothing; an accelerator wants few, large launches.
BAND_ELEMENTS = 1 << 19
ACCELERATOR_BAND_ELEMENTS = 1 << 22


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolates linearly in each direction, by `torch.nn.functional.interpolate` with `align_corners=False`.

    Args:
        x: `(B, C, *spatial)` floating point, with one to three spatial dimensions.
        size: The spatial size that is wanted.

    Returns:
        `(B, C, *size)` of the same dtype; the input itself where it has that size.

    Example:
        >>> resize(torch.tensor([[[0.0, 4.0]]]), (4,))
        tensor([[[0., 1., 3., 4.]]])
    """
    return x if x.shape[2:] == tuple(size) else F.interpolate(x, size, mode=_MODES[x.ndim], align_corners=False)


def upsampled_bands(logits: Tensor, size: Sequence[int]) -> Iterator[tuple[int, slice, Tensor]]:
    """Yields logits at another size, a band of rows of one image at a time. Peak memory: a few bands.

    Args:
        logits: (B, K, *spatial), floating point.
        size: Spatial size of the result, of as many dimensions.

    Yields:
        Number of the image, rows (of the first spatial dimension), and their logits (1, K, rows, ...), float32, or
        float64 as given.

    Example:
        >>> logits = torch.tensor([0.0, 4.0]).view(1, 1, 2, 1)
        >>> [(image, rows.start, band.flatten().tolist()) for image, rows, band in upsampled_bands(logits, (4, 1))]
        [(0, 0, [0.0, 1.0, 3.0, 4.0])]
    """
    height, *rest = size
    num_classes, source_height = logits.shape[1:3]
    elements = num_classes * torch.Size(rest).numel()
    if len(logits) * height * elements == 0:
        return
    most = BAND_ELEMENTS if logits.device.type == "cpu" else ACCELERATOR_BAND_ELEMENTS
    rows = max(1, most // elements)
    # Other dimensions come first, while there are fewer rows.
    across = [
        (dim - 1, *_taps(logits.shape[dim], length, slice(0, length), logits))
        for dim, length in reversed(list(enumerate(rest, 3)))
        if logits.shape[dim] != length
    ]
    for start in range(0, height, rows):
        part = source = slice(start, min(start + rows, height))
        down = None
        if source_height != height:
            source, down = _taps(source_height, height, part, logits)
        for image in range(len(logits)):
            band = logits[image : image + 1, :, source]
            band = band.to(torch.promote_types(band.dtype, torch.float32))
            if across or down is not None:
                # Channels last: then whole runs are copied, not single numbers.
                band = band.movedim(1, -1).contiguous()
                for dim, inner, taps in across:
                    band = _interpolated(band.narrow(dim, inner.start, inner.stop - inner.start), dim, taps)
                band = (band if down is None else _interpolated(band, 1, down)).movedim(-1, 1)
            yield image, part, band


def predicted_labels(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The class with the highest logit at each place of an image of another size, without its logits as a whole.

    Args:
        logits: (B, K, *spatial), floating point; with one logit z a pixel (K = 1) the classes are 1 where z > 0, else
            0. Of equal logits the first class wins.
        size: Spatial size of the labels.

    Returns:
        (B, *size) int64.

    Example:
        >>> predicted_labels(torch.tensor([[0.0, 4.0], [1.0, 1.0]]).view(1, 2, 1, 2), (1, 4)).tolist()
        [[[1, 0, 0, 0]]]
    """
    if tuple(logits.shape[2:]) == tuple(size):
        return labels_of(logits)
    labels = torch.empty((len(logits), *size), dtype=torch.int64, device=logits.device)
    for image, rows, band in upsampled_bands(logits, size):
        labels[image, rows] = labels_of(band)[0]
    return labels


def two_logits(logits: Tensor) -> Tensor:
    """Logits of two classes, (B, 2, *spatial), where there is one logit z a pixel: (0, z); all others as they are.

    Example:
        >>> two_logits(torch.tensor([[1.5], [-2.0]])).tolist()
        [[0.0, 1.5], [0.0, -2.0]]
    """
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def labels_of(logits: Tensor) -> Tensor:
    """The labels (B, *spatial) int64 of logits (B, K, *spatial) as they are; see `predicted_labels`."""
    # The place of the maximum: argmax, which finds the same, takes two to four times as long on a CPU.
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.max(dim=1).indices


_Taps = tuple[Tensor, Tensor, Tensor]


def _taps(source: int, full: int, places: slice, like: Tensor) -> tuple[slice, _Taps]:
    """The source places that some places of `full` are between, and within them the two neighbours of each.

    Returns:
        The source places from first to last; then counted from the first: lower neighbour, upper neighbour, share of
        the upper one.
    """
    # Fractions of whole numbers: exact.
    numerator = (torch.arange(places.start, places.stop, device="cpu").mul_(2).add_(1) * source - full).clamp_(min=0)
    low = numerator // (2 * full)
    share = (numerator - low * (2 * full)).double() / (2 * full)
    high = (low + 1).clamp_(max=source - 1)
    first, last = int(low[0]), int(high[-1])
    share = share.to(torch.promote_types(like.dtype, torch.float32))
    low, high, share = (table.to(like.device, non_blocking=True) for table in (low - first, high - first, share))
    return slice(first, last + 1), (low, high, share)


def _interpolated(values: Tensor, dim: int, taps: _Taps) -> Tensor:
    low, high, share = taps
    lower = values.index_select(dim, low)
    shape = [1] * values.ndim
    shape[dim] = -1
    return values.index_select(dim, high).sub_(lower).mul_(share.view(shape)).add_(lower)
