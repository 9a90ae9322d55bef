"""The weighted AUC loss and cross-entropy of a batch by one of three routes: fused on a GPU, from sums, by sorting.

The formula is in `aucseg.losses.auc.pair_risk`; this is the way to it from logits and labels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aucseg.losses.auc.by_sorting import sorted_auc
from aucseg.losses.auc.checks import check_sums_are_enough
from aucseg.losses.auc.class_sums import ClassSums, all_reduced, with_value
from aucseg.losses.auc.operators import pixel_counts, pixel_sums, triton_passes_for
from aucseg.losses.auc.options import LossFormula, LossOptions, may_overflow, working_dtype
from aucseg.losses.auc.pair_risk import PairWeights, mean_cross_entropy, pair_risk
from aucseg.tensors.dtypes import without_autocast
from aucseg.tensors.upsampling import resize, two_logits


def weighted_loss(logits: Tensor, target: Tensor, options: LossOptions, whole: ClassSums | None = None) -> Tensor:
    """The weighted sum of the AUC loss and the cross-entropy.

    Args:
        logits: `(B, K, *spatial)` or `(N, K)`, at the size of the target or smaller.
        target: `(B, *spatial)` or `(N,)`.
        options: What to compute.
        whole: Sums of a larger batch that these pixels are part of: value of the whole, gradient by this part.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    binary = logits.shape[1] == 1
    with without_autocast(logits.device):
        logits = _prepared(logits, target, options)
        if whole is None and not binary:
            fused = _fused(logits, target, options)
            if fused is not None:
                return fused
        if whole is None:
            counts = pixel_counts(target, logits.shape[1], options.auc.ignore_index)
            (counts,) = all_reduced([counts], options.process_group)
        else:
            counts = whole.counts
        pair_weight = options.pair_weight
        if whole is not None and pair_weight is not None and pair_weight.requires_grad:
            pair_weight = _of_part(pair_weight, logits, target, whole, options)
        weights = PairWeights.of(counts, options.auc.strategy, pair_weight, binary)
        if options.by_sorting:
            risk, entropy = _by_sorting(logits, target, weights, options)
        else:
            risk, entropy = _from_sums(logits, target, weights, options, whole)
        entropy = mean_cross_entropy(entropy, counts, options.class_weight)
        return options.auc_weight * _saturated(risk, dtype) + options.ce_weight * entropy.to(dtype)


def class_sums(logits: Tensor, target: Tensor, options: LossOptions) -> ClassSums:
    """What the loss needs to know of these pixels, without gradient; of this rank's alone."""
    check_sums_are_enough(options.auc, "of which micro-batches have no sums: give it whole batches")
    with torch.no_grad(), without_autocast(logits.device):
        logits = _prepared(logits, target, options)
        num_classes = logits.shape[1]
        every = torch.ones(num_classes, dtype=torch.bool, device=logits.device)
        positive, negative, entropy, _ = pixel_sums(
            logits, target, every, None, options.class_weight, *options.passes()
        )
        counts = pixel_counts(target, num_classes, options.auc.ignore_index)
        return ClassSums(counts, positive, negative, entropy)


def _fused(logits: Tensor, target: Tensor, options: LossOptions) -> Tensor | None:
    """One batch on its own with uniform weights, on a GPU: all of it in a handful of launches."""
    if options.by_sorting or options.process_group is not None or options.pair_weight is not None:
        return None
    if torch.compiler.is_compiling():  # which knows the operators, and joins what is small
        return None
    if logits.dtype == torch.float64:  # a launch takes the weights in float32
        return None
    passes = options.passes()
    backend = triton_passes_for(logits, target, passes)
    if backend is None:
        return None
    coefficients = () if options.form is None else options.form.coefficients
    formula = LossFormula(coefficients, options.auc_weight, options.ce_weight, options.auc.strategy == "ova")
    found: Tensor = backend.fused_loss(logits, target, options.class_weight, passes, formula)
    return found


