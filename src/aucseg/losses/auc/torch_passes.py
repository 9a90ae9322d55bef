"""The passes over the pixels with operations of torch: for every device and all options, piece by piece.

The logits are walked through in pieces that fit the cache (`aucseg.losses.auc.pieces`); what a pass sees of a piece is
in `aucseg.losses.auc.pixels`. Work per pixel is float32 (float64 where the form needs it), sums are float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.losses.auc.options import PassOptions, may_overflow, working_dtype
from aucseg.losses.auc.pieces import Buffers, FullResolution, PieceSource, UpsampledBands, piece_size
from aucseg.losses.auc.pixels import (
    Channels,
    CrossEntropyWeights,
    Piece,
    ScoredPiece,
    class_labels,
    through_softmax,
)
from aucseg.losses.auc.separable import Separable
from aucseg.tensors.dtypes import wide_dtype, without_autocast

# Pixels that are added up in float32 before float64 takes over; longer runs cost the seventh digit.
_FLOAT32_RUN = 1 << 14
# Rows that additions by label are spread over on an accelerator, where many at one place wait for each other.
_SPREAD = 1024


def counts(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """See `aucseg.losses.auc.operators.pixel_counts`."""
    total = torch.zeros(num_classes + 1, dtype=wide_dtype(target.device), device=target.device)
    for part in torch.split(target.flatten(), piece_size(target.numel(), target.device)):
        labels, ignored = class_labels(part, num_classes, ignore_index)
        if target.device.type == "cpu":
            low, high = labels.aminmax() if len(labels) else (0, 0)
            if low < 0 or high >= num_classes + (ignored is not None):
                raise IndexError(f"target holds labels outside 0..{num_classes - 1} that are not the ignore label")
            total += torch.bincount(labels, minlength=num_classes + 1)
        else:  # bincount would wait for the device
            total += torch.histc(labels.float(), num_classes + 1, -0.5, num_classes + 0.5)
    return total[:num_classes].clone()


def sums(
    logits: Tensor,
    target: Tensor,
    scored: Tensor,
    pixel_weight: Tensor | None,
    class_weight: Tensor | None,
    options: PassOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `aucseg.losses.auc.operators.pixel_sums`."""
    with _exact(logits.device):
        return _sums(logits, target, scored, pixel_weight, class_weight, options)


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
    form = options.surrogate
    if form is None and not options.cross_entropy:
        return torch.zeros_like(logits)
    channels = Channels(scored, options)
    with _exact(logits.device):
        auc = None if form is None else _AUCSlope(form, positive, negative, pixel_weight, channels, logits)
        return _gradient(auc, entropy, lse, logits, target, class_weight, channels, options)


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """No autocast, and float32 products without TensorFloat-32, whatever the user allows networks: both lose digits."""
    with without_autocast(device):
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


def _source(
    logits: Tensor, target: Tensor, channels: Channels, options: PassOptions, gradient: Tensor | None = None
) -> PieceSource:
    """The way through the logits: directly, or upsampled where they are smaller than the target."""
    if logits.shape[2:] == target.shape[1:]:
        # All channels once, for their scores; those that are picked also before and after.
        all_channels = channels.picked is None or options.cross_entropy
        buffered = channels.num_classes if all_channels else 3 * channels.num_scored
        return FullResolution(logits, buffered, gradient)
    form, size = options.surrogate, (target.shape[1], target.shape[2])
    return UpsampledBands(logits, size, working_dtype(logits, form), gradient, saturate=may_overflow(logits, form))


