"""The passes over the pixels as Triton kernels, for CUDA: most options, one launch a pass.

`fused_loss` does all of an ordinary loss with three launches, and one or two more for large batches; `counts`, `sums`
and `gradient`, with the interface of `aucseg.losses.auc.torch_passes`, are its parts for all else: losses of several
batches or processes, weights of class pairs. The launches are in `aucseg.losses.auc.triton_launches`.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.losses.auc.checks import ONCE
from aucseg.losses.auc.options import LossFormula, PassOptions, working_dtype
from aucseg.losses.auc.pixels import CrossEntropyWeights
from aucseg.losses.auc.triton_launches import Passes, count
from aucseg.losses.auc.triton_limits import offered as offered  # part of what a backend has
from aucseg.tensors.dtypes import wide_dtype
from aucseg.tensors.triton_pixels import kernels_work


@lru_cache(maxsize=64)
def works_on(device: torch.device, *, by_pair: bool = False) -> bool:
    """Whether kernels can be built for a device; says why not, once.

    Args:
        device: The device.
        by_pair: Asks for the kernel that sums by channel and label, which has to be able to do more.
    """
    what = "with pair weights and micro-batches " if by_pair else ""
    return kernels_work(lambda: _try_out(device, by_pair), device, f"the AUC loss {what}falls back")


def _try_out(device: torch.device, by_pair: bool) -> None:
    """Every kernel once; or the one that sums by channel and label."""
    options = PassOptions("square", 1.0, 0, "sigmoid", 255, cross_entropy=True)
    logits = torch.zeros(1, 2, 2, 2, dtype=torch.float32, device=device)
    target = torch.zeros(1, 4, 4, dtype=torch.int64, device=device)
    if by_pair:
        Passes(logits, target, options).pair_sums(torch.zeros(target.shape, dtype=torch.float32, device=device))
        return
    for form, degree in (("square", 0), ("chebyshev", 1)):  # with few sums, and as with many
        options = options._replace(form=form, degree=degree)
        loss, tables, lse = _loss(logits, target, None, options, LossFormula(((0.0, 0.0), (0.0, 0.0))))
    Passes(logits, target, options).gradient(tables, lse, loss, loss)


def counts(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """See `aucseg.losses.auc.operators.pixel_counts`; a label neither a class nor ignored is a device's error."""
    return count(target, num_classes, ignore_index)[:num_classes].to(wide_dtype(target.device))


def _tables(
    logits: Tensor, weight: Tensor | None, class_weight: Tensor | None, options: PassOptions, *by_sums: Tensor
) -> Tensor:
    """The tables of the kernels in the dtype of the arithmetic; `weight` None: 0."""
    dtype = working_dtype(logits, options.surrogate)
    ce = CrossEntropyWeights(class_weight, logits, dtype, options)
    weight = torch.zeros_like(ce.by_own) if weight is None else weight.to(dtype)
    rows = torch.stack([weight, ce.by_softmax, ce.by_own, F.pad(ce.by_channel, (0, 1))])
    return torch.cat([rows, *(F.pad(table.to(dtype), (0, 1)) for table in by_sums)])


def sums(
    logits: Tensor,
    target: Tensor,
    scored: Tensor,
    pixel_weight: Tensor | None,
    class_weight: Tensor | None,
    options: PassOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `aucseg.losses.auc.operators.pixel_sums`; every channel is scored."""
    passes = Passes(logits, target, options)
    total, lse = passes.sums(_tables(logits, pixel_weight, class_weight, options))
    # Copies: an operator may not return views of one tensor.
    num_features = passes.num_features
    positive, negative = total[:num_features].clone(), total[num_features : 2 * num_features].clone()
    if pixel_weight is None:
        negative = passes.pair_sums(lse)
    return positive, negative, total[-1, 0].clone(), lse


def gradient(
    positive: Tensor,
    negative: Tensor,
    entropy: Tensor,
    lse: Tensor,
    logits: Tensor,
    target: Tensor,
    scored: Tensor,
    pixel_weight: Tensor | None,
    class_weight: Tensor | None,
    options: PassOptions,
) -> Tensor:
    """See `aucseg.losses.auc.operators.pixel_gradient`."""
    by_pairs = None
    by_sums = [positive, negative]
    dtype = working_dtype(logits, options.surrogate)
    if pixel_weight is None:
        by_sums, by_pairs = [positive], F.pad(negative.to(dtype), (0, 1, 0, 1))
    tables = _tables(logits, pixel_weight, class_weight, options, *by_sums)
    one = torch.ones((), dtype=dtype, device=logits.device)
    return Passes(logits, target, options).gradient(tables, lse, one, entropy.to(dtype), by_pairs)


def _loss(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, options: PassOptions, formula: LossFormula
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and what its gradient needs: the tables and the log-sum-exp."""
    passes = Passes(logits, target, options)
    num_classes = passes.num_classes
    tables = passes.empty_tables()
    wide = torch.empty(3, num_classes + 1, dtype=torch.float64, device=logits.device)
    scratch = count(
        target, num_classes, options.ignore_index, (tables, wide), class_weight,
        options.label_smoothing, formula.ce_weight, formula.one_vs_all,
    )  # fmt: skip
    loss, lse = passes.loss(tables, wide, scratch[num_classes + 2 :], formula.coefficients, formula.auc_weight)
    return loss, tables, lse


class _FusedLoss(torch.autograd.Function):
    """`fused_loss` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        class_weight: Tensor | None,
        options: PassOptions,
        formula: LossFormula,
    ) -> Tensor:
        loss, tables, lse = _loss(logits, target, class_weight, options, formula)
        ctx.save_for_backward(logits, target, tables, lse)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor | None, ...]:
        return _Gradient.apply(*ctx.saved_tensors, ctx.options, by_loss), None, None, None, None


class _Gradient(torch.autograd.Function):
    """The gradient of `fused_loss`, which has none of its own: `create_graph=True` raises only when it is used."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        tables: Tensor,
        lse: Tensor,
        options: PassOptions,
        by_loss: Tensor,
    ) -> Tensor:
        return Passes(logits, target, options).gradient(tables, lse, by_loss, by_loss)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise NotImplementedError(ONCE)


def fused_loss(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, options: PassOptions, formula: LossFormula
) -> Tensor:
    """The weighted sum of the AUC loss with uniform pair weights and the mean cross-entropy; differentiable once.

    Args:
        logits: As for `sums`; at least 2 channels, not in float64.
        target: As for `sums`.
        class_weight: `(K,)`, of the cross-entropy.
        options: What to compute; `offered`.
        formula: The weights of the sum, and what else the passes do not know of.
    """
    loss: Tensor = _FusedLoss.apply(logits, target, class_weight, options, formula)
    return loss
