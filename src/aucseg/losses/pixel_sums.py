"""The two passes over the pixels: sums of the loss terms, and the gradient by the logits.

Channel c scores its own class (positives) against every other class a (negatives). With pair weights ``w[c, a]`` and a
separable surrogate (see `aucseg.losses.surrogates`) the AUC loss is

    L = sum_c sum_jk C[j, k] P_j[c] Q_k[c],
    P_j[c] = mean of p_j(f_c) over the pixels of class c,
    Q_k[c] = sum over the pixels x of other classes of  w[c, y(x)] / n_y(x)  q_k(f_c(x)).

Every pixel thus carries one weight for all channels (uniform one-vs-one: one over the size of its class), the state is
a few numbers a channel, and only channels whose class occurs take part. `pixel_sums` is differentiable: what follows it
is arithmetic on ``(J, K)`` tables. Both passes are opaque operators, so that ``torch.compile`` does not unroll their
loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.losses.pieces import Buffers, FullResolution, PieceSource, UpsampledBands, piece_size
from aucseg.losses.surrogates import Separable, separable_form

# Share of scored channels up to which picking them out costs less than scoring them all.
_PICK_BELOW = 0.8


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class PassOptions:
    """What the passes compute.

    Attributes:
        form: Name of the separable form, or ``""`` for no AUC term.
        margin: Its margin.
        degree: Its degree.
        scores: ``"sigmoid"``, ``"softmax"`` or ``"identity"``.
        ignore_index: The ignore label.
        cross_entropy: Whether to sum the cross-entropy.
        label_smoothing: Of the cross-entropy.
    """

    form: str
    margin: float
    degree: int
    scores: str
    ignore_index: int
    cross_entropy: bool = False
    label_smoothing: float = 0.0

    @property
    def surrogate(self) -> Separable | None:
        """The separable surrogate."""
        return separable_form(self.form, self.margin, self.degree, self.scores) if self.form else None

    @property
    def needs_lse(self) -> bool:
        """Whether the gradient needs the log-sum-exp of the logits."""
        return self.cross_entropy or self.scores == "softmax"

    def dtype(self, logits: Tensor) -> torch.dtype:
        """Of per-pixel arithmetic: float32, or float64 for identity scores, steep exponentials and float64 logits."""
        steep = self.form == "exponential" and self.margin > 20
        if logits.dtype == torch.float64 or (self.form and self.scores == "identity") or steep:
            return wide_dtype(logits.device)
        return torch.float32

    def source(self, logits: Tensor, target: Tensor, gradient: Tensor | None = None) -> PieceSource:
        """The way through the logits: directly, or upsampled where they are smaller than the target."""
        if logits.shape[2:] == target.shape[1:]:
            return FullResolution(logits, gradient)
        return UpsampledBands(logits, (target.shape[1], target.shape[2]), self.dtype(logits), gradient)


def class_labels(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels as int64 with the ignore label mapped to ``num_classes``; may be ``target`` itself."""
    labels = target.to(torch.int64)
    if target.device.type == "cpu" and labels.numel():
        low, high = (int(value) for value in torch.aminmax(labels))
        if not low <= ignore_index <= high:
            return labels
    return labels.masked_fill(labels == ignore_index, num_classes)


