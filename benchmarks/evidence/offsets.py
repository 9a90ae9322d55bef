"""One offset a class, added to the logits before the argmax, for the highest mean IoU on images that were held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Widths of the search around an offset, and values tried there: coarse, then fine.
_SEARCHES = ((4.0, 33), (1.0, 21), (0.2, 17))
_SWEEPS = 3

Batch = tuple[Tensor, Tensor]
"""Logits (B, K, h, w) and labels (B, H, W), uint8."""


def confusion_of(batches: Sequence[Batch], offsets: Tensor, ignore_index: int = 255) -> Tensor:
    """Pixels by label and prediction, (K, K) int64, of logits with ``offsets`` (K,) added."""
    num_classes = len(offsets)
    total = offsets.new_zeros(num_classes**2, dtype=torch.int64)
    for logits, target in batches:
        predicted = (_upsampled(logits, target) + offsets.view(-1, 1, 1)).argmax(1)
        valid = target != ignore_index
        cells = target[valid].long() * num_classes + predicted[valid]
        total += torch.bincount(cells, minlength=num_classes**2)
    return total.view(num_classes, num_classes)


def intersection_over_union(confusion: Tensor) -> Tensor:
    """IoU of each class (..., K) in float64, from (..., K, K); NaN for classes in neither truth nor prediction."""
    intersection = confusion.diagonal(dim1=-2, dim2=-1).double()
    return intersection / (confusion.sum(-1) + confusion.sum(-2) - intersection)


def grouped_scores(confusion: Tensor, groups: Mapping[str, Sequence[int]]) -> dict[str, float | None]:
    """Mean IoU over all classes that occur, and over those of each group; None where none does."""
    iou = intersection_over_union(confusion)
    means = {"miou": iou.nanmean(), **{name: iou[list(ids)].nanmean() for name, ids in groups.items()}}
    return {name: None if value.isnan() else float(value) for name, value in means.items()}


def fit_offsets(batches: Sequence[Batch], num_classes: int, ignore_index: int = 255) -> Tensor:
    """Offsets (K,) by coordinate search: one class after the other takes the best of a list of values.

    What is compared is the exact mean IoU over all pixels, of the classes that occur in the labels; another class keeps
    the offset 0. Of equal values the one next to the present offset is taken, so that the mean IoU never falls.

    Args:
        batches: Logits and labels of all images.
        num_classes: K.
        ignore_index: Pixels with this label don't count.
    """
    offsets = torch.zeros(num_classes, device=batches[0][0].device)
    occurring = (confusion_of(batches, offsets, ignore_index).sum(1) > 0).nonzero().flatten().tolist()
    for width, count in _SEARCHES:
        for _ in range(_SWEEPS):
            before = offsets.clone()
            for class_id in occurring:
                values = offsets[class_id] + torch.linspace(-width, width, count, device=offsets.device)
                confusions = confusions_of_values(batches, offsets, class_id, values, ignore_index)
                scores = intersection_over_union(confusions)[:, occurring].mean(1)
                best = (scores == scores.max()).nonzero().flatten()
                offsets[class_id] = values[best[(best - count // 2).abs().argmin()]]
            if torch.equal(offsets, before):
                break
    return offsets


def confusions_of_values(
    batches: Sequence[Batch], offsets: Tensor, class_id: int, values: Tensor, ignore_index: int = 255
) -> Tensor:
    """Confusion matrices (G, K, K), one for each of G rising ``values`` of an offset, in one pass over the pixels.

    A pixel goes to the class where its offset exceeds how far the class's logit lies below the best other score.
    """
    num_classes, num_values = len(offsets), len(values)
    others = offsets.clone()
    others[class_id] = -torch.inf
    counts = offsets.new_zeros((num_values + 1) * num_classes**2, dtype=torch.int64)
    for logits, target in batches:
        scores = _upsampled(logits, target)
        best, other = (scores + others.view(-1, 1, 1)).max(1)
        first = torch.bucketize(best - scores[:, class_id], values, right=True)  # the first value that takes the pixel
        valid = target != ignore_index
        cells = (first * num_classes + target) * num_classes + other
        counts += torch.bincount(cells[valid], minlength=len(counts))
    cube = counts.view(num_values + 1, num_classes, num_classes)
    taken = cube.cumsum(0)[:-1]
    confusions = cube.sum(0) - taken
    confusions[:, :, class_id] += taken.sum(2)
    return confusions


def _upsampled(logits: Tensor, target: Tensor) -> Tensor:
    return F.interpolate(logits.float(), target.shape[-2:], mode="bilinear", align_corners=False)
