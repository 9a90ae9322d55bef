"""What the passes over the pixels see of a piece: labels, scored channels, scores, weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.dtypes import wide_dtype
from aucseg.losses.pieces import Buffers, FullResolution, PieceSource, UpsampledBands
from aucseg.losses.surrogates import Separable, separable_form

ONCE = "the AUC loss can be differentiated once; second derivatives (create_graph=True) are not offered"
# Share of scored channels up to which picking them out costs less than scoring them all.
_PICK_BELOW = 0.5


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

    def may_overflow(self, logits: Tensor) -> bool:
        """Whether the gradient may leave the range of the logits' dtype: an exponential of unbounded scores."""
        return self.form == "exponential" and self.dtype(logits) != logits.dtype

    def source(self, logits: Tensor, target: Tensor, channels: Channels, gradient: Tensor | None = None) -> PieceSource:
        """The way through the logits: directly, or upsampled where they are smaller than the target."""
        if logits.shape[2:] == target.shape[1:]:
            # All channels once, for their scores; those that are picked also before and after.
            all_channels = channels.picked is None or self.cross_entropy
            buffered = channels.num_classes if all_channels else 3 * channels.num_scored
            return FullResolution(logits, buffered, gradient)
        size = target.shape[1], target.shape[2]
        return UpsampledBands(logits, size, self.dtype(logits), gradient, saturate=self.may_overflow(logits))


def class_labels(target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    """Labels as int64 with the ignore label mapped to ``num_classes``, and which pixels are ignored.

    Labels are compared as int64: torch compares a number in the dtype of the tensor, where 156 of uint8 is -100.

    On a CPU, where asking is free, both are cheaper without ignored pixels: the labels may be ``target`` itself, and
    None says that there are none.
    """
    labels = target.to(torch.int64)
    ignored = labels == ignore_index
    if target.device.type == "cpu" and not bool(ignored.any()):
        return labels, None
    return labels.masked_fill(ignored, num_classes), ignored


class Channels:
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

    def pick_logits(self, logits: Tensor, buffers: Buffers) -> Tensor:
        """Of the logits of a piece ``(b, K, p)`` the channels that are scored, in a buffer."""
        assert self.picked is not None
        out = buffers.take("picked", logits[:, : self.num_scored])
        # index_select first copies all channels of what is not contiguous.
        if logits.stride(1) == 1:
            by_pixel = logits.transpose(1, 2).to(out.dtype)
            torch.index_select(by_pixel, 2, self.picked, out=out.transpose(1, 2))
            return out
        for position, channel in enumerate(self.picked.tolist()):
            out[:, position] = logits[:, channel]
        return out

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


class Piece:
    """A piece with its labels; of its channels only those that are scored if the others are not needed."""

    def __init__(
        self, logits: Tensor, target: Tensor, channels: Channels, options: PassOptions, buffers: Buffers
    ) -> None:
        self.num_classes = logits.shape[1]
        self.labels, ignored = class_labels(target, self.num_classes, options.ignore_index)
        self.has_ignored = ignored is not None
        self.picked = channels.picked is not None and not options.cross_entropy
        if self.picked:
            logits = channels.pick_logits(logits, buffers)
        self.logits = logits
        if ignored is not None and _must_blank(logits, ignored, options):
            zero = torch.zeros((), dtype=buffers.dtype, device=logits.device)
            out = logits if self.picked else buffers.take("logits", logits)
            self.logits = torch.where(ignored.unsqueeze(1), zero, logits.to(buffers.dtype), out=out)
        elif logits.dtype != buffers.dtype:
            self.logits = buffers.take("logits", logits).copy_(logits)

    def own(self, labels: Tensor, num_channels: int) -> Tensor:
        """Channel of each pixel's own class, ``(b, 1, p)``; any channel at ignored pixels."""
        return (labels.clamp(max=num_channels - 1) if self.has_ignored else labels).unsqueeze(1)


def _must_blank(logits: Tensor, ignored: Tensor, options: PassOptions) -> bool:
    """Whether the weight 0 of ignored pixels is not enough, as 0 times an infinity is NaN.

    Blanking takes a pass over the logits and a buffer, so that a CPU looks whether it has to.
    """
    if logits.device.type != "cpu" or options.scores == "identity":
        return True
    return not bool(logits.transpose(1, 2)[ignored].isfinite().all())


class ScoredPiece:
    """The part of a piece that the AUC term sees: scored channels, their scores, and labels as positions among them."""

    def __init__(
        self, piece: Piece, channels: Channels, options: PassOptions, buffers: Buffers, lse: Tensor | None
    ) -> None:
        logits = piece.logits
        if channels.picked is not None and not piece.picked:
            logits = channels.pick_logits(logits, buffers)
        self.labels = channels.labels(piece.labels)
        self.own = piece.own(self.labels, channels.num_scored)
        self.values = buffers.take("values", logits)
        if lse is not None:
            torch.sub(logits, lse, out=self.values).exp_()
            self.shortfall = softmax_shortfall(self.values, self.own, 1).squeeze(1)
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


class CrossEntropyWeights:
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

    def sum(self, piece: Piece, lse: Tensor) -> Tensor:
        """The weighted sum over a piece; ``lse`` is ``(b, 1, p)``."""
        wide = wide_dtype(lse.device)
        labels, lse = piece.labels, lse.squeeze(1)
        own_logits = piece.logits.gather(1, piece.own(labels, piece.num_classes)).squeeze(1)
        total = lookup(self.by_softmax, labels).mul_(lse) - lookup(self.by_own, labels).mul_(own_logits)
        if self.smooth:
            others = torch.matmul(self.by_channel, piece.logits)
            total -= others.masked_fill_(labels == piece.num_classes, 0)
        return total.sum(dtype=wide)


def softmax_shortfall(values: Tensor, own: Tensor, dim: int) -> Tensor:
    """What softmax scores lack of 1 in the channels ``own``: the sum of the others, as 1 - p loses its digits near 1.

    Args:
        values: The scores, channels in ``dim``; changed on the way, and restored.
        own: Their shape with one channel, int64.
        dim: The dimension of the channels.
    """
    own_values = values.gather(dim, own)
    shortfall = values.scatter_(dim, own, torch.zeros_like(own_values)).sum(dim, keepdim=True)
    values.scatter_(dim, own, own_values)
    return shortfall


def through_softmax(slope: Tensor, values: Tensor, dim: int) -> Tensor:
    """Slopes by softmax scores ``p`` -> those by the logits, ``p_k (g_k - sum_j g_j p_j)``, in place.

    The same number subtracted from all ``g`` changes nothing. With that of a score above 1/2, where there is one, no
    small difference of large numbers is left if this score is close to 1.
    """
    product = values.round().mul_(slope)  # nothing but the slope of that score; argmax takes ten times as long
    slope.sub_(product.sum(dim, keepdim=True))
    return slope.sub_(torch.mul(slope, values, out=product).sum(dim, keepdim=True)).mul_(values)


def lookup(table: Tensor, labels: Tensor) -> Tensor:
    """``table[labels]``, which is slower."""
    return table.index_select(0, labels.flatten()).view_as(labels)
