"""What the memory bank does on the images' device: pixels are read and written at places that the host has worked out.

Nothing here waits for an accelerator: all sizes are known, and what the host knows is sent in one transfer a step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aucseg.memory_bank.components import Ints, before

Floats = npt.NDArray[np.float32]


class Resizing(NamedTuple):
    """What is looked up to interpolate: E pastes, R runs of their canvases, S pieces, Q pairs of rows and planes.

    Attributes:
        key: (R,) sorted: place of each run's first pixel among the canvases, one after the other.
        first: (R,) place of that pixel among the stored ones.
        length: (R,) pixels of the run.
        row: (Q, S) place of the beginning of each canvas row that a piece is interpolated from.
        row_weight: (Q, S) its share.
        column: (S,) column of the piece's first pixel in the resized canvas.
        width: (S,) columns of the canvas.
        scale: (S,) canvas columns a resized column.
    """

    key: Ints
    first: Ints
    length: Ints
    row: Ints
    row_weight: Floats
    column: Ints
    width: Ints
    scale: Floats


class Pieces(NamedTuple):
    """Horizontal stretches of pixels to write, each (S,); no two meet.

    Attributes:
        begin: Where each begins in the flattened batch.
        length: Its pixels.
        label: Its class.
        source: Place of its first pixel among the stored ones; not used where there is a resizing.
        resizing: How pixels come from the stored ones where they are not copied.
    """

    begin: Ints
    length: Ints
    label: Ints
    source: Ints
    resizing: Resizing | None


def dense_format(images: Tensor) -> torch.memory_format:
    """The memory format of images or volumes if it is dense, else the contiguous one."""
    channels_last = torch.channels_last if images.ndim == 4 else torch.channels_last_3d
    is_last = not images.is_contiguous() and images.is_contiguous(memory_format=channels_last)
    return channels_last if is_last else torch.contiguous_format


def cut_pixels(images: Tensor, begin: Ints, length: Ints, out: Tensor) -> None:
    """Copies the pixels of runs.

    Args:
        images: (B, C, H, W) or (B, C, D, H, W), dense in memory, contiguous or channels-last.
        begin: (R,) where each run begins in the flattened batch.
        length: (R,) pixels of each run.
        out: (P, C) takes them, one run after the other.
    """
    (table,) = send([np.stack([_memory_offset(images, begin), before(length), length])], images.device)
    run, column = _expand(table[2], table[1], len(out))
    offsets = _with_channels(images, table[0].index_select(0, run), column)
    torch.index_select(_flat(images), 0, offsets, out=out.view(-1))


def paste_pixels(images: Tensor, masks: Tensor, stored: Tensor, pieces: Pieces) -> None:
    """Writes pieces into images and masks.

    Args:
        images: (B, C, H, W) or (B, C, D, H, W), dense in memory, contiguous or channels-last.
        masks: (B, H, W) or (B, D, H, W), contiguous.
        stored: (N, C) stored pixels.
        pieces: What to write.
    """
    num_pixels = int(pieces.length.sum())
    columns = [
        pieces.begin,
        _memory_offset(images, pieces.begin),
        pieces.label,
        pieces.source,
        pieces.length,
        before(pieces.length),
    ]
    resizing = pieces.resizing
    if resizing is None:
        (table,) = send([np.stack(columns)], images.device)
    else:
        runs = np.stack([resizing.key, resizing.first, resizing.length])
        table, runs_table = send(
            [np.stack([*columns, resizing.column, resizing.width, *resizing.row]), runs], images.device
        )
        (shares,) = send([np.stack([resizing.scale, *resizing.row_weight])], images.device)
    piece, column = _expand(table[4], table[5], num_pixels)
    begin, offset, label, source = table[:4].index_select(1, piece)
    if resizing is None:
        pixels = stored.index_select(0, source + column)
    else:
        pixels = _interpolate(
            stored, runs_table, table[6:].index_select(1, piece), shares.index_select(1, piece), column
        )
    masks.view(-1).scatter_(0, begin + column, label.to(masks.dtype))
    _flat(images).scatter_(0, _with_channels(images, offset, column), pixels.flatten())


def _interpolate(stored: Tensor, runs: Tensor, places: Tensor, shares: Tensor, column: Tensor) -> Tensor:
    """Linear colours, half-pixel centres, of resized pixels: (P, C), dtype of `stored`.

    The weights are those of the neighbours inside the runs, normalized: what is outside the object has no share. The
    nearest canvas pixel lies inside, so that the weights never sum to zero.

    Args:
        stored: (N, C) stored pixels.
        runs: (3, R) `key`, `first` and `length` of a `Resizing`.
        places: (2 + Q, P) `column`, `width` and `row` of each pixel's piece.
        shares: (1 + Q, P) float32, `scale` and `row_weight`.
        column: (P,) place of each pixel in its piece.
    """
    key, first, length = runs
    position = (((places[0] + column).float() + 0.5) * shares[0] - 0.5).clamp(min=0)
    low = position.floor().long()
    fraction = position - low
    x = torch.stack([low, torch.minimum(low + 1, places[1] - 1)])
    place = (places[2:].unsqueeze(1) + x).flatten(0, 1)
    run = (torch.searchsorted(key, place, right=True) - 1).clamp(min=0)
    shift = place - key[run]
    inside = (shift >= 0) & (shift < length[run])
    index = torch.where(inside, first[run] + shift, 0)
    # In place of those outside one inside: what is stored elsewhere may be NaN, which no weight of 0 takes away.
    index = torch.where(inside, index, index.amax(0))
    dtype = torch.promote_types(stored.dtype, torch.float32)
    by_column = torch.stack([1 - fraction, fraction])
    weight = ((shares[1:].unsqueeze(1) * by_column).flatten(0, 1) * inside).to(dtype).unsqueeze(2)
    total, weight_sum = weight[0] * stored.index_select(0, index[0]), weight[0]
    for i in range(1, len(weight)):
        total = total + weight[i] * stored.index_select(0, index[i])
        weight_sum = weight_sum + weight[i]
    pixels: Tensor = total / weight_sum
    if not stored.is_floating_point():
        pixels = pixels.round()
    return pixels.to(stored.dtype)


def send(arrays: list[npt.NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Arrays of one dtype as tensors on a device, by one transfer that the host does not wait for."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    message = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device.type == "cuda":  # from other memory the host waits for the copy
        message = message.pin_memory()
    parts = torch.split(message.to(device, non_blocking=True), [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _expand(counts: Tensor, before: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """For each element of segments its segment and its position inside it; `total` saves a wait for the device."""
    segment = torch.repeat_interleave(counts, output_size=total)
    return segment, torch.arange(total, device=counts.device) - before.index_select(0, segment)


def _flat(images: Tensor) -> Tensor:
    return images.as_strided((images.numel(),), (1,))


def _memory_offset(images: Tensor, begin: Ints) -> Ints:
    """Place in memory of the first channel of pixels of the flattened batch, whichever the memory format."""
    pixels, by_column = images[0, 0].numel(), images.stride(-1)
    return begin * by_column + begin // pixels * (images.stride(0) - pixels * by_column)


def _with_channels(images: Tensor, offset: Tensor, column: Tensor) -> Tensor:
    """Places in memory of all channels of pixels, (P * C,), from the place where their stretch begins."""
    channels = torch.arange(images.shape[1], device=images.device) * images.stride(1)
    return ((offset + column * images.stride(-1)).unsqueeze(1) + channels).flatten()
