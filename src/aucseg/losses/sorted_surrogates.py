"""Hinge and squared hinge for every margin and any real scores, and one-way partial AUC, exact, by sorting.

For channel c sort the positives. A negative n with score f_n meets the positives below ``f_n + margin``: a search gives
their number, running sums give what they add. The same search drops each negative into a bucket between two positives,
and running sums over the buckets, from above, give what the negatives add to a positive. O(N log N) a channel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.dtypes import wide_dtype
from aucseg.losses.class_moments import PairWeights
from aucseg.losses.views import class_labels


def _channel_risk(
    positives: Tensor, scores: Tensor, weight: Tensor, margin: float, squared: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over the positives of the weighted sum over the negatives, and its slopes.

    Args:
        positives: ``(M,)``, sorted; entries of +inf do not count.
        scores: ``(N,)``, of the negatives.
        weight: ``(N,)``, of the negatives.
        margin: The margin.
        squared: Squared hinge (with the factor 1/2) instead of hinge.

    Returns:
        Value; slope by each positive ``(M,)``; slope by each negative ``(N,)``.
    """
    real = torch.isfinite(positives)
    count = real.sum().clamp(min=1)
    f = torch.where(real, positives, 0)
    active = torch.searchsorted(positives, scores + margin)  # positives strictly below f_n + margin
    number = torch.cat([real.new_zeros(1, dtype=f.dtype), real.cumsum(0, dtype=f.dtype)])[active]
    below = F.pad(f.cumsum(0), (1, 0))[active]
    buckets = positives.numel() + 1

    def above(values: Tensor) -> Tensor:
        """For each positive, the sum of ``values`` over the negatives that it meets."""
        total = torch.zeros(buckets, dtype=f.dtype, device=f.device).index_add_(0, active, values)
        return total.flip(0).cumsum(0).flip(0)[1:] * real

    mass, first = above(weight), above(weight * scores)
    u = margin - f
    if squared:
        value = (0.5 * (u * u * mass + 2 * u * first + above(weight * scores * scores))).sum()
        by_positive, by_negative = -(u * mass + first), weight * ((margin + scores) * number - below)
    else:
        value = (u * mass + first).sum()
        by_positive, by_negative = -mass, weight * number
    return value / count, by_positive / count, by_negative / count


def _hardest(scores: Tensor, groups: Tensor, num_groups: int, share: float) -> Tensor:
    """``(N,)``: n / kept for the kept = ceil(share n) highest scores of each group of n, 0 for the rest."""
    counts = torch.zeros(num_groups, dtype=scores.dtype, device=scores.device).index_add_(
        0, groups, torch.ones_like(scores)
    )
    # The small step back keeps a share like 0.1 of 30 at 3, not 4.
    kept = torch.ceil(share * counts - 1e-9)
    by_score = torch.argsort(scores, descending=True, stable=True)
    order = by_score[torch.argsort(groups[by_score], stable=True)]
    in_order = groups[order]
    rank = torch.arange(scores.numel(), device=scores.device) - (counts.cumsum(0) - counts)[in_order]
    factor = torch.where(rank < kept[in_order], (counts / kept.clamp(min=1))[in_order], 0)
    return torch.empty_like(scores).index_copy_(0, order, factor)


@torch.library.custom_op(
    "aucseg::sorted_risk",
    mutates_args=(),
    schema="(Tensor scores, Tensor target, Tensor weights, int ignore_index, float margin, bool squared, float share, "
    "bool one_group)"
    " -> (Tensor, Tensor)",
)
def sorted_risk(
    scores: Tensor,
    target: Tensor,
    weights: Tensor,
    ignore_index: int,
    margin: float,
    squared: bool,
    share: float,
    one_group: bool,
) -> tuple[Tensor, Tensor]:
    """The AUC loss with a (squared) hinge; differentiable once by the scores.

    Args:
        scores: ``(N, K)``.
        target: ``(N,)`` integer.
        weights: ``(K, K)`` in the wide dtype: weight of one negative by channel (row) and label (column); 0 on the
            diagonal.
        ignore_index: The ignore label.
        margin: The margin.
        squared: Squared hinge instead of hinge.
        share: Share of the negatives that counts, the hardest ones, in (0, 1].
        one_group: Whether the share is taken of all negatives together (one-vs-all) instead of each class by itself.

    Returns:
        The value (scalar, wide) and its gradient by the scores.
    """
    num_classes, wide = scores.shape[1], wide_dtype(scores.device)
    labels, _ = class_labels(target, num_classes, ignore_index)
    on_cpu = scores.device.type == "cpu"
    value = torch.zeros((), dtype=wide, device=scores.device)
    gradient = torch.zeros_like(scores)
    table = F.pad(weights, (0, 1))
    for channel in range(num_classes):
        own, negative_weight = labels == channel, table[channel][labels]
        if on_cpu and not (bool(own.any()) and bool(negative_weight.any())):
            continue
        score = scores[:, channel].to(wide)
        if share < 1:
            outside = own | (labels == num_classes)
            groups = torch.where(outside, num_classes, 0 if one_group else labels)
            negative_weight = negative_weight * _hardest(score, groups, num_classes + 1, share)
        # Positives first in order; elsewhere than on a CPU shapes must not depend on the data, so the others follow at
        # +inf.
        where = own.nonzero().squeeze(1) if on_cpu else torch.arange(labels.numel(), device=labels.device)
        positives, order = torch.where(own[where], score[where], math.inf).sort()
        part, by_positive, by_negative = _channel_risk(positives, score, negative_weight, margin, squared)
        value += part
        gradient[:, channel] = by_negative.index_add_(0, where[order], by_positive).to(gradient.dtype)
    return value, gradient


@sorted_risk.register_fake
def _(scores: Tensor, target: Tensor, weights: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return weights.new_empty(()), torch.empty_like(scores)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, value: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    return (gradient * value.to(gradient.dtype), *[None] * 7)


sorted_risk.register_autograd(_backward, setup_context=_setup_context)


def sorted_auc(
    scores: Tensor,
    target: Tensor,
    weights: PairWeights,
    *,
    ignore_index: int,
    margin: float,
    squared: bool,
    share: float,
    strategy: str,
) -> Tensor:
    """The AUC loss of scores ``(B, K, *spatial)`` or ``(N, K)`` with a (squared) hinge on the hardest negatives."""
    num_classes = scores.shape[1]
    flat = scores.movedim(1, -1).reshape(-1, num_classes)
    table = weights.table if weights.table is not None else weights.channel[:, None] * weights.label
    table = (table - torch.diag(table.diagonal())) / weights.counts.clamp(min=1)
    value: Tensor = sorted_risk(
        flat, target.reshape(-1), table, ignore_index, margin, squared, share, strategy == "ova"
    )[0]
    return value
