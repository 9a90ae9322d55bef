"""From sums over pixels to the value of the loss: pair weights, means; sums of ranks and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from aucseg.losses.auc.surrogates import Coefficients


@dataclass
class PairWeights:
    """Weights ``w[c, a]`` of the pairs (positives c, negatives a), summing to 1, zero for absent classes.

    Either a product ``w[c, a] = channel[c] * label[a]``, c != a, or a table.

    Attributes:
        counts: Pixels per class ``n``, ``(K,)``.
        channel: ``(K,)``.
        label: ``(K,)``.
        table: ``(K, K)``; then channel and label are not used.
    """

    counts: Tensor
    channel: Tensor
    label: Tensor
    table: Tensor | None = None

    @classmethod
    def uniform(cls, counts: Tensor, strategy: str, scored: Tensor | None = None) -> PairWeights:
        """Uniform over the ordered pairs of present classes (``"ovo"``) or over the present classes (``"ova"``).

        Args:
            counts: Pixels per class, ``(K,)``.
            strategy: ``"ovo"`` or ``"ova"``.
            scored: ``(K,)``, 1 for the channels that are scored; all by default.
        """
        present = (counts > 0).to(counts.dtype)
        rest = counts.sum() - counts
        label = present if strategy == "ovo" else counts
        channel = present * (rest > 0) if strategy == "ovo" else present * (rest > 0) / rest.clamp(min=1)
        if scored is not None:
            channel = channel * scored
        total = (channel * (label.sum() - label)).sum()
        return cls(counts, channel / torch.where(total > 0, total, 1), label)

    @classmethod
    def from_table(cls, counts: Tensor, pair_weight: Tensor) -> PairWeights:
        """``pair_weight`` ``(K, K)`` (row: positives) over the pairs of present classes."""
        present = (counts > 0).to(counts.dtype)
        table = pair_weight.to(counts) * present.unsqueeze(1) * present
        table = table - torch.diag(table.diagonal())
        total = table.sum()
        return cls(counts, present, present, table / torch.where(total > 0, total, 1))

    def per_pixel(self) -> Tensor | None:
        """Weight of a negative by its label ``(K + 1,)``, 0 if ignored; None if it depends on the channel too."""
        if self.table is not None:
            return None
        return torch.nn.functional.pad(self.label / self.counts.clamp(min=1), (0, 1))

    def negative_mass(self) -> Tensor:
        """Total weight of the negatives of each channel, ``(K,)``."""
        if self.table is not None:
            return self.table.sum(1)
        return self.channel * (self.label.sum() - self.label)

    def by_weight(self, negative: Tensor) -> Tensor:
        """Sums by channel and label ``(J', K, K)`` as what `pixel_sums` returns with the weights `per_pixel`."""
        if self.table is not None:
            return negative
        return (negative * (self.label / self.counts.clamp(min=1))).sum(2)

    def weighted(self, negative: Tensor) -> Tensor:
        """``Q_k``, ``(J', K)``, from what `pixel_sums` returns with the weights `per_pixel`."""
        if self.table is not None:
            return (negative * (self.table / self.counts.clamp(min=1))).sum(2)
        return negative * self.channel


def pair_risk(coefficients: Coefficients, weights: PairWeights, positive: Tensor, negative: Tensor) -> Tensor:
    """The AUC loss from the sums of `pixel_sums`; differentiable.

    Args:
        coefficients: ``C[j][k]`` of the surrogate.
        weights: Pair weights.
        positive: ``(J, K)``.
        negative: ``(J', K)``, or ``(J', K, K)`` if the weights are a table.
    """
    table = torch.tensor(coefficients, dtype=positive.dtype).to(positive.device, non_blocking=True)
    p = torch.cat([torch.ones_like(weights.counts)[None], positive / weights.counts.clamp(min=1)])
    q = torch.cat([weights.negative_mass()[None], weights.weighted(negative)])
    return (p * (table @ q)).sum()


@dataclass
class BatchSums:
    """Everything the loss needs to know of some pixels; adds up over micro-batches.

    Attributes:
        counts: ``(K,)``.
        positive: ``(J, K)``.
        negative: ``(J', K, K)``, by channel and label.
        entropy: Weighted sum of the cross-entropy, scalar.
    """

    counts: Tensor
    positive: Tensor
    negative: Tensor
    entropy: Tensor

    def __add__(self, other: BatchSums) -> BatchSums:
        return BatchSums(
            self.counts + other.counts,
            self.positive + other.positive,
            self.negative + other.negative,
            self.entropy + other.entropy,
        )

    def all_reduced(self, group: dist.ProcessGroup | None) -> BatchSums:
        """The sums of all ranks of the group."""
        return BatchSums(*all_reduced([self.counts, self.positive, self.negative, self.entropy], group))


def all_reduced(values: list[Tensor], group: dist.ProcessGroup | None) -> list[Tensor]:
    """The sums over the ranks of the group, without gradient, in one message; the values themselves without a group."""
    values = [value.detach() for value in values]
    if group is None:
        return values
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat, group=group)
    parts = torch.split(flat, [value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]


def replace_value(local: Tensor, value: Tensor, scale: float = 1.0) -> Tensor:
    """``value``, with ``scale`` times the gradient of ``local``."""
    return value + scale * (local - local.detach())
