"""Hinge and squared hinge for every margin and any real scores, and one-way partial AUC, exact, by sorting.

For channel c sort the positives. A negative n with score f_n meets the positives below `f_n + margin`: a search gives
their number, running sums give what they add. The same search drops each negative into a bucket between two positives,
and running sums over the buckets, from above, give what the negatives add to a positive. O(N log N) a channel.

Positives enter by what they lack of the highest score, which keeps the digits that a score near 1 has lost.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.losses.auc.checks import ONCE
from aucseg.losses.auc.options import AUCOptions
from aucseg.losses.auc.pair_risk import PairWeights
from aucseg.losses.auc.pixels import class_labels, softmax_shortfall, through_softmax
from aucseg.losses.auc.surrogates import SquaredHinge
from aucseg.tensors.dtypes import wide_dtype

# Scores of the channels that an accelerator sorts at a time: a launch for each channel would be too many.
_MOST_SCORES = 1 << 22


def _channel_risks(
    positives: Tensor, scores: Tensor, weight: Tensor, margin: float, squared: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over the positives of the weighted sum over the negatives, and its slopes, of several channels.

    Args:
        positives: `(C, M)`, sorted; entries of +inf do not count.
        scores: `(C, N)`, of the negatives.
        weight: `(C, N)`, of the negatives.
        margin: The margin.
        squared: Squared hinge (with the factor 1/2) instead of hinge.

    Returns:
        Values `(C,)`; slopes by each positive `(C, M)`; slopes by each negative `(C, N)`.
    """
    real = torch.isfinite(positives)
    count = real.sum(1, keepdim=True).clamp(min=1)
    f = torch.where(real, positives, 0)
    active = torch.searchsorted(positives, scores + margin)  # positives strictly below f_n + margin
    number = F.pad(real.to(f.dtype).cumsum(1), (1, 0)).gather(1, active)
    below = F.pad(f.cumsum(1), (1, 0)).gather(1, active)
    buckets = positives.shape[1] + 1

    def above(values: Tensor) -> Tensor:
        """For each positive, the sum of `values` over the negatives that it meets."""
        total = torch.zeros(len(f), buckets, dtype=f.dtype, device=f.device).scatter_add_(1, active, values)
        return total.flip(1).cumsum(1).flip(1)[:, 1:] * real

    mass, first = above(weight), above(weight * scores)
    u = margin - f
    if squared:
        value = (0.5 * (u * u * mass + 2 * u * first + above(weight * scores * scores))).sum(1)
        by_positive, by_negative = -(u * mass + first), weight * ((margin + scores) * number - below)
    else:
        value = (u * mass + first).sum(1)
        by_positive, by_negative = -mass, weight * number
    return value / count.squeeze(1), by_positive / count, by_negative / count


def _hardest(scores: Tensor, groups: Tensor, num_groups: int, share: float, dtype: torch.dtype) -> Tensor:
    """`(C, N)`: n / kept for the kept = ceil(share n) highest scores of each group of n, 0 for the rest."""
    counts = torch.zeros(len(scores), num_groups, dtype=dtype, device=scores.device).scatter_add_(
        1, groups, torch.ones(1, 1, dtype=dtype, device=scores.device).expand(scores.shape)
    )
    # The small step back keeps a share like 0.1 of 30 at 3, not 4.
    kept = torch.ceil(share * counts - 1e-9)
    by_score = torch.argsort(scores, dim=1, descending=True, stable=True)
    # Narrow numbers are sorted in fewer passes.
    order = by_score.gather(1, torch.argsort(groups.int().gather(1, by_score), dim=1, stable=True))
    in_order = groups.gather(1, order)
    rank = torch.arange(scores.shape[1], device=scores.device) - (counts.cumsum(1) - counts).gather(1, in_order)
    factor = torch.where(rank < kept.gather(1, in_order), (counts / kept.clamp(min=1)).gather(1, in_order), 0)
    return torch.empty_like(factor).scatter_(1, order, factor)