def _sums(
    logits: Tensor,
    target: Tensor,
    scored: Tensor,
    pixel_weight: Tensor | None,
    class_weight: Tensor | None,
    options: PassOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    form, channels = options.surrogate, Channels(scored, options)
    device, dtype, wide = logits.device, working_dtype(logits, form), wide_dtype(logits.device)
    num_scored = channels.num_scored
    num_positive, num_negative = form.num_features if form else (0, 0)
    positive = torch.zeros(num_positive, num_scored + 1, dtype=wide, device=device)
    shape = (num_scored,) if pixel_weight is not None else (num_scored, num_scored)
    negative = torch.zeros(num_negative, *shape, dtype=wide, device=device)
    entropy = torch.zeros((), dtype=wide, device=device)
    lse = torch.empty(target.shape if options.needs_lse else (0,), dtype=dtype, device=device)
    ce = CrossEntropyWeights(class_weight, logits, dtype, options)
    weight_table = channels.pick_weights(pixel_weight, dtype)
    source, buffers = _source(logits, target, channels, options), Buffers(dtype, device)
    labels_map, lse_map = source.arrange(target), source.arrange(lse) if options.needs_lse else lse
    for index, part in source.pieces():
        piece = Piece(part, labels_map[index], channels, options, buffers)
        piece_lse = None
        if options.needs_lse:
            top, above = _log_sum_exp(piece.logits, buffers)
            piece_lse = top + above
            lse_map[index] = piece_lse.squeeze(1)
            if options.cross_entropy:
                entropy += ce.sum(piece, top, above)
        if form is None:
            continue
        view = ScoredPiece(piece, channels, options, buffers, piece_lse if options.scores == "softmax" else None)
        for j, feature in enumerate(form.positive_features(view.shortfall)):
            _add_by_label(positive[j], view.labels.flatten(), feature.flatten())
        if weight_table is None:
            classes, indicator = view.one_hot(num_scored)
        else:
            indicator = view.by_label(weight_table).unsqueeze(1)
        for k, feature in enumerate(form.negative_features(view.values, view.own)):
            part_sum = _matched_sum(feature, indicator)
            if weight_table is None:
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
    """`sum over b, p of feature[b, c, p] weight[b, l, p]`, `(c, l)`, wide."""
    if feature.device.type != "cpu" and weight.shape[1] == 1:  # two large launches instead of many small ones
        return (feature * weight).sum((0, 2), dtype=wide_dtype(feature.device)).unsqueeze(1)
    total = torch.zeros(feature.shape[1], weight.shape[1], dtype=wide_dtype(feature.device), device=feature.device)
    for part, part_weight in zip(
        torch.split(feature, _FLOAT32_RUN, 2), torch.split(weight, _FLOAT32_RUN, 2), strict=True
    ):
        total += torch.matmul(part, part_weight.transpose(1, 2)).sum(0, dtype=total.dtype)
    return total


def _log_sum_exp(logits: Tensor, buffers: Buffers) -> tuple[Tensor, Tensor]:
    """The largest logit, and by how much the log-sum-exp is above it: their sum has lost digits of the second."""
    top = logits.amax(1, keepdim=True)
    total = torch.sub(logits, top, out=buffers.take("values", logits)).exp_().sum(1, keepdim=True)
    return top, total.log_()


class _AUCSlope:
    """The slope of the AUC loss by the logits of a piece, from its slopes by the sums."""

    def __init__(
        self,
        form: Separable,
        positive: Tensor,
        negative: Tensor,
        pixel_weight: Tensor | None,
        channels: Channels,
        logits: Tensor,
    ) -> None:
        self._form, dtype = form, working_dtype(logits, form)
        self._by_positive = F.pad(channels.pick(positive), (0, 1)).to(dtype)
        self._weight_table = channels.pick_weights(pixel_weight, dtype)
        self._by_negative = channels.pick(negative).to(dtype)
        if pixel_weight is None:
            self._by_negative = channels.pick(self._by_negative, 1)

    def by_logits(self, view: ScoredPiece, scores: str, out: Tensor) -> Tensor:
        """The slope, in `out`."""
        if self._weight_table is None:
            classes, indicator = view.one_hot(self._by_negative.shape[1])
            slope_weight, weight = torch.matmul(self._by_negative[:, None, :, classes], indicator), None
        else:
            slope_weight, weight = self._by_negative.unsqueeze(2), view.by_label(self._weight_table)
        slope, factor = self._form.negative_slope(view.values, slope_weight, out)
        if weight is not None and factor is not None:
            weight.mul_(factor)
        own_weight = self._by_positive.index_select(1, view.labels.flatten()).view(-1, *view.labels.shape)
        own_slope = self._form.positive_slope(view.shortfall, own_weight)
        # Slopes by the scores -> by the logits, in place: negatives weighted, positives put in their place.
        if scores == "sigmoid":
            torch.ops.aten.sigmoid_backward.grad_input(slope, view.values, grad_input=slope)
            own_slope = own_slope * view.shortfall * (1 - view.shortfall)
        if weight is not None:
            slope.mul_(weight.unsqueeze(1))
        slope.scatter_(1, view.own, own_slope.unsqueeze(1))
        return through_softmax(slope, view.values, 1) if scores == "softmax" else slope


def _gradient(
    auc: _AUCSlope | None,
    entropy: Tensor,
    lse: Tensor,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    channels: Channels,
    options: PassOptions,
) -> Tensor:
    form = options.surrogate
    dtype, saturate = working_dtype(logits, form), may_overflow(logits, form)
    ce = CrossEntropyWeights(class_weight, logits, dtype, options).times(entropy.to(dtype))
    sparse = not options.cross_entropy and channels.picked is not None
    gradient = torch.zeros_like(logits) if sparse else torch.empty_like(logits)
    source, buffers = _source(logits, target, channels, options, gradient), Buffers(dtype, logits.device)
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
            ce.gradient(piece, piece_lse, out)
        if auc is not None:
            view = ScoredPiece(piece, channels, options, buffers, piece_lse if options.scores == "softmax" else None)
            direct = channels.picked is None and not options.cross_entropy
            slope = auc.by_logits(view, options.scores, out if direct else buffers.take("slope", view.values))
            if options.cross_entropy:
                out.add_(slope) if channels.picked is None else out.index_add_(1, channels.picked, slope)
            elif channels.picked is not None:
                out.index_copy_(1, channels.picked, slope)
        if saturate:
            limit = torch.finfo(logits.dtype).max
            out.clamp_(-limit, limit)
        if in_place is None:
            source.write(index, out)
    return gradient
