"""Connected components of label maps, in plain tensor operations on the tensors' device.

A label map is cut into horizontal runs (maximal stretches of one label in one row). Everything after that works on
runs, of which an image has far fewer than pixels, and needs no loop over either.

``index_select(0, ...)`` stands where ``tensor[index]`` would do: on the CPU it is several times faster. Sums by index
are ``scatter_add_``, and minima by index are taken in int32: Apple's MPS lacks ``index_add_`` and minima in int64.
"""

import torch
from torch import Tensor


def expand(counts: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
    """Lists the elements of segments: for each one its segment and its position inside the segment.

    Args:
        counts: (N,) int64, elements per segment, zero allowed.
        total: sum of ``counts`` if the caller knows it; on an accelerator this saves a wait for the device.

    Returns:
        ``(segment, position)``, each (sum of counts,) int64.

    Example:
        >>> expand(torch.tensor([2, 0, 3]))
        (tensor([0, 0, 2, 2, 2]), tensor([0, 1, 0, 1, 2]))
    """
    if total is None:
        total = int(counts.sum())
    segment = torch.repeat_interleave(counts, output_size=total)
    first = counts.cumsum(0) - counts
    return segment, torch.arange(total, device=counts.device) - first.index_select(0, segment)


def keep_where(keep: Tensor, *tensors: Tensor) -> list[Tensor]:
    """The entries of each tensor (N, ...) where ``keep`` (N,) bool is true.

    Example:
        >>> keep_where(torch.tensor([True, False, True]), torch.tensor([5, 6, 7]))
        [tensor([5, 7])]
    """
    index = keep.nonzero().squeeze(1)
    return [tensor.index_select(0, index) for tensor in tensors]


def horizontal_runs(masks_bhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts a batch of label maps into horizontal runs.

    Args:
        masks_bhw: (B, H, W), contiguous, any integer dtype.

    Returns:
        ``(start, length, label)`` of each run in reading order: ``start`` (R,) int64 indices into the flattened
        batch, ``length`` (R,) int64 pixels, ``label`` (R,) of the masks' dtype. A run never crosses the end of a row.

    Example:
        >>> horizontal_runs(torch.tensor([[[7, 7, 5], [5, 5, 5]]]))
        (tensor([0, 2, 3]), tensor([2, 1, 3]), tensor([7, 5, 5]))
    """
    rows = masks_bhw.flatten(0, 1)
    begins = torch.ones(rows.shape, dtype=torch.bool, device=rows.device)
    torch.ne(rows[:, 1:], rows[:, :-1], out=begins[:, 1:])
    start = begins.flatten().nonzero().squeeze(1)
    length = torch.diff(start, append=start.new_full((1,), masks_bhw.numel()))
    return start, length, rows.flatten().index_select(0, start)


def connected_components(start: Tensor, length: Tensor, label: Tensor, height: int, width: int) -> Tensor:
    """Joins runs of one label that touch, diagonally too (8-connectivity), within each image.

    Runs that touch form the edges of a graph. Each round hooks every root that has a smaller neighbour root to it,
    then flattens the trees by pointer jumping; the number of rounds grows with the logarithm of the number of runs on
    all but contrived shapes.

    Args:
        start: (R,) int64, sorted starts of runs in the flattened batch, as from ``horizontal_runs``; any subset of
            the runs will do.
        length: (R,) int64, pixels of each run.
        label: (R,) integer label of each run.
        height: rows of an image.
        width: columns of an image.

    Returns:
        (R,) int64: for each run the index of the first run of its component.

    Example:
        >>> start, length, label = horizontal_runs(torch.tensor([[[1, 0, 1], [0, 1, 0]]]))
        >>> connected_components(start, length, label, height=2, width=3)
        tensor([0, 1, 0, 1, 0, 1])
    """
    row = start // width
    # Rows lie width + 2 apart in the search keys, so that a search in one row never ends in the next, and an empty
    # row lies between images.
    stride = width + 2
    begin = (row + row // height) * stride + start - row * width
    end = begin + length
    first = torch.searchsorted(end, begin + stride)
    past_last = torch.searchsorted(begin, end + stride, right=True)
    upper, position = expand(past_last - first)
    lower = first.index_select(0, upper) + position
    upper, lower = keep_where(label.index_select(0, upper) == label.index_select(0, lower), upper, lower)

    root = torch.arange(len(start), device=start.device)
    while True:
        root_u, root_l = root.index_select(0, upper), root.index_select(0, lower)
        upper, lower, root_u, root_l = keep_where(root_u != root_l, upper, lower, root_u, root_l)
        if not len(upper):
            return root
        smaller = torch.minimum(root_u, root_l).int()
        root = root.int().scatter_reduce_(0, torch.maximum(root_u, root_l), smaller, "amin").long()
        while not torch.equal(parent := root.index_select(0, root), root):
            root = parent


def number_components(root: Tensor, length: Tensor, group: Tensor, min_pixels: int, max_components: int) -> Tensor:
    """Numbers the components within each group of runs from 0 on, the one with the most pixels first.

    Args:
        root: (R,) int64, from ``connected_components``.
        length: (R,) int64, pixels of each run.
        group: (R,) int64, group of each run, the same for all runs of a component.
        min_pixels: smaller components get no number.
        max_components: nor do components beyond this many in a group.

    Returns:
        (R,) int64: for each run the number of its component, -1 for none.

    Example:
        >>> root, length, group = torch.tensor([0, 1, 0, 3]), torch.tensor([2, 5, 1, 9]), torch.tensor([0, 0, 0, 1])
        >>> number_components(root, length, group, min_pixels=4, max_components=2)
        tensor([-1,  0, -1,  0])
    """
    size = torch.zeros_like(length).scatter_add_(0, root, length)
    roots = (size >= min_pixels).nonzero().squeeze(1)
    roots = roots[size[roots].sort(descending=True, stable=True).indices]
    roots = roots[group[roots].sort(stable=True).indices]
    group_of_root = group[roots]
    rank = torch.arange(len(roots), device=roots.device) - torch.searchsorted(group_of_root, group_of_root)
    number = torch.full_like(root, -1)
    number[roots] = torch.where(rank < max_components, rank, -1)
    return number.index_select(0, root)