@torch.library.custom_op(
    "aucseg::sorted_risk",
    mutates_args=(),
    schema="(Tensor logits, Tensor target, Tensor weights, str scores, int ignore_index, float margin, bool squared, "
    "float share, bool one_group)"
    " -> (Tensor, Tensor)",
)
def sorted_risk(
    logits: Tensor,
    target: Tensor,
    weights: Tensor,
    scores: str,
    ignore_index: int,
    margin: float,
    squared: bool,
    share: float,
    one_group: bool,
) -> tuple[Tensor, Tensor]:
    """The AUC loss with a (squared) hinge; differentiable once by the logits.

    Args:
        logits: `(K, N)`, float32 or float64.
        target: `(N,)` integer.
        weights: `(K, K)` in the wide dtype: weight of one negative by channel (row) and label (column); 0 on the
            diagonal.
        scores: Score function.
        ignore_index: The ignore label.
        margin: The margin.
        squared: Squared hinge instead of hinge.
        share: Share of the negatives that counts, the hardest ones, in (0, 1].
        one_group: Whether the share is taken of all negatives together (one-vs-all) instead of each class by itself.

    Returns:
        The value (scalar, wide) and its gradient by the logits.
    """
    num_classes, wide = logits.shape[0], wide_dtype(logits.device)
    labels, ignored = class_labels(target, num_classes, ignore_index)
    if ignored is not None:
        logits = logits.masked_fill(ignored, 0)
    values, shortfall = _scores(logits, labels.clamp(max=num_classes - 1).unsqueeze(0), scores)
    on_cpu = logits.device.type == "cpu"
    value = torch.zeros((), dtype=wide, device=logits.device)
    slope = torch.zeros_like(values)
    table = F.pad(weights, (0, 1))
    highest = 0.0 if scores == "identity" else 1.0
    # A CPU leaves out absent classes, and sorts positives alone.
    step = 1 if on_cpu else max(1, _MOST_SCORES // max(labels.numel(), 1))
    for first in range(0, num_classes, step):
        part = slice(first, first + step)
        channels = torch.arange(num_classes, device=logits.device)[part].unsqueeze(1)
        own, negative_weight = labels == channels, table[part].index_select(1, labels)
        if on_cpu and not (bool(own.any()) and bool(negative_weight.any())):
            continue
        counted = own | (negative_weight != 0)
        score = torch.where(counted, values[part], 0)
        if share < 1:
            outside = own | (labels == num_classes)
            groups = torch.where(outside, num_classes, torch.zeros_like(labels) if one_group else labels)
            negative_weight = negative_weight * _hardest(score, groups, num_classes + 1, share, wide)
        # Positives first in order; elsewhere than on a CPU shapes must not depend on the data, so the others follow at
        # +inf. They are sorted in the dtype of the scores, which takes fewer passes than the wide one.
        if on_cpu:
            where = own[0].nonzero().squeeze(1)
            positives, order = shortfall[where].neg().sort()
            positives, order = positives.unsqueeze(0), where[order].unsqueeze(0)
        else:
            positives, order = torch.where(own, -shortfall, math.inf).sort(dim=1)
        risks, by_positive, by_negative = _channel_risks(
            positives.to(wide), score.to(wide), negative_weight, margin - highest, squared
        )
        # Infinities have no place in running sums, and a NaN none in an order.
        finite = torch.where(own, shortfall, score).isfinite().all(1)
        value += torch.where(finite, risks, math.nan).sum()
        slope[part] = by_negative.scatter_add_(1, order, by_positive).to(slope.dtype)
    if scores == "sigmoid":
        # The channel of a class without a pair may hold NaN, which is nobody's slope.
        at_rest = slope == 0
        slope.mul_(values).mul_(logits.neg().sigmoid_()).masked_fill_(at_rest, 0)
    elif scores == "softmax":
        through_softmax(slope, values, 0)
    return value, slope


def _scores(logits: Tensor, own: Tensor, scores: str) -> tuple[Tensor, Tensor]:
    """Scores `(K, N)`, and what those of the own channels lack of the highest score (of 0 if there is none)."""
    if scores == "softmax":
        values = logits.softmax(0)
        return values, softmax_shortfall(values, own, 0).squeeze(0)
    own_logits = logits.gather(0, own).squeeze(0)
    return (logits.sigmoid(), own_logits.neg().sigmoid()) if scores == "sigmoid" else (logits, -own_logits)


@sorted_risk.register_fake
def _(logits: Tensor, target: Tensor, weights: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return weights.new_empty(()), torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, value: Tensor | None, by_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    if by_gradient is not None:
        raise NotImplementedError(ONCE)
    if value is None:
        return (None,) * 9
    (gradient,) = ctx.saved_tensors
    return (gradient * value.to(gradient.dtype), *[None] * 8)


sorted_risk.register_autograd(_backward, setup_context=_setup_context)


def sorted_auc(logits: Tensor, target: Tensor, weights: PairWeights, options: AUCOptions) -> Tensor:
    """The AUC loss of logits `(B, K, *spatial)` or `(N, K)` with a (squared) hinge on the hardest negatives."""
    planes = logits.to(torch.promote_types(logits.dtype, torch.float32)).movedim(1, 0).flatten(1)
    value: Tensor = sorted_risk(
        planes,
        target.reshape(-1),
        weights.per_negative(),
        options.scores,
        options.ignore_index,
        options.margin,
        options.surrogate == SquaredHinge.name,
        1.0 if options.max_fpr is None else options.max_fpr,
        options.strategy == "ova",
    )[0]
    return value
