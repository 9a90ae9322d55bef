"""How a model is judged: mean IoU as it is and after offsets fitted elsewhere, average precision, by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_MAX_PIXELS = 2_500_000
# Average precision counts log-odds from -20 to 20 in bins of this many a unit.
_BINS = 100


def judge(
    confusion: Tensor, logits: Sequence[Tensor], labels: Sequence[Tensor], groups: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Overall and group means in percent.

    Args:
        confusion: (K, K) pixels at full size, by truth and prediction.
        logits: (K, N) of each image, at the network's resolution, in the images' order.
        labels: (N,) of the same pixels.
        groups: Class ids by group.

    Returns:
        `plain` (mean IoU), `offsets` (mean IoU where one offset a class is fitted on every other block of the
        images and judged on the rest, and the other way round), `ap` (mean average precision of one class against
        the others, by log-odds), `iou` and `aps` (by class).
    """
    num_classes = len(confusion)
    every = max(1, sum(map(len, labels)) // _MAX_PIXELS)
    parts = [
        (z[:, i % every :: every].float(), y[i % every :: every].long())
        for i, (z, y) in enumerate(zip(logits, labels, strict=True))
    ]
    block = max(1, len(parts) // 12)
    halves = []
    for half in (0, 1):
        chosen = [part for i, part in enumerate(parts) if i // block % 2 == half]
        halves.append((torch.cat([z for z, _ in chosen], 1), torch.cat([y for _, y in chosen])))
    adjusted = torch.zeros_like(confusion)
    for (fit_logits, fit_labels), (other_logits, other_labels) in (halves, halves[::-1]):
        offsets = fit_offsets(fit_logits, fit_labels)
        adjusted += confusion_of((other_logits + offsets[:, None]).argmax(0), other_labels, num_classes)
    precision = average_precision(torch.cat([z for z, _ in halves], 1), torch.cat([y for _, y in halves]))
    return {
        "plain": means(iou(confusion), groups),
        "offsets": means(iou(adjusted), groups),
        "ap": means(precision, groups),
        "iou": [round(100 * value, 2) for value in iou(confusion).tolist()],
        "aps": [round(100 * value, 2) for value in precision.tolist()],
    }


def means(values: Tensor, groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Means in percent over the classes that occur, overall and by group."""
    chosen = {"overall": values, **{name: values[list(ids)] for name, ids in groups.items()}}
    return {name: round(100 * float(part.nanmean()), 2) for name, part in chosen.items()}


def iou(confusion: Tensor) -> Tensor:
    """(K,) IoU; NaN for a class that is neither there nor predicted."""
    overlap = confusion.diag()
    union = confusion.sum(0) + confusion.sum(1) - overlap
    return torch.where(union > 0, overlap / union.clamp(min=1), torch.nan)


def confusion_of(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(K, K) pixels by truth and prediction."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, -1).double()


def fit_offsets(logits: Tensor, labels: Tensor, steps: Sequence[float] = (1.0, 0.5, 0.25)) -> Tensor:
    """One offset a class by coordinate search over exact counts, for the mean IoU of logits (K, N)."""
    num_classes = len(logits)
    logits, offsets = logits.clone(), torch.zeros(num_classes)
    counts = torch.bincount(labels, minlength=num_classes)
    current = float(iou(confusion_of(logits.argmax(0), labels, num_classes)).nanmean())
    for step in steps:
        for class_id in counts.nonzero()[:, 0].tolist():
            own = logits[class_id].clone()
            logits[class_id] = -1e9
            highest, others = logits.max(0)
            best = 0.0
            for change in (-2 * step, -step, step, 2 * step):
                predicted = torch.where(own + change > highest, class_id, others)
                value = float(iou(confusion_of(predicted, labels, num_classes)).nanmean())
                if value > current:
                    current, best = value, change
            offsets[class_id] += best
            logits[class_id] = own + best
    return offsets


def average_precision(logits: Tensor, labels: Tensor) -> Tensor:
    """(K,) average precision of each class against all others, ranked by the log-odds of its softmax probability."""
    num_classes = len(logits)
    result = torch.full((num_classes,), torch.nan, dtype=torch.float64)
    log_sum = logits.logsumexp(0)
    for class_id in torch.unique(labels).tolist():
        log_p = (logits[class_id] - log_sum).double()
        score = log_p - torch.log(-torch.expm1(log_p.clamp(max=-1e-12)))
        bins = ((score.clamp(-20, 20) + 20) * _BINS).long()
        hits = torch.bincount(bins[labels == class_id], minlength=40 * _BINS + 1).double().flip(0).cumsum(0)
        shown = torch.bincount(bins, minlength=40 * _BINS + 1).double().flip(0).cumsum(0)
        recall = hits / hits[-1]
        result[class_id] = (hits / shown.clamp(min=1) * recall.diff(prepend=recall.new_zeros(1))).sum()
    return result