def _from_sums(
    logits: Tensor, target: Tensor, weights: PairWeights, options: LossOptions, whole: ClassSums | None
) -> tuple[Tensor, Tensor]:
    """The AUC loss and the weighted sum of the cross-entropy, from sums over the pixels."""
    group = options.process_group
    positive, negative, entropy, _ = pixel_sums(
        logits, target, weights.counts > 0, weights.per_pixel(), options.class_weight, *options.passes()
    )
    if whole is not None or group is not None:
        local = [positive, negative, entropy]
        if whole is not None:
            values = [whole.positive, weights.over_labels(whole.negative), whole.entropy]
        else:
            values = all_reduced(local, group)
        # Data-parallel training averages the gradients of the ranks.
        ranks = 1 if group is None else dist.get_world_size(group)
        positive, negative, entropy = (
            with_value(part, value, ranks) for part, value in zip(local, values, strict=True)
        )
    if options.form is None:
        return _zero(weights), entropy
    return pair_risk(options.form.coefficients, weights, positive, negative), entropy


def _by_sorting(logits: Tensor, target: Tensor, weights: PairWeights, options: LossOptions) -> tuple[Tensor, Tensor]:
    """The AUC loss from sorted scores, and the weighted sum of the cross-entropy."""
    entropy = _zero(weights)
    if options.with_cross_entropy:
        _, entropy = _from_sums(logits, target, weights, options, None)
    return sorted_auc(logits, target, weights, options.auc), entropy


def _of_part(pair_weight: Tensor, logits: Tensor, target: Tensor, whole: ClassSums, options: LossOptions) -> Tensor:
    """Weights whose gradient is the share of this part in the pixels, so that the gradients of all parts add up."""
    own = pixel_counts(target, logits.shape[1], options.auc.ignore_index).sum()
    # Data-parallel training averages the gradients of the ranks.
    ranks = 1 if options.process_group is None else dist.get_world_size(options.process_group)
    share = (ranks * own / whole.counts.sum().clamp(min=1)).to(pair_weight.dtype)
    return with_value(pair_weight, pair_weight.detach(), share)


def _zero(weights: PairWeights) -> Tensor:
    return torch.zeros((), dtype=weights.counts.dtype, device=weights.counts.device)


def _prepared(logits: Tensor, target: Tensor, options: LossOptions) -> Tensor:
    """Logits as the passes take them: two channels or more, upsampled unless that is done band by band."""
    logits = two_logits(logits)  # of one logit's two only the second is scored
    if logits.shape[2:] == target.shape[1:]:
        # The gradient is written pixel by pixel through a flat view, which a transposed image does not have.
        return logits if _is_flat(logits) else logits.contiguous()
    if not target.numel():  # nothing to interpolate; the sum keeps the gradient, which is 0
        return logits.new_zeros(*logits.shape[:2], *target.shape[1:]) + logits.sum() * 0
    if logits.dim() == 4 and not options.by_sorting:
        return logits
    dtype = working_dtype(logits, options.form)
    if may_overflow(logits, options.form):
        logits = _Widened.apply(logits, dtype)
    return resize(logits.to(dtype), target.shape[1:])


def _is_flat(logits: Tensor) -> bool:
    spatial = range(2, logits.dim() - 1)
    return all(logits.stride(dim) == logits.stride(dim + 1) * logits.size(dim + 1) for dim in spatial)


class _Widened(torch.autograd.Function):
    """Logits in a wider dtype; what their gradient has outside the range of their own becomes the largest number."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = logits.dtype
        return logits.to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        limit = torch.finfo(ctx.dtype).max
        return gradient.clamp(-limit, limit).to(ctx.dtype), None


def _saturated(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The value in the result's dtype, at most its largest number; the gradient passes."""
    limit = torch.finfo(dtype).max
    return with_value(value, value.detach().clamp(max=limit)).to(dtype) if dtype != value.dtype else value