@torch.library.custom_op(
    "aucseg::class_counts", mutates_args=(), schema="(Tensor target, int num_classes, int ignore_index) -> Tensor"
)
def class_counts(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Pixels per class, ``(K,)`` in the wide dtype; ignored pixels are left out."""
    counts = torch.zeros(num_classes + 1, dtype=wide_dtype(target.device), device=target.device)
    for part in torch.split(target.flatten(), piece_size(target.device)):
        labels = class_labels(part, num_classes, ignore_index)
        if target.device.type == "cpu":
            counts += torch.bincount(labels, minlength=num_classes + 1)
        else:  # bincount would wait for the device
            counts += torch.histc(labels.float(), num_classes + 1, -0.5, num_classes + 0.5)
    return counts[:num_classes].clone()


@class_counts.register_fake
def _(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    return target.new_empty(num_classes, dtype=wide_dtype(target.device))


class _Channels:
    """The channels that the AUC term scores, picked out of all where that pays (on a CPU, where asking is free)."""

    def __init__(self, scored: Tensor, options: PassOptions) -> None:
        self.picked: Tensor | None = None
        self.num_classes = self.num_scored = scored.numel()
        if scored.device.type == "cpu" and options.scores != "softmax":
            picked = scored.nonzero().squeeze(1)
            if 0 < picked.numel() <= _PICK_BELOW * self.num_classes:
                self.picked, self.num_scored = picked, picked.numel()
                self._position = torch.full((self.num_classes + 1,), self.num_scored)
                self._position[picked] = torch.arange(self.num_scored)

    def pick(self, table: Tensor, dim: int = -1) -> Tensor:
        """Of a table of all channels, those that are scored."""
        return table if self.picked is None else table.index_select(dim, self.picked)

    def spread(self, table: Tensor) -> Tensor:
        """A table of the scored channels as one of all, in every dimension but the first."""
        if self.picked is None:
            return table
        for dim in range(1, table.dim()):
            shape = list(table.shape)
            shape[dim] = self.num_classes
            table = table.new_zeros(shape).index_copy_(dim, self.picked, table)
        return table

    def labels(self, labels: Tensor) -> Tensor:
        """Labels as positions among the scored channels; ignored pixels come after the last."""
        if self.picked is None:
            return labels
        return self._position.index_select(0, labels.flatten()).view_as(labels)


class _Piece:
    """A piece with its labels."""

    def __init__(self, logits: Tensor, target: Tensor, options: PassOptions, buffers: Buffers) -> None:
        self.num_classes = logits.shape[1]
        self.labels = class_labels(target, self.num_classes, options.ignore_index)
        on_cpu = logits.device.type == "cpu"
        self.has_ignored = not on_cpu or (self.labels.numel() > 0 and int(self.labels.max()) == self.num_classes)
        if self.has_ignored:
            # An ignored pixel must not count whatever its logits hold, infinities and NaN included.
            ignored = (self.labels == self.num_classes).unsqueeze(1)
            zero = torch.zeros((), dtype=buffers.dtype, device=logits.device)
            self.logits = torch.where(ignored, zero, logits.to(buffers.dtype), out=buffers.take("logits", logits))
        elif logits.dtype != buffers.dtype:
            self.logits = buffers.take("logits", logits).copy_(logits)
        else:
            self.logits = logits

    def own(self, labels: Tensor, num_channels: int) -> Tensor:
        """Channel of each pixel's own class, ``(b, 1, p)``; any channel at ignored pixels."""
        return (labels.clamp(max=num_channels - 1) if self.has_ignored else labels).unsqueeze(1)


class _ScoredPiece:
    """The part of a piece that the AUC term sees: scored channels, their scores, and labels as positions among them."""

    def __init__(
        self, piece: _Piece, channels: _Channels, options: PassOptions, buffers: Buffers, lse: Tensor | None
    ) -> None:
        logits = piece.logits
        if channels.picked is not None:
            shape = logits[:, : channels.num_scored]
            logits = torch.index_select(logits, 1, channels.picked, out=buffers.take("picked", shape))
        self.labels = channels.labels(piece.labels)
        self.own = piece.own(self.labels, channels.num_scored)
        self.values = buffers.take("values", logits)
        if lse is not None:
            torch.sub(logits, lse, out=self.values).exp_()
            self.shortfall = 1 - self.values.gather(1, self.own).squeeze(1)
        elif options.scores == "sigmoid":
            torch.sigmoid(logits, out=self.values)
            self.shortfall = logits.gather(1, self.own).squeeze(1).neg_().sigmoid_()
        else:
            self.values.copy_(logits)
            self.shortfall = -logits.gather(1, self.own).squeeze(1)

    def by_label(self, weights: Tensor) -> Tensor:
        """``(K + 1,)`` -> ``(b, p)``: the weight of each pixel's label."""
        return weights.index_select(0, self.labels.flatten()).view_as(self.labels)

    def one_hot(self, num_channels: int) -> tuple[Tensor, Tensor]:
        """Classes ``(l,)`` and the indicator ``(b, l, p)`` of them; on a CPU only the classes of this piece."""
        classes = torch.arange(num_channels, device=self.labels.device)
        if self.labels.device.type == "cpu":
            classes = classes[torch.bincount(self.labels.flatten(), minlength=num_channels + 1)[:num_channels] > 0]
        return classes, (self.labels.unsqueeze(1) == classes.unsqueeze(1)).to(self.values.dtype)


class _CrossEntropyWeights:
    """Class weights and label smoothing of the cross-entropy as tables by label, ``(K + 1,)``, 0 for ignored pixels."""

    def __init__(self, class_weight: Tensor | None, logits: Tensor, dtype: torch.dtype, options: PassOptions) -> None:
        num_classes = logits.shape[1]
        if class_weight is None:
            class_weight = torch.ones(num_classes, device=logits.device)
        self.weight = class_weight.to(dtype)
        self.by_own = F.pad((1 - options.label_smoothing) * self.weight, (0, 1))
        self.by_channel = options.label_smoothing / num_classes * self.weight
        self.by_softmax = self.by_own + F.pad(self.by_channel.sum().expand(num_classes), (0, 1))
        self.smooth = options.label_smoothing > 0

    def sum(self, piece: _Piece, lse: Tensor) -> Tensor:
        """The weighted sum over a piece; ``lse`` is ``(b, 1, p)``."""
        wide = wide_dtype(lse.device)
        labels, lse = piece.labels, lse.squeeze(1)
        own_logits = piece.logits.gather(1, piece.own(labels, piece.num_classes)).squeeze(1)
        total = _lookup(self.by_softmax, labels).mul_(lse) - _lookup(self.by_own, labels).mul_(own_logits)
        if self.smooth:
            others = torch.matmul(self.by_channel, piece.logits)
            total -= others.masked_fill_(labels == piece.num_classes, 0)
        return total.sum(dtype=wide)


def _lookup(table: Tensor, labels: Tensor) -> Tensor:
    return table.index_select(0, labels.flatten()).view_as(labels)


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
    with torch.autocast(logits.device.type, enabled=False):
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
    surrogate, channels = options.surrogate, _Channels(scored, options)
    num_scored = channels.num_scored
    num_positive, num_negative = surrogate.num_features if surrogate else (0, 0)
    positive = torch.zeros(num_positive, num_scored + 1, dtype=wide, device=device)
    shape = (num_scored,) if pixel_weight is not None else (num_scored, num_scored)
    negative = torch.zeros(num_negative, *shape, dtype=wide, device=device)
    entropy = torch.zeros((), dtype=wide, device=device)
    lse = torch.empty(target.shape if options.needs_lse else (0,), dtype=dtype, device=device)
    ce = _CrossEntropyWeights(class_weight, logits, dtype, options)
    if pixel_weight is not None:
        weight_table = F.pad(channels.pick(pixel_weight[:-1].to(dtype)), (0, 1))
    source, buffers = options.source(logits, target), Buffers(dtype, device)
    labels_map, lse_map = source.arrange(target), source.arrange(lse) if options.needs_lse else lse
    for index, part in source.pieces():
        piece = _Piece(part, labels_map[index], options, buffers)
        piece_lse = None
        if options.needs_lse:
            piece_lse = _log_sum_exp(piece.logits, buffers)
            lse_map[index] = piece_lse.squeeze(1)
        if options.cross_entropy and piece_lse is not None:
            entropy += ce.sum(piece, piece_lse)
        if surrogate is None:
            continue
        view = _ScoredPiece(piece, channels, options, buffers, piece_lse if options.scores == "softmax" else None)
        for j, feature in enumerate(surrogate.positive_features(view.shortfall)):
            if device.type == "cpu":
                positive[j] += torch.bincount(view.labels.flatten(), feature.flatten(), minlength=num_scored + 1)
            else:
                positive[j].index_add_(0, view.labels.flatten(), feature.flatten().to(wide))
        if pixel_weight is None:
            classes, indicator = view.one_hot(num_scored)
        else:
            indicator = view.by_label(weight_table).unsqueeze(1)
        for k, feature in enumerate(surrogate.negative_features(view.values, view.own)):
            part_sum = torch.matmul(feature, indicator.transpose(1, 2)).sum(0, dtype=wide)
            if pixel_weight is None:
                negative[k].index_add_(1, classes, part_sum)
            else:
                negative[k] += part_sum.squeeze(1)
    return channels.spread(positive[:, :num_scored].contiguous()), channels.spread(negative), entropy, lse


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
    with torch.autocast(logits.device.type, enabled=False):
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
    dtype, surrogate, channels = options.dtype(logits), options.surrogate, _Channels(scored, options)
    num_scored = channels.num_scored
    ce = _CrossEntropyWeights(class_weight, logits, dtype, options)
    entropy = entropy.to(dtype)
    by_softmax, by_own = entropy * ce.by_softmax, entropy * ce.by_own
    by_positive = F.pad(channels.pick(positive), (0, 1)).to(dtype)
    by_negative = channels.pick(negative).to(dtype)
    if pixel_weight is None:
        by_negative = channels.pick(by_negative, 1)
    else:
        weight_table = F.pad(channels.pick(pixel_weight[:-1].to(dtype)), (0, 1))
    full = logits.shape[2:] == target.shape[1:]
    sparse = not options.cross_entropy and channels.picked is not None
    gradient = torch.zeros_like(logits) if sparse or not full else torch.empty_like(logits)
    source, buffers = options.source(logits, target, gradient), Buffers(dtype, logits.device)
    labels_map, lse_map = source.arrange(target), source.arrange(lse) if options.needs_lse else lse
    for index, part in source.pieces():
        piece = _Piece(part, labels_map[index], options, buffers)
        out = source.gradient_out(index, piece.logits)
        if out is None:
            out = buffers.take("out", piece.logits)
        piece_lse = lse_map[index].unsqueeze(1) if options.needs_lse else None
        if options.cross_entropy and piece_lse is not None:
            torch.sub(piece.logits, piece_lse, out=out).exp_().mul_(_lookup(by_softmax, piece.labels).unsqueeze(1))
            own = piece.own(piece.labels, piece.num_classes)
            out.scatter_add_(1, own, _lookup(by_own, piece.labels).neg_().unsqueeze(1))
            if ce.smooth:
                valid = (piece.labels < piece.num_classes).to(dtype).unsqueeze(1)
                out.sub_((entropy * ce.by_channel).unsqueeze(1) * valid)
        if surrogate is not None:
            view = _ScoredPiece(piece, channels, options, buffers, piece_lse if options.scores == "softmax" else None)
            if pixel_weight is None:
                classes, indicator = view.one_hot(num_scored)
                slope_weight, weight = torch.matmul(by_negative[:, None, :, classes], indicator), None
            else:
                slope_weight, weight = by_negative.unsqueeze(2), view.by_label(weight_table)
            slope, factor = surrogate.negative_slope(view.values, slope_weight, buffers.take("slope", view.values))
            if weight is not None and factor is not None:
                weight.mul_(factor)
            own_weight = by_positive.index_select(1, view.labels.flatten()).view(-1, *view.labels.shape)
            own_slope = surrogate.positive_slope(view.shortfall, own_weight)
            direct = channels.picked is None and not options.cross_entropy
            slope = _through_scores(slope, weight, own_slope, view, options.scores, out if direct else slope)
            if options.cross_entropy:
                out.add_(slope) if channels.picked is None else out.index_add_(1, channels.picked, slope)
            elif channels.picked is not None:
                out.index_copy_(1, channels.picked, slope)
        source.write(index, out)
    return gradient


def _through_scores(
    slope: Tensor, weight: Tensor | None, own_slope: Tensor, view: _ScoredPiece, scores: str, out: Tensor
) -> Tensor:
    """Slopes by the scores -> gradient by the logits into ``out``: negatives weighted, positives put in their place."""
    values, shortfall, own = view.values, view.shortfall, view.own
    row = torch.ones((), dtype=slope.dtype, device=slope.device) if weight is None else weight.unsqueeze(1)
    if scores == "softmax":
        slope.mul_(row).scatter_(1, own, own_slope.unsqueeze(1))
        slope.sub_((slope * values).sum(1, keepdim=True))
        return torch.mul(slope, values, out=out)
    if scores == "sigmoid":
        torch.ops.aten.sigmoid_backward.grad_input(slope, values, grad_input=slope)
        own_slope = own_slope * shortfall * (1 - shortfall)
    return torch.mul(slope, row, out=out).scatter_(1, own, own_slope.unsqueeze(1))


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
    raise NotImplementedError(
        "the AUC loss can be differentiated once; second derivatives (create_graph=True) are not offered"
    )


pixel_gradient.register_autograd(_second_order)
