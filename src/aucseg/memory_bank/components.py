"""Connected components of label maps, images and volumes alike, on the host.

A label map is cut into horizontal runs (maximal stretches of one label in one row). Everything after that works on
runs, of which an image has far fewer than pixels, and needs no loop over either.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def before(counts: Ints) -> Ints:
    """Elements of the segments before each one, from the elements of each (N,)."""
    return np.cumsum(counts) - counts


def expand(counts: Ints) -> tuple[Ints, Ints]:
    """Lists the elements of segments: for each one its segment and its position inside the segment.

    Args:
        counts: (N,), elements per segment, zero allowed.

    Returns:
        `(segment, position)`, each (sum of counts,).

    Example:
        >>> segment, position = expand(np.array([2, 0, 3]))
        >>> segment.tolist(), position.tolist()
        ([0, 0, 2, 2, 2], [0, 1, 0, 1, 2])
    """
    segment = np.repeat(np.arange(len(counts)), counts)
    return segment, np.arange(len(segment)) - np.repeat(before(counts), counts)


def horizontal_runs(masks: Tensor) -> tuple[Ints, Ints, npt.NDArray[Any]]:
    """Cuts a batch of label maps into horizontal runs.

    Args:
        masks: (B, H, W) or (B, D, H, W), contiguous, at least one pixel, any integer dtype. On an accelerator this
            waits for the device.

    Returns:
        `(start, length, label)` of each run in reading order: `start` (R,) indices into the flattened batch,
        `length` (R,) pixels, `label` (R,) of the masks' dtype. A run never crosses the end of a row.

    Example:
        >>> start, length, label = horizontal_runs(torch.tensor([[[7, 7, 5], [5, 5, 5]]]))
        >>> start.tolist(), length.tolist(), label.tolist()
        ([0, 2, 3], [2, 1, 3], [7, 5, 5])
    """
    flat = masks.flatten()
    begins = torch.ones(flat.shape, dtype=torch.bool, device=masks.device)
    torch.ne(flat[1:], flat[:-1], out=begins[1:])
    begins.view(-1, masks.shape[-1])[:, 0] = True
    if masks.device.type == "cpu":
        start = np.flatnonzero(begins.numpy())  # several times faster than torch's
        label = flat.numpy()[start]
    else:
        index = begins.nonzero().squeeze(1)
        start, label = index.cpu().numpy(), flat.index_select(0, index).cpu().numpy()
    return start, np.diff(start, append=len(flat)), label


def connected_components(start: Ints, length: Ints, label: npt.NDArray[Any], shape: Sequence[int]) -> Ints:
    """Joins runs of one label that touch, diagonally too, within each image (8- or 26-connectivity).

    Runs that touch form the edges of a graph. Each round hooks every root that has a smaller neighbour root to it,
    then flattens the trees by pointer jumping; the number of rounds grows with the logarithm of the number of runs on
    all but contrived shapes.

    Args:
        start: (R,) sorted starts of runs in the flattened batch, as from `horizontal_runs`; any subset of the runs
            will do.
        length: (R,) pixels of each run.
        label: (R,) label of each run.
        shape: (H, W) of an image or (D, H, W) of a volume.

    Returns:
        (R,): for each run the index of the first run of its component.

    Example:
        >>> start, length, label = horizontal_runs(torch.tensor([[[1, 0, 1], [0, 1, 0]]]))
        >>> connected_components(start, length, label, (2, 3)).tolist()
        [0, 1, 0, 1, 0, 1]
    """
    height, width = shape[-2:]
    row = start // width
    column = start - row * width
    # Search keys: rows lie width + 2 apart, so that a search in one row never ends in the next. An empty row follows
    # each plane, and an empty plane each volume.
    plane = height + 1
    padded_row = row + row // height
    neighbours = [1]
    if len(shape) == 3:
        padded_row += row // (height * shape[0]) * plane
        neighbours = [1, plane - 1, plane, plane + 1]
    stride = width + 2
    begin = padded_row * stride + column
    end = begin + length
    edges = []
    for offset in neighbours:
        first = np.searchsorted(end, begin + offset * stride)
        upper, position = expand(np.searchsorted(begin, end + offset * stride, side="right") - first)
        edges.append(np.stack([upper, first[upper] + position]))
    upper, lower = np.concatenate(edges, axis=1)
    same = label[upper] == label[lower]
    upper, lower = upper[same], lower[same]

    root = np.arange(len(start))
    while True:
        root_u, root_l = root[upper], root[lower]
        apart = root_u != root_l
        if not apart.any():
            return root
        upper, lower, root_u, root_l = upper[apart], lower[apart], root_u[apart], root_l[apart]
        np.minimum.at(root, np.maximum(root_u, root_l), np.minimum(root_u, root_l))
        while not np.array_equal(parent := root[root], root):
            root = parent


def number_components(root: Ints, length: Ints, group: Ints, min_pixels: int, max_components: int) -> Ints:
    """Numbers the components within each group of runs from 0 on, the one with the most pixels first.

    Args:
        root: (R,), from `connected_components`.
        length: (R,), pixels of each run.
        group: (R,), group of each run, the same for all runs of a component.
        min_pixels: Smaller components get no number.
        max_components: Nor do components beyond this many in a group.

    Returns:
        (R,): for each run the number of its component, -1 for none.

    Example:
        >>> root, length, group = np.array([0, 1, 0, 3]), np.array([2, 5, 1, 9]), np.array([0, 0, 0, 1])
        >>> number_components(root, length, group, min_pixels=4, max_components=2).tolist()
        [-1, 0, -1, 0]
    """
    size = sum_by(root, length, len(root))
    roots = np.flatnonzero(size >= min_pixels)
    roots = roots[np.lexsort((-size[roots], group[roots]))]
    rank = np.arange(len(roots)) - np.searchsorted(group[roots], group[roots])
    number = np.full_like(root, -1)
    number[roots] = np.where(rank < max_components, rank, -1)
    return number[root]


def sum_by(index: Ints, values: Ints, size: int) -> Ints:
    """Sums of values by index 0..size-1; exact below 2**53.

    Example:
        >>> sum_by(np.array([1, 1, 2]), np.array([3, 4, 5]), 4).tolist()
        [0, 7, 5, 0]
    """
    return np.bincount(index, weights=values, minlength=size).astype(np.int64)


def pick(draw: Ints, count: Ints) -> Ints:
    """Index 0..count-1 from a uniform draw of 31 bits, in integers.

    Example:
        >>> pick(np.array([0, 2**30, 2**31 - 1]), np.array([4, 4, 4])).tolist()
        [0, 2, 3]
    """
    return (draw * count) >> 31
