"""The AUC loss and the cross-entropy of a batch, from one pair of passes over its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from aucseg.losses.auc.by_sorting import sorted_auc
from aucseg.losses.auc.checks import AUCOptions
from aucseg.losses.auc.pair_risk import BatchSums, PairWeights, all_reduced, pair_risk, replace_value
from aucseg.losses.auc.pixels import PassOptions
from aucseg.losses.auc.torch_passes import class_counts, kernels_for, pixel_sums

_INTERPOLATION = {3: "linear", 4: "bilinear", 5: "trilinear"}


@dataclass(frozen=True)
class CrossEntropyOptions:
    """Class weights ``(K,)`` and label smoothing of the cross-entropy."""

    class_weight: Tensor | None = None
    label_smoothing: float = 0.0


def two_channels(logits: Tensor) -> Tensor:
    """One logit z a pixel as the equivalent two logits (0, z); of these only the second is scored."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


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


def _prepare(logits: Tensor, target: Tensor, options: PassOptions, by_bands: bool) -> Tensor:
    logits = two_channels(logits)
    if logits.shape[2:] == target.shape[1:]:
        # The gradient is written pixel by pixel through a flat view, which a transposed image has not.
        return logits if _is_flat(logits) else logits.contiguous()
    if not target.numel():  # nothing to interpolate; the sum keeps the gradient, which is 0
        return logits.new_zeros(*logits.shape[:2], *target.shape[1:]) + logits.sum() * 0
    if not (by_bands and logits.dim() == 4):
        dtype = options.dtype(logits)
        if options.may_overflow(logits):
            logits = _Widened.apply(logits, dtype)
        logits = logits.to(dtype)
        logits = F.interpolate(logits, size=target.shape[1:], mode=_INTERPOLATION[logits.dim()], align_corners=False)
    return logits


def _pair_weights(counts: Tensor, options: AUCOptions, binary: bool) -> PairWeights:
    if options.pair_weight is not None and not binary:
        return PairWeights.from_table(counts, options.pair_weight)
    scored = torch.arange(2, dtype=counts.dtype, device=counts.device) if binary else None
    return PairWeights.uniform(counts, options.strategy, scored)


def batch_sums(logits: Tensor, target: Tensor, auc: AUCOptions, cross_entropy: CrossEntropyOptions | None) -> BatchSums:
    """What the loss needs to know of these pixels, without gradient; of all ranks if there is a process group."""
    if not auc.form:
        raise ValueError(
            f"surrogate={auc.surrogate!r} with margin={auc.margin} and scores={auc.scores!r} is computed by sorting, "
            "not from sums: micro-batches are not offered for it"
        )
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        ce = cross_entropy or CrossEntropyOptions()
        settings = auc.passes(cross_entropy=cross_entropy is not None, label_smoothing=ce.label_smoothing)
        logits = _prepare(logits, target, PassOptions(*settings), by_bands=True)
        num_classes = logits.shape[1]
        every = torch.ones(num_classes, dtype=torch.bool, device=logits.device)
        positive, negative, entropy, _ = pixel_sums(logits, target, every, None, ce.class_weight, *settings)
        counts = class_counts(target, num_classes, auc.ignore_index)
        return BatchSums(counts, positive, negative, entropy).all_reduced(auc.process_group)


def objective(
    logits: Tensor,
    target: Tensor,
    auc: AUCOptions,
    cross_entropy: CrossEntropyOptions | None = None,
    *,
    with_auc: bool = True,
    totals: BatchSums | None = None,
) -> tuple[Tensor, Tensor]:
    """The AUC loss and the cross-entropy, 0 where not asked for.

    Args:
        logits: ``(B, K, *spatial)`` or ``(N, K)``, at the size of the target or smaller.
        target: ``(B, *spatial)`` or ``(N,)``.
        auc: Options of the AUC loss.
        cross_entropy: Options of the cross-entropy; None for none.
        with_auc: Whether the AUC loss is wanted.
        totals: Sums of a larger batch that these pixels are part of: value of the whole, gradient by this part.
    """
    binary = logits.shape[1] == 1
    ce = cross_entropy or CrossEntropyOptions()
    result_dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    with torch.autocast(logits.device.type, enabled=False):
        by_sorting = with_auc and not auc.form
        settings = auc.passes(auc=with_auc, cross_entropy=cross_entropy is not None, label_smoothing=ce.label_smoothing)
        options = PassOptions(*settings)
        logits = _prepare(logits, target, options, by_bands=not by_sorting)
        num_classes, group = logits.shape[1], auc.process_group
        # One batch on its own with uniform weights. (torch.compile knows the operators below, and joins what is small.)
        is_plain = totals is None and group is None and auc.pair_weight is None
        if is_plain and not binary and not by_sorting and not torch.compiler.is_compiling():
            kernels = kernels_for(logits.device)
            if kernels is not None and kernels.offered(logits, target, options):
                found: tuple[Tensor, Tensor] = kernels.objective(
                    logits, target, ce.class_weight, options, auc.strategy == "ova"
                )
                return found
        if totals is None:
            (counts,) = all_reduced([class_counts(target, num_classes, auc.ignore_index)], group)
        else:
            counts = totals.counts
        weights = _pair_weights(counts, auc, binary)
        zero = torch.zeros((), dtype=counts.dtype, device=counts.device)
        risk, entropy = zero, zero
        if auc.form or cross_entropy is not None or not with_auc:
            positive, negative, entropy, _ = pixel_sums(
                logits, target, counts > 0, weights.per_pixel(), ce.class_weight, *settings
            )
            if totals is not None:
                whole = [totals.positive, weights.by_weight(totals.negative), totals.entropy]
            else:
                whole = all_reduced([positive, negative, entropy], group)
            if totals is not None or group is not None:
                # Data-parallel training averages the gradients of the ranks.
                ranks = 1 if group is None else dist.get_world_size(group)
                positive, negative, entropy = (
                    replace_value(local, value, ranks)
                    for local, value in zip((positive, negative, entropy), whole, strict=True)
                )
            if with_auc and auc.form:
                risk = pair_risk(auc.coefficients, weights, positive, negative)
        if by_sorting:
            risk = sorted_auc(
                logits,
                target,
                weights,
                scores=auc.scores,
                ignore_index=auc.ignore_index,
                margin=auc.margin,
                squared=auc.surrogate == "squared_hinge",
                share=1.0 if auc.max_fpr is None else auc.max_fpr,
                strategy=auc.strategy,
            )
        share = counts if ce.class_weight is None else counts * ce.class_weight.to(counts)
        share_sum = share.sum()
        entropy = torch.where(share_sum > 0, entropy / torch.where(share_sum > 0, share_sum, 1), 0)
        return _saturated(risk, result_dtype), entropy.to(result_dtype)


def _saturated(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The value in the result's dtype, at most its largest number; the gradient passes."""
    limit = torch.finfo(dtype).max
    return replace_value(value, value.detach().clamp(max=limit)).to(dtype) if dtype != value.dtype else value
