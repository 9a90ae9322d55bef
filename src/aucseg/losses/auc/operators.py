"""The passes over the pixels as operators of torch, and which backend computes them.

Three operators: `pixel_counts`, `pixel_sums` (differentiable) and `pixel_gradient`, its gradient. They are opaque, so
that `torch.compile` does not unroll the loops over pieces. What they compute is done by one of two backends with the
same functions `counts`, `sums` and `gradient`: `aucseg.losses.auc.torch_passes` serves all devices and options,
`aucseg.losses.auc.triton_passes` most options on CUDA. What becomes of the sums is `aucseg.losses.auc.pair_risk`.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from aucseg.losses.auc import torch_passes
from aucseg.losses.auc.checks import ONCE
from aucseg.losses.auc.options import PassOptions, working_dtype
from aucseg.tensors.dtypes import wide_dtype
from aucseg.tensors.kernels import import_kernels

Sums = tuple[Tensor, Tensor, Tensor, Tensor]


class Backend(Protocol):
    """What computes the passes."""

    def counts(self, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
        """See `pixel_counts`."""

    def sums(
        self,
        logits: Tensor,
        target: Tensor,
        scored: Tensor,
        pixel_weight: Tensor | None,
        class_weight: Tensor | None,
        options: PassOptions,
    ) -> Sums:
        """See `pixel_sums`."""

    def gradient(
        self,
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
        """See `pixel_gradient`."""


def triton_passes_on(device: torch.device) -> ModuleType | None:
    """`aucseg.losses.auc.triton_passes` if they work there; says once what is slower on an accelerator without them."""
    if device.type in ("cpu", "meta"):
        return None
    if device.type != "cuda":  # which ROCm is called as well
        warn_without_kernels(device.type)
        return None
    passes = import_kernels("aucseg.losses.auc.triton_passes", "the passes of the AUC loss")
    return passes if passes is not None and passes.works_on(device) else None


@lru_cache(maxsize=8)
def warn_without_kernels(kind: str) -> None:
    """Warns, once for each kind of device."""
    warnings.warn(
        f"the AUC loss runs as operations of torch on {kind}, to the same value: its kernels, which take a fraction of "
        "the time, are for CUDA",
        stacklevel=2,
    )


def triton_passes_for(
    logits: Tensor, target: Tensor, options: PassOptions, *, by_pair: bool = False
) -> ModuleType | None:
    """`aucseg.losses.auc.triton_passes` if they have these options on the device of the logits."""
    passes = triton_passes_on(logits.device)
    if passes is None or not passes.offered(logits, target, options, by_pair=by_pair):
        return None
    return passes if not by_pair or passes.works_on(logits.device, by_pair=True) else None


def _backend(logits: Tensor, target: Tensor, pixel_weight: Tensor | None, options: PassOptions) -> Backend:
    return triton_passes_for(logits, target, options, by_pair=pixel_weight is None) or torch_passes


@torch.library.custom_op(
    "aucseg::pixel_counts", mutates_args=(), schema="(Tensor target, int num_classes, int ignore_index) -> Tensor"
)
def pixel_counts(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Pixels per class, `(K,)` in the wide dtype; ignored pixels are left out."""
    backend: Backend = triton_passes_on(target.device) or torch_passes
    return backend.counts(target, num_classes, ignore_index)


@pixel_counts.register_fake
def _(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    return target.new_empty(num_classes, dtype=wide_dtype(target.device))


_SCHEMA = (
    "Tensor logits, Tensor target, Tensor scored, Tensor? pixel_weight, Tensor? class_weight, str form, float margin, "
    "int degree, str scores, int ignore_index, bool cross_entropy, float label_smoothing"
)


@torch.library.custom_op(
    "aucseg::pixel_sums", mutates_args=(), schema=f"({_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)"
)
def pixel_sums(
    logits: Tensor,
    target: Tensor,
    scored: Tensor,
    pixel_weight: Tensor | None,
    class_weight: Tensor | None,
    *options: Any,
) -> Sums:
    """Sums the loss terms over the pixels; differentiable once by the logits.

    Args:
        logits: `(B, K, *spatial)` or `(N, K)`; `(B, K, h, w)` smaller than the target is upsampled bilinearly.
        target: `(B, *spatial)` or `(N,)`.
        scored: `(K,)`, true for channels that the AUC term needs; every class that occurs must be among them.
        pixel_weight: Weight of a negative by its label, `(K + 1,)`; the last one, of ignored pixels, is 0. None: keep
            the labels apart.
        class_weight: `(K,)`, of the cross-entropy.
        *options: The fields of `PassOptions`.

    Returns:
        Sums of `p_j` over each class `(J, K)`, weighted sums of `q_k` over the others `(J', K)` (without
        weights: by channel and label, `(J', K, K)`), the weighted sum of the cross-entropy (scalar), all in the wide
        dtype, and the log-sum-exp of the logits at every pixel where the gradient needs it.
    """
    passes = PassOptions(*options)
    backend = _backend(logits, target, pixel_weight, passes)
    return backend.sums(logits, target, scored, pixel_weight, class_weight, passes)


@pixel_sums.register_fake
def _(
    logits: Tensor,
    target: Tensor,
    scored: Tensor,
    pixel_weight: Tensor | None,
    class_weight: Tensor | None,
    *options: Any,
) -> Sums:
    passes = PassOptions(*options)
    wide, form = wide_dtype(logits.device), passes.surrogate
    num_positive, num_negative = form.num_features if form else (0, 0)
    return (
        logits.new_empty(num_positive, logits.shape[1], dtype=wide),
        logits.new_empty(num_negative, *[logits.shape[1]] * (1 if pixel_weight is not None else 2), dtype=wide),
        logits.new_empty((), dtype=wide),
        logits.new_empty(target.shape if passes.needs_lse else (0,), dtype=working_dtype(logits, form)),
    )


@torch.library.custom_op(
    "aucseg::pixel_gradient",
    mutates_args=(),
    schema=f"(Tensor positive, Tensor negative, Tensor entropy, Tensor lse, {_SCHEMA}) -> Tensor",
)
def pixel_gradient(positive: Tensor, negative: Tensor, entropy: Tensor, lse: Tensor, *inputs: Any) -> Tensor:
    """The gradient by the logits, given those by the three sums of `pixel_sums`, its log-sum-exp and its inputs."""
    logits, target, scored, pixel_weight, class_weight, *options = inputs
    passes = PassOptions(*options)
    backend = _backend(logits, target, pixel_weight, passes)
    return backend.gradient(
        positive, negative, entropy, lse, logits, target, scored, pixel_weight, class_weight, passes
    )


@pixel_gradient.register_fake
def _(positive: Tensor, negative: Tensor, entropy: Tensor, lse: Tensor, *inputs: Any) -> Tensor:
    return torch.empty_like(inputs[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Sums) -> None:
    *tensors, ctx.options = *inputs[:5], inputs[5:]
    ctx.save_for_backward(*tensors, output[3])


def _backward(ctx: Any, positive: Tensor, negative: Tensor, entropy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, lse = ctx.saved_tensors
    gradient = pixel_gradient(positive, negative, entropy, lse, *tensors, *ctx.options)
    return gradient, *[None] * (4 + len(ctx.options))


pixel_sums.register_autograd(_backward, setup_context=_setup_context)


def _second_order(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(ONCE)


pixel_gradient.register_autograd(_second_order)
