"""What ranks and micro-batches exchange: sums over pixels, which add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class ClassSums:
    """Everything the loss needs to know of some pixels, class by class; adds up over ranks and micro-batches.

    Attributes:
        counts: Pixels of each class `(K,)`.
        positive: Sums of `p_j` over the pixels of each class `(J, K)`.
        negative: Sums of `q_k` by channel and label `(J', K, K)`.
        entropy: Weighted sum of the cross-entropy, scalar.
    """

    counts: Tensor
    positive: Tensor
    negative: Tensor
    entropy: Tensor

    def __add__(self, other: ClassSums) -> ClassSums:
        return ClassSums(
            self.counts + other.counts,
            self.positive + other.positive,
            self.negative + other.negative,
            self.entropy + other.entropy,
        )

    def all_reduced(self, group: dist.ProcessGroup | None) -> ClassSums:
        """The sums of all ranks of the group."""
        return ClassSums(*all_reduced([self.counts, self.positive, self.negative, self.entropy], group))


def all_reduced(values: list[Tensor], group: dist.ProcessGroup | None) -> list[Tensor]:
    """The sums over the ranks of the group, without gradient, in one message; the values themselves without a group."""
    values = [value.detach() for value in values]
    if group is None:
        return values
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat, group=group)
    parts = torch.split(flat, [value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]


def with_value(local: Tensor, value: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """`value`, with `scale` times the gradient of `local`."""
    return value + scale * (local - local.detach())
