"""The two passes over the pixels: sums of the loss terms, and the gradient by the logits.

Channel c scores its own class (positives) against every other class a (negatives). With pair weights ``w[c, a]`` and a
separable surrogate (see `aucseg.losses.auc.surrogates`) the AUC loss is

    L = sum_c sum_jk C[j, k] P_j[c] Q_k[c],
    P_j[c] = mean of p_j(f_c) over the pixels of class c,
    Q_k[c] = sum over the pixels x of other classes of  w[c, y(x)] / n_y(x)  q_k(f_c(x)).

Every pixel thus carries one weight for all channels (uniform one-vs-one: one over the size of its class), the state is
a few numbers a channel, and only channels whose class occurs take part. `pixel_sums` is differentiable: what follows it
is arithmetic on ``(J, K)`` tables. Both passes are opaque operators, so that ``torch.compile`` does not unroll their
loops.

On CUDA most options have kernels of their own (`aucseg.losses.auc.triton_kernels`); what follows here serves all
devices and options.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.dtypes import wide_dtype
from aucseg.losses.auc.pieces import Buffers, piece_size
from aucseg.losses.auc.pixels import (
    ONCE,
    Channels,
    CrossEntropyWeights,
    PassOptions,
    Piece,
    ScoredPiece,
    class_labels,
    lookup,
    through_softmax,
)

# Rows that additions by label are spread over on an accelerator, where many at one place wait for each other.
_SPREAD = 1024


def kernels_for(device: torch.device) -> ModuleType | None:
    """`aucseg.losses.auc.triton_kernels` if they work there."""
    kernels = _imported_kernels() if device.type == "cuda" else None
    return kernels if kernels is not None and kernels.works_on(device) else None


@lru_cache(maxsize=1)
def _imported_kernels() -> ModuleType | None:
    # Importing Triton takes a moment, which a CPU need not wait for.
    try:
        from aucseg.losses.auc import triton_kernels as kernels
    except Exception as error:  # not installed, or whatever a broken installation raises
        warnings.warn(f"the AUC loss falls back to slower operations of torch, without Triton: {error}", stacklevel=2)
        return None
    return kernels


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Float32 products without TensorFloat-32, whatever the user allows networks: three digits are too few here."""
    if device.type != "cuda":
        yield
        return
    settings = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    before = getattr(settings, name)
    setattr(settings, name, exact)
    try:
        yield
    finally:
        setattr(settings, name, before)


