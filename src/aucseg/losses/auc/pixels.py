"""What the passes over the pixels see of a piece: labels, scored channels, scores, weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.losses.auc.options import PassOptions
from aucseg.losses.auc.pieces import Buffers
from aucseg.tensors.dtypes import wide_dtype

# Share of scored channels up to which picking them out costs less than scoring them all.
_PICK_BELOW = 0.5


def class_labels(target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    """Labels as int64 with the ignore label mapped to `num_classes`, and which pixels are ignored.

    A label `num_classes` in `target`, which nobody may have checked, becomes one that no table holds.

    Labels are compared as int64: torch compares a number in the dtype of the tensor, where 156 of uint8 is -100.

    On a CPU, where asking is free, both are cheaper without ignored pixels: the labels may be `target` itself, and
    None says that there are none.
    """
    labels = target.to(torch.int64)
    ignored = labels == ignore_index
    if target.device.type == "cpu" and not bool(ignored.any()):
        return labels, None
    return (labels + (labels == num_classes)).masked_fill_(ignored, num_classes), ignored


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

    def pick_weights(self, pixel_weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The weights of negatives by label `(K + 1,)` as those by the labels of the scored channels."""
        return None if pixel_weight is None else F.pad(self.pick(pixel_weight[:-1].to(dtype)), (0, 1))

    def pick_logits(self, logits: Tensor, buffers: Buffers) -> Tensor:
        """Of the logits of a piece `(b, K, p)` the channels that are scored, in a buffer."""
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
        """Channel of each pixel's own class, `(b, 1, p)`; any channel at ignored pixels."""
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
        """`(K + 1,)` -> `(b, p)`: the weight of each pixel's label."""
        return weights.index_select(0, self.labels.flatten()).view_as(self.labels)

    def one_hot(self, num_channels: int) -> tuple[Tensor, Tensor]:
        """Classes `(l,)` and the indicator `(b, l, p)` of them; on a CPU only the classes of this piece."""
        classes = torch.arange(num_channels, device=self.labels.device)
        if self.labels.device.type == "cpu":
            classes = classes[torch.bincount(self.labels.flatten(), minlength=num_channels + 1)[:num_channels] > 0]
        return classes, (self.labels.unsqueeze(1) == classes.unsqueeze(1)).to(self.values.dtype)


class CrossEntropyWeights:
    """Class weights and label smoothing of the cross-entropy as tables by label, `(K + 1,)`, 0 for ignored pixels.

    Attributes:
        by_softmax: Weight of the log-sum-exp of a pixel.
        by_own: Weight of the logit of its own class.
        by_channel: Weight of every logit `(K,)`, for label smoothing.
    """

    def __init__(self, class_weight: Tensor | None, logits: Tensor, dtype: torch.dtype, options: PassOptions) -> None:
        num_classes = logits.shape[1]
        if class_weight is None:
            class_weight = torch.ones(num_classes, device=logits.device)
        weight = class_weight.to(dtype)
        self.by_own = F.pad((1 - options.label_smoothing) * weight, (0, 1))
        self.by_channel = options.label_smoothing / num_classes * weight
        self.by_softmax = self.by_own + F.pad(self.by_channel.sum().expand(num_classes), (0, 1))
        self._smooth = options.label_smoothing > 0

    def times(self, factor: Tensor) -> CrossEntropyWeights:
        """Multiplies all tables by a scalar, in place."""
        self.by_own, self.by_channel, self.by_softmax = (
            factor * table for table in (self.by_own, self.by_channel, self.by_softmax)
        )
        return self

    def sum(self, piece: Piece, top: Tensor, above: Tensor) -> Tensor:
        """The weighted sum over a piece.

        Args:
            piece: The piece.
            top: `(b, 1, p)`, the largest logit.
            above: `(b, 1, p)`, by how much the log-sum-exp is above it.
        """
        labels, top, above = piece.labels, top.squeeze(1), above.squeeze(1)
        own_logits = piece.logits.gather(1, piece.own(labels, piece.num_classes)).squeeze(1)
        total = lookup(self.by_own, labels).mul_((top - own_logits).add_(above))
        if self._smooth:
            others = self.by_channel.sum() * (top + above) - torch.matmul(self.by_channel, piece.logits)
            total += others.masked_fill_(labels == piece.num_classes, 0)
        return total.sum(dtype=wide_dtype(total.device))

    def gradient(self, piece: Piece, lse: Tensor, out: Tensor) -> None:
        """The gradient of `sum` by the logits of the piece, into `out`."""
        labels = piece.labels
        own = piece.own(labels, piece.num_classes)
        shortfall = softmax_shortfall(torch.sub(piece.logits, lse, out=out).exp_(), own, 1)
        by_softmax, by_own = (lookup(table, labels).unsqueeze(1) for table in (self.by_softmax, self.by_own))
        out.mul_(by_softmax)
        # Of its own class p - 1, which has lost its digits where p is close to 1.
        out.scatter_(1, own, (by_softmax - by_own).sub_(shortfall.mul_(by_softmax)))
        if self._smooth:
            valid = (labels < piece.num_classes).to(out.dtype).unsqueeze(1)
            out.sub_(self.by_channel.unsqueeze(1) * valid)


def softmax_shortfall(values: Tensor, own: Tensor, dim: int) -> Tensor:
    """What softmax scores lack of 1 in the channels `own`: the sum of the others, as 1 - p loses its digits near 1.

    Args:
        values: The scores, channels in `dim`; changed on the way, and restored.
        own: Their shape with one channel, int64.
        dim: The dimension of the channels.
    """
    own_values = values.gather(dim, own)
    shortfall = values.scatter_(dim, own, torch.zeros_like(own_values)).sum(dim, keepdim=True)
    values.scatter_(dim, own, own_values)
    return shortfall


def through_softmax(slope: Tensor, values: Tensor, dim: int) -> Tensor:
    """Slopes by softmax scores `p` -> those by the logits, `p_k (g_k - sum_j g_j p_j)`, in place.

    The same number subtracted from all `g` changes nothing. With that of a score above 1/2, where there is one, no
    small difference of large numbers is left if this score is close to 1.
    """
    product = values.round().mul_(slope)  # nothing but the slope of that score; argmax takes ten times as long
    slope.sub_(product.sum(dim, keepdim=True))
    return slope.sub_(torch.mul(slope, values, out=product).sum(dim, keepdim=True)).mul_(values)


def lookup(table: Tensor, labels: Tensor) -> Tensor:
    """`table[labels]`, which is slower."""
    return table.index_select(0, labels.flatten()).view_as(labels)
