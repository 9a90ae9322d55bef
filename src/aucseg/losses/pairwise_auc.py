"""The pixel-level pairwise AUC loss, exact over every pair of pixels and linear in their number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from aucseg.losses.class_moments import (
    LossTables,
    as_planes,
    class_counts,
    label_planes,
    loss_tables,
    pair_gradient,
    pair_sums,
    pair_weights,
)
from aucseg.losses.surrogates import separable_surrogate

SCORES = ("sigmoid", "softmax", "identity")
STRATEGIES = ("ovo", "ova")
_LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


def check_inputs(
    logits: Tensor, target: Tensor, ignore_index: int, *, same_size: bool = True, check_labels: bool = True
) -> None:
    """Raise a ValueError or TypeError that names what is wrong with logits or target."""
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, got {logits.dtype}")
    if target.dtype not in _LABEL_DTYPES:
        raise ValueError(f"target must hold integer class labels, got {target.dtype}")
    if logits.dim() < 2:
        raise ValueError(f"logits must be (N, K) or (B, K, *spatial), got shape {tuple(logits.shape)}")
    expected = (logits.shape[0], *logits.shape[2:])
    if same_size and tuple(target.shape) != expected:
        raise ValueError(
            f"target must have shape {expected} for logits {tuple(logits.shape)}, got {tuple(target.shape)}"
        )
    if target.dim() != logits.dim() - 1 or target.shape[0] != logits.shape[0]:
        raise ValueError(
            f"target {tuple(target.shape)} does not fit logits {tuple(logits.shape)}: expected (B, *spatial)"
        )
    if logits.shape[1] < 1:
        raise ValueError(f"logits need at least one channel, got shape {tuple(logits.shape)}")
    if logits.device != target.device:
        raise ValueError(f"logits are on {logits.device} but target is on {target.device}")
    if check_labels and target.device.type == "cpu" and target.numel():
        _check_labels(target, max(logits.shape[1], 2), ignore_index)


def _check_labels(target: Tensor, num_classes: int, ignore_index: int) -> None:
    if target.dtype == torch.bool:
        return
    low, high = torch.aminmax(target)
    if 0 <= int(low) and int(high) < num_classes:
        return
    bad = ((target < 0) | (target >= num_classes)) & (target != ignore_index)
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"target[{', '.join(map(str, where))}] is {int(target[where])}: labels must lie in 0..{num_classes - 1} "
            f"or be the ignore label {ignore_index}"
        )


def binary_as_two(logits: Tensor) -> Tensor:
    """One logit z a pixel as the two logits (0, z), of which only the second is scored."""
    return torch.cat([torch.zeros_like(logits), logits], 1)


class _PairwiseAUC(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        surrogate: str,
        margin: float,
        scores: str,
        strategy: str,
        ignore_index: int,
        binary: bool,
    ) -> Tensor:
        form = separable_surrogate(surrogate, margin, scores)
        planes, labels = as_planes(logits.detach()), label_planes(target)
        counts = class_counts(labels, planes.shape[1], ignore_index)
        scored = torch.tensor([0.0, 1.0], dtype=counts.dtype, device=counts.device) if binary else None
        weights = pair_weights(counts, strategy, scored)
        pixel_weight = weights.per_pixel()
        tables = loss_tables(*pair_sums(planes, labels, pixel_weight, form, scores, ignore_index), weights, form)
        ctx.save_for_backward(logits, target, pixel_weight, tables.positive, tables.negative)
        ctx.form, ctx.scores, ctx.ignore_index = form, scores, ignore_index
        limit = torch.finfo(torch.float32).max
        return tables.value.clamp(-limit, limit).to(torch.float64 if logits.dtype == torch.float64 else torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, pixel_weight, positive, negative = ctx.saved_tensors
        scale = grad_output.to(positive.dtype)
        tables = LossTables(scale, positive * scale, negative * scale)
        with torch.autocast(logits.device.type, enabled=False):
            gradient = torch.empty_like(logits)
            planes = as_planes(logits)
            out = as_planes(gradient)
            pair_gradient(
                planes, label_planes(target), pixel_weight, tables, ctx.form, ctx.scores, ctx.ignore_index, out
            )
        return gradient, None, None, None, None, None, None, None


def pairwise_auc_loss(
    logits: Tensor,
    target: Tensor,
    surrogate: str = "square",
    *,
    margin: float = 1.0,
    scores: str = "sigmoid",
    strategy: str = "ovo",
    ignore_index: int = 255,
    validate_args: bool = True,
) -> Tensor:
    """AUC loss, see `PairwiseAUCLoss`."""
    if scores not in SCORES:
        raise ValueError(f"scores must be one of {', '.join(SCORES)}, got {scores!r}")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    separable_surrogate(surrogate, margin, scores)
    check_inputs(logits, target, ignore_index, check_labels=validate_args)
    binary = logits.shape[1] == 1
    with torch.autocast(logits.device.type, enabled=False):
        if binary:
            logits = binary_as_two(logits)
        return _PairwiseAUC.apply(logits, target, surrogate, margin, scores, strategy, ignore_index, binary)  # type: ignore[no-any-return,no-untyped-call]


class PairwiseAUCLoss(nn.Module):
    """The pixel-level AUC loss of AUCSeg."""

    def __init__(
        self,
        surrogate: str = "square",
        *,
        margin: float = 1.0,
        scores: str = "sigmoid",
        strategy: str = "ovo",
        ignore_index: int = 255,
        validate_args: bool = True,
    ) -> None:
        super().__init__()
        separable_surrogate(surrogate, margin, scores)
        self.options: dict[str, Any] = {
            "surrogate": surrogate,
            "margin": margin,
            "scores": scores,
            "strategy": strategy,
            "ignore_index": ignore_index,
            "validate_args": validate_args,
        }

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of ``logits (B, K, *spatial)`` against ``target (B, *spatial)``."""
        return pairwise_auc_loss(logits, target, **self.options)
