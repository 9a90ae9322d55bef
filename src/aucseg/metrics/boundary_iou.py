"""Boundary IoU: overlap of the bands along the contours of truth and prediction."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.tensors.dtypes import can_be_asked, int64_labels
from aucseg.tensors.labels import refuse_default_ignore_label, refuse_other_labels

# Share of the image's diagonal that the bands are wide: the value of the paper for COCO.
DILATION_RATIO = 0.02


def boundary_width(size: Sequence[int], ratio: float = DILATION_RATIO) -> int:
    """Width of the bands in pixels, at least 1.

    Args:
        size: Size of the image, (H, W) or (D, H, W).
        ratio: Width as a share of the diagonal.

    Example:
        >>> boundary_width((480, 640)), boundary_width((1024, 2048), 0.005), boundary_width((8, 8))
        (16, 11, 1)
    """
    return max(1, round(ratio * math.sqrt(sum(length**2 for length in size))))


def boundary_region(labels: Tensor, width: int) -> Tensor:
    """Marks the pixels whose surroundings are not all of their label, or leave the image.

    Args:
        labels: (B, *spatial) integers.
        width: Half the size of the surroundings: pixels at most this far away in every direction.

    Returns:
        (B, *spatial) bool: for each label its mask without the mask eroded by a square of `2 * width + 1` pixels.

    Raises:
        ValueError: A width below 1.

    Example:
        >>> boundary_region(torch.tensor([[[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 2]]]), width=1).int()
        tensor([[[1, 1, 1, 1],
                 [1, 0, 1, 1],
                 [1, 1, 1, 1]]], dtype=torch.int32)
    """
    if width < 1:
        raise ValueError(f"the width of a boundary must be at least 1 pixel, got {width}")
    if not labels.numel():
        return torch.zeros_like(labels, dtype=torch.bool)
    mixed = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    # One direction after the other: a box is of one label if its lines are and their middles agree.
    for dim in range(1, labels.ndim):
        length = labels.shape[dim]
        changes = labels.narrow(dim, 1, max(length - 1, 0)) != labels.narrow(dim, 0, max(length - 1, 0))
        mixed = _any_near(mixed, width, dim, outside=False) | _any_near(changes, width, dim, outside=True)
    return mixed


def _any_near(flags: Tensor, reach: int, dim: int, *, outside: bool) -> Tensor:
    """Whether a flag is set at most `reach` places away: of pixels, or of the edges between them (one flag less).

    Args:
        flags: Bool; along `dim` one for each pixel (`outside` False) or for each pair of neighbours (True).
        reach: Places.
        dim: Where to look.
        outside: What there is beyond the image.
    """
    window = 2 * reach + (not outside)
    padding = [0, 0] * (flags.ndim - 1 - dim) + [reach, reach]
    padded = F.pad(flags.to(torch.int32), padding, value=int(outside))
    sums = F.pad(padded.cumsum(dim, dtype=torch.int32), [*padding[:-2], 1, 0])
    return sums.narrow(dim, window, sums.shape[dim] - window) != sums.narrow(dim, 0, sums.shape[dim] - window)


def boundary_overlap(
    predicted: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255, width: int | None = None
) -> Tensor:
    r"""Pixels of intersection and union of the boundary bands of each class, to be summed over a data set.

    For the mask G of a class in the truth and P in the prediction, with G_d the pixels of G at most d away from its
    contour,

    .. math:: \mathrm{BoundaryIoU} = \frac{|G_d \cap P_d|}{|G_d \cup P_d|}

    (Cheng et al., *Boundary IoU: Improving Object-Centric Image Segmentation Evaluation*, 2021; as in its code the edge
    of the image is a contour, and distances are those of squares). Pixels that the truth ignores are taken out of both
    masks, so that a prediction that is right wherever the truth says anything has a boundary IoU of 1.

    Args:
        predicted: (B, *spatial) integer labels; 0..K-1 wherever the target is not ignored.
        target: (B, *spatial) integer labels, 0..K-1 or `ignore_index`.
        num_classes: K.
        ignore_index: The ignore label.
        width: :math:`d` in pixels, by default 2 % of the diagonal, see `boundary_width`.

    Returns:
        (2, K) int64: intersections and unions.

    Raises:
        TypeError: Labels that are not integers.
        ValueError: Shapes that differ, a width below 1, or (on the CPU) labels out of range.

    Example:
        >>> target = torch.tensor([[[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]])
        >>> predicted = torch.tensor([[[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]])
        >>> boundary_overlap(predicted, target, num_classes=2)
        tensor([[10,  1],
                [11,  2]])
    """
    predicted, target = int64_labels(predicted, "predicted"), int64_labels(target)
    if predicted.shape != target.shape or target.ndim < 2:
        raise ValueError(
            f"predicted labels of shape {tuple(predicted.shape)} and target of shape {tuple(target.shape)}: expected "
            "(B, *spatial) for both"
        )
    refuse_default_ignore_label(ignore_index, num_classes)
    if width is None:
        width = boundary_width(target.shape[1:])
    counted = target != ignore_index
    for name, labels in (("predicted", predicted), ("target", target)):
        if can_be_asked(labels):
            refuse_other_labels(labels[counted], num_classes, name)
    # No class has the label -1.
    masks = [labels.where(counted, -1) for labels in (predicted, target)]
    bands = [boundary_region(labels, width) & counted for labels in masks]
    both = bands[0] & bands[1] & (predicted == target)
    intersection, *sizes = (
        _count(labels.where(chosen, num_classes), num_classes)
        for labels, chosen in ((target, both), (predicted, bands[0]), (target, bands[1]))
    )
    return torch.stack([intersection, sizes[0] + sizes[1] - intersection])


def _count(labels: Tensor, num_classes: int) -> Tensor:
    """Pixels of each class, (K,); those of label K do not count."""
    counts = torch.zeros(num_classes + 1, dtype=torch.int64, device=labels.device)
    labels = labels.flatten()
    return counts.scatter_add_(0, labels, torch.ones_like(labels))[:num_classes]
