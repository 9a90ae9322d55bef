r"""The formula: the AUC loss from sums over the pixels. Begin to read here.

Channel c scores the pixels of its own class (positives) against those of every other class a (negatives). With pair
weights `w[c, a]` and a separable surrogate, `l(f_pos - f_neg) = sum_jk C[j, k] p_j(f_pos) q_k(f_neg)` (see
`aucseg.losses.auc.separable`), the mean over all pairs of pixels is

    L = sum_c sum_jk C[j, k] P_j[c] Q_k[c],
    P_j[c] = mean of p_j(f_c) over the pixels of class c,
    Q_k[c] = sum over the pixels x of other classes of  w[c, y(x)] / n_y(x)  q_k(f_c(x)),

with `n` the pixels of each class. `PairWeights` are the `w`, `pair_risk` is the `L`. The sums over the pixels
come from `aucseg.losses.auc.operators.pixel_sums`, which is differentiable, so that autograd of this little arithmetic
on `(J, K)` tables gives the gradient its weights.

With uniform weights `w[c, a] = channel[c] * label[a]`: every pixel carries one weight for all channels, and the state
is a few numbers a channel. Weights of the user's own need the negatives label by label.

On a GPU the same arithmetic is done by `aucseg.losses.auc.triton_risk`: change both together, and
the tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.losses.auc.smooth import Coefficients


@dataclass
class PairWeights:
    """Weights `w[c, a]` of the pairs (positives c, negatives a), summing to 1, zero for absent classes.

    Either a product `w[c, a] = channel[c] * label[a]`, c != a, or a table.

    Attributes:
        counts: Pixels per class `n`, `(K,)`.
        channel: `(K,)`.
        label: `(K,)`.
        table: `(K, K)`; then channel and label are not used.
    """

    counts: Tensor
    channel: Tensor
    label: Tensor
    table: Tensor | None = None

    @classmethod
    def of(cls, counts: Tensor, strategy: str, pair_weight: Tensor | None, binary: bool) -> PairWeights:
        """The weights of a batch.

        Args:
            counts: Pixels per class, `(K,)`.
            strategy: `"ovo"` or `"ova"`.
            pair_weight: `(K, K)`, of the user's own.
            binary: Whether there are two channels of which only the second is scored.
        """
        if pair_weight is not None and not binary:
            return cls.from_table(counts, pair_weight)
        scored = torch.arange(2, dtype=counts.dtype, device=counts.device) if binary else None
        return cls.uniform(counts, strategy, scored)

    @classmethod
    def uniform(cls, counts: Tensor, strategy: str, scored: Tensor | None = None) -> PairWeights:
        """Uniform over the ordered pairs of present classes (`"ovo"`) or over the present classes (`"ova"`).

        Args:
            counts: Pixels per class, `(K,)`.
            strategy: `"ovo"` or `"ova"`.
            scored: `(K,)`, 1 for the channels that are scored; all by default.
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
        """`pair_weight` `(K, K)` (row: positives) over the pairs of present classes."""
        present = (counts > 0).to(counts.dtype)
        table = pair_weight.to(counts) * present.unsqueeze(1) * present
        table = table - torch.diag(table.diagonal())
        total = table.sum()
        return cls(counts, present, present, table / torch.where(total > 0, total, 1))

    def per_pixel(self) -> Tensor | None:
        """Weight of a negative by its label `(K + 1,)`, 0 if ignored; None if it depends on the channel too."""
        if self.table is not None:
            return None
        return F.pad(self.label / self.counts.clamp(min=1), (0, 1))

    def negative_mass(self) -> Tensor:
        """Total weight of the negatives of each channel, `(K,)`."""
        if self.table is not None:
            return self.table.sum(1)
        return self.channel * (self.label.sum() - self.label)

    def per_negative(self) -> Tensor:
        """Weight of one negative by channel and label, `(K, K)`, 0 on the diagonal."""
        table = self.table if self.table is not None else self.channel[:, None] * self.label
        return (table - torch.diag(table.diagonal())) / self.counts.clamp(min=1)

    def over_labels(self, negative: Tensor) -> Tensor:
        """Sums by channel and label `(J', K, K)` as what `pixel_sums` returns with the weights `per_pixel`."""
        if self.table is not None:
            return negative
        return (negative * (self.label / self.counts.clamp(min=1))).sum(2)

    def weighted(self, negative: Tensor) -> Tensor:
        """`Q_k`, `(J', K)`, from what `pixel_sums` returns with the weights `per_pixel`."""
        if self.table is not None:
            return (negative * (self.table / self.counts.clamp(min=1))).sum(2)
        return negative * self.channel


def pair_risk(coefficients: Coefficients, weights: PairWeights, positive: Tensor, negative: Tensor) -> Tensor:
    """The AUC loss from the sums of `pixel_sums`; differentiable.

    Args:
        coefficients: `C[j][k]` of the surrogate.
        weights: Pair weights.
        positive: `(J, K)`.
        negative: `(J', K)`, or `(J', K, K)` if the weights are a table.
    """
    table = torch.tensor(coefficients, dtype=positive.dtype).to(positive.device, non_blocking=True)
    p = torch.cat([torch.ones_like(weights.counts)[None], positive / weights.counts.clamp(min=1)])
    q = torch.cat([weights.negative_mass()[None], weights.weighted(negative)])
    return (p * (table @ q)).sum()


def mean_cross_entropy(total: Tensor, counts: Tensor, class_weight: Tensor | None) -> Tensor:
    """The cross-entropy from its weighted sum over the pixels; 0 where no pixel has a weight.

    Args:
        total: The sum, scalar.
        counts: Pixels per class, `(K,)`.
        class_weight: `(K,)`.
    """
    weight = (counts if class_weight is None else counts * class_weight.to(counts)).sum()
    return torch.where(weight > 0, total / torch.where(weight > 0, weight, 1), 0)