@torch.library.custom_op(
    "aucseg::class_counts", mutates_args=(), schema="(Tensor target, int num_classes, int ignore_index) -> Tensor"
)
def class_counts(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Pixels per class, ``(K,)`` in the wide dtype; ignored pixels are left out."""
    kernels = kernels_for(target.device)
    if kernels is not None:
        found: Tensor = kernels.counts(target, num_classes, ignore_index)
        return found
    counts = torch.zeros(num_classes + 1, dtype=wide_dtype(target.device), device=target.device)
    for part in torch.split(target.flatten(), piece_size(target.numel(), target.device)):
        labels, _ = class_labels(part, num_classes, ignore_index)
        if target.device.type == "cpu":
            counts += torch.bincount(labels, minlength=num_classes + 1)
        else:  # bincount would wait for the device
            counts += torch.histc(labels.float(), num_classes + 1, -0.5, num_classes + 0.5)
    return counts[:num_classes].clone()


@class_counts.register_fake
def _(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    return target.new_empty(num_classes, dtype=wide_dtype(target.device))


# Pixels that are added up in float32 before float64 takes over; longer runs cost the seventh digit.
_FLOAT32_RUN = 1 << 14

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
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum the loss terms over the pixels; differentiable once by the logits.

    Args:
        logits: ``(B, K, *spatial)`` or ``(N, K)``; ``(B, K, h, w)`` smaller than the target is upsampled bilinearly.
        target: ``(B, *spatial)`` or ``(N,)``.
        scored: ``(K,)``, true for channels that the AUC term needs; every class that occurs must be among them.
        pixel_weight: Weight of a negative by its label, ``(K + 1,)``; the last one, of ignored pixels, is 0. None: keep
            the labels apart.
        class_weight: ``(K,)``, of the cross-entropy.
        *settings: The fields of `PassOptions`.

    Returns:
        Sums of ``p_j`` over each class ``(J, K)``, weighted sums of ``q_k`` over the others ``(J', K)`` (without
        weights: by channel and label, ``(J', K, K)``), the weighted sum of the cross-entropy (scalar), all in the wide
        dtype, and the log-sum-exp of the logits at every pixel where the gradient needs it.
    """
    options = PassOptions(*settings)
    kernels = kernels_for(logits.device)
    if kernels is not None and pixel_weight is not None and kernels.offered(logits, target, options):
        found: tuple[Tensor, Tensor, Tensor, Tensor] = kernels.sums(logits, target, pixel_weight, class_weight, options)
        return found
    with torch.autocast(logits.device.type, enabled=False), _exact_products(logits.device):
        return _sums(logits, target, scored, pixel_weight, class_weight, options)


def _sums(
    logits: Tensor,
    target: Tensor,
    scored: Tensor,
    pixel_weight: Tensor | None,
    class_weight: Tensor | None,
    options: PassOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device, dtype, wide = logits.device, options.dtype(logits), wide_dtype(logits.device)
    surrogate, channels = options.surrogate, Channels(scored, options)
    num_scored = channels.num_scored
    num_positive, num_negative = surrogate.num_features if surrogate else (0, 0)
    positive = torch.zeros(num_positive, num_scored + 1, dtype=wide, device=device)
    shape = (num_scored,) if pixel_weight is not None else (num_scored, num_scored)
    negative = torch.zeros(num_negative, *shape, dtype=wide, device=device)
    entropy = torch.zeros((), dtype=wide, device=device)
    lse = torch.empty(target.shape if options.needs_lse else (0,), dtype=dtype, device=device)
    ce = CrossEntropyWeights(class_weight, logits, dtype, options)
    if pixel_weight is not None:
        weight_table = F.pad(channels.pick(pixel_weight[:-1].to(dtype)), (0, 1))
    source, buffers = options.source(logits, target, channels), Buffers(dtype, device)
    labels_map, lse_map = source.arrange(target), source.arrange(lse) if options.needs_lse else lse
    for index, part in source.pieces():
        piece = Piece(part, labels_map[index], channels, options, buffers)
        piece_lse = None
        if options.needs_lse:
            piece_lse = _log_sum_exp(piece.logits, buffers)
            lse_map[index] = piece_lse.squeeze(1)
        if options.cross_entropy and piece_lse is not None:
            entropy += ce.sum(piece, piece_lse)
        if surrogate is None:
            continue
        view = ScoredPiece(piece, channels, options, buffers, piece_lse if options.scores == "softmax" else None)
        for j, feature in enumerate(surrogate.positive_features(view.shortfall)):
            _add_by_label(positive[j], view.labels.flatten(), feature.flatten())
        if pixel_weight is None:
            classes, indicator = view.one_hot(num_scored)
        else:
            indicator = view.by_label(weight_table).unsqueeze(1)
        for k, feature in enumerate(surrogate.negative_features(view.values, view.own)):
            part_sum = _matched_sum(feature, indicator)
            if pixel_weight is None:
                negative[k].index_add_(1, classes, part_sum)
            else:
                negative[k] += part_sum.squeeze(1)
    return channels.spread(positive[:, :num_scored].contiguous()), channels.spread(negative), entropy, lse


def _add_by_label(total: Tensor, labels: Tensor, values: Tensor) -> None:
    values = values.to(total.dtype)
    if total.device.type == "cpu":
        total += torch.bincount(labels, values, minlength=total.numel())  # faster than index_add_; waits for a device
    else:
        rows = torch.arange(labels.numel(), device=labels.device) % _SPREAD
        spread = total.new_zeros(_SPREAD * total.numel()).index_add_(0, rows * total.numel() + labels, values)
        total += spread.view(_SPREAD, -1).sum(0)


def _matched_sum(feature: Tensor, weight: Tensor) -> Tensor:
    """``sum over b, p of feature[b, c, p] weight[b, l, p]``, ``(c, l)``, wide."""
    if feature.device.type != "cpu" and weight.shape[1] == 1:  # two large launches instead of many small ones
        return (feature * weight).sum((0, 2), dtype=wide_dtype(feature.device)).unsqueeze(1)
    total = torch.zeros(feature.shape[1], weight.shape[1], dtype=wide_dtype(feature.device), device=feature.device)
    for part, part_weight in zip(
        torch.split(feature, _FLOAT32_RUN, 2), torch.split(weight, _FLOAT32_RUN, 2), strict=True
    ):
        total += torch.matmul(part, part_weight.transpose(1, 2)).sum(0, dtype=total.dtype)
    return total


def _log_sum_exp(logits: Tensor, buffers: Buffers) -> Tensor:
    top = logits.amax(1, keepdim=True)
    total = torch.sub(logits, top, out=buffers.take("values", logits)).exp_().sum(1, keepdim=True)
    return total.log_().add_(top)


@pixel_sums.register_fake
def _(
    logits: Tensor,
    target: Tensor,
    scored: Tensor,
    pixel_weight: Tensor | None,
    class_weight: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = PassOptions(*settings)
    wide, surrogate = wide_dtype(logits.device), options.surrogate
    num_positive, num_negative = surrogate.num_features if surrogate else (0, 0)
    return (
        logits.new_empty(num_positive, logits.shape[1], dtype=wide),
        logits.new_empty(num_negative, *[logits.shape[1]] * (1 if pixel_weight is not None else 2), dtype=wide),
        logits.new_empty((), dtype=wide),
        logits.new_empty(target.shape if options.needs_lse else (0,), dtype=options.dtype(logits)),
    )


@torch.library.custom_op(
    "aucseg::pixel_gradient",
    mutates_args=(),
    schema=f"(Tensor positive, Tensor negative, Tensor entropy, Tensor lse, {_SCHEMA}) -> Tensor",
)
def pixel_gradient(positive: Tensor, negative: Tensor, entropy: Tensor, lse: Tensor, *inputs: Any) -> Tensor:
    """The gradient by the logits, given those by the three sums of `pixel_sums`, its log-sum-exp and its inputs."""
    logits, target, scored, pixel_weight, class_weight, *settings = inputs
    options = PassOptions(*settings)
    kernels = kernels_for(logits.device)
    if kernels is not None and pixel_weight is not None and kernels.offered(logits, target, options):
        found: Tensor = kernels.gradient(
            positive, negative, entropy, lse, logits, target, pixel_weight, class_weight, options
        )
        return found
    with torch.autocast(logits.device.type, enabled=False), _exact_products(logits.device):
        return _gradient(positive, negative, entropy, lse, logits, target, scored, pixel_weight, class_weight, options)


def _gradient(
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
    dtype, surrogate, channels = options.dtype(logits), options.surrogate, Channels(scored, options)
    if surrogate is None and not options.cross_entropy:
        return torch.zeros_like(logits)
    num_scored = channels.num_scored
    ce = CrossEntropyWeights(class_weight, logits, dtype, options)
    entropy = entropy.to(dtype)
    by_softmax, by_own = entropy * ce.by_softmax, entropy * ce.by_own
    by_positive = F.pad(channels.pick(positive), (0, 1)).to(dtype)
    by_negative = channels.pick(negative).to(dtype)
    if pixel_weight is None:
        by_negative = channels.pick(by_negative, 1)
    else:
        weight_table = F.pad(channels.pick(pixel_weight[:-1].to(dtype)), (0, 1))
    sparse = not options.cross_entropy and channels.picked is not None
    gradient = torch.zeros_like(logits) if sparse else torch.empty_like(logits)
    source, buffers = options.source(logits, target, channels, gradient), Buffers(dtype, logits.device)
    labels_map, lse_map = source.arrange(target), source.arrange(lse) if options.needs_lse else lse
    for index, part in source.pieces():
        piece = Piece(part, labels_map[index], channels, options, buffers)
        in_place = source.gradient_out(index, piece.logits)
        if in_place is not None:
            out = in_place
        else:
            out = buffers.take("out", part)
            if sparse:  # the channels of absent classes are not written below
                out.zero_()
        piece_lse = lse_map[index].unsqueeze(1) if options.needs_lse else None
        if options.cross_entropy and piece_lse is not None:
            torch.sub(piece.logits, piece_lse, out=out).exp_().mul_(lookup(by_softmax, piece.labels).unsqueeze(1))
            own = piece.own(piece.labels, piece.num_classes)
            out.scatter_add_(1, own, lookup(by_own, piece.labels).neg_().unsqueeze(1))
            if ce.smooth:
                valid = (piece.labels < piece.num_classes).to(dtype).unsqueeze(1)
                out.sub_((entropy * ce.by_channel).unsqueeze(1) * valid)
        if surrogate is not None:
            view = ScoredPiece(piece, channels, options, buffers, piece_lse if options.scores == "softmax" else None)
            if pixel_weight is None:
                classes, indicator = view.one_hot(num_scored)
                slope_weight, weight = torch.matmul(by_negative[:, None, :, classes], indicator), None
            else:
                slope_weight, weight = by_negative.unsqueeze(2), view.by_label(weight_table)
            direct = channels.picked is None and not options.cross_entropy
            slope_out = out if direct else buffers.take("slope", view.values)
            slope, factor = surrogate.negative_slope(view.values, slope_weight, slope_out)
            if weight is not None and factor is not None:
                weight.mul_(factor)
            own_weight = by_positive.index_select(1, view.labels.flatten()).view(-1, *view.labels.shape)
            own_slope = surrogate.positive_slope(view.shortfall, own_weight)
            _through_scores(slope, weight, own_slope, view, options.scores)
            if options.cross_entropy:
                out.add_(slope) if channels.picked is None else out.index_add_(1, channels.picked, slope)
            elif channels.picked is not None:
                out.index_copy_(1, channels.picked, slope)
        if options.may_overflow(logits):
            limit = torch.finfo(logits.dtype).max
            out.clamp_(-limit, limit)
        if in_place is None:
            source.write(index, out)
    return gradient


def _through_scores(slope: Tensor, weight: Tensor | None, own_slope: Tensor, view: ScoredPiece, scores: str) -> None:
    """Slopes by the scores -> gradient by the logits, in place: negatives weighted, positives put in their place."""
    values, shortfall, own = view.values, view.shortfall, view.own
    if scores == "sigmoid":
        torch.ops.aten.sigmoid_backward.grad_input(slope, values, grad_input=slope)
        own_slope = own_slope * shortfall * (1 - shortfall)
    if weight is not None:
        slope.mul_(weight.unsqueeze(1))
    slope.scatter_(1, own, own_slope.unsqueeze(1))
    if scores == "softmax":
        through_softmax(slope, values, 1)


@pixel_gradient.register_fake
def _(positive: Tensor, negative: Tensor, entropy: Tensor, lse: Tensor, *inputs: Any) -> Tensor:
    return torch.empty_like(inputs[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.settings = *inputs[:5], inputs[5:]
    ctx.save_for_backward(*tensors, output[3])


def _backward(ctx: Any, positive: Tensor, negative: Tensor, entropy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, lse = ctx.saved_tensors
    gradient = pixel_gradient(positive, negative, entropy, lse, *tensors, *ctx.settings)
    return gradient, *[None] * (4 + len(ctx.settings))


pixel_sums.register_autograd(_backward, setup_context=_setup_context)


def _second_order(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(ONCE)


pixel_gradient.register_autograd(_second_order)
