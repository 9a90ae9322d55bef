"""An exponential moving average of the sums of each class, for batches that lack the class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aucseg.losses.class_moments import BatchSums


class ClassMemory(nn.Module):
    """Per class: pixel count and means of the features in every channel, averaged over the batches that held it.

    Args:
        momentum: Share of the old value that is kept at an update, in [0, 1).

    Attributes:
        counts: Pixels per class, 0 where never seen, ``(K,)``.
        positive: Means of the features of positives, ``(J, K)``.
        negative: Means of the features of negatives by channel and label, ``(J', K, K)``.
    """

    counts: Tensor
    positive: Tensor
    negative: Tensor

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"memory_momentum must lie in [0, 1), got {momentum}")
        self.momentum = momentum
        # Sized by the first batch or by the checkpoint.
        for name, dims in (("counts", 1), ("positive", 2), ("negative", 3)):
            self.register_buffer(name, torch.zeros([0] * dims))

    def update(self, sums: BatchSums) -> None:
        """Take in the classes of a batch."""
        self._fit(sums)
        n = sums.counts
        present, new = n > 0, self.counts == 0
        keep = torch.full_like(n, self.momentum).masked_fill_(new, 0).masked_fill_(~present, 1)
        size = n.clamp(min=1)
        self.counts.copy_(keep * self.counts + (1 - keep) * n)
        self.positive.copy_(keep * self.positive + (1 - keep) * sums.positive / size)
        self.negative.copy_(keep * self.negative + (1 - keep) * sums.negative / size)

    def absent_from(self, sums: BatchSums) -> BatchSums:
        """Sums that stand in for classes that were seen before but not in this batch; zero for the others."""
        self._fit(sums)
        counts = torch.where(sums.counts > 0, 0, self.counts)
        return BatchSums(counts, self.positive * counts, self.negative * counts, torch.zeros_like(sums.entropy))

    def _fit(self, sums: BatchSums) -> None:
        if self.counts.numel() == 0:
            for name in ("counts", "positive", "negative"):
                setattr(self, name, torch.zeros_like(getattr(sums, name)))
        if self.counts.shape != sums.counts.shape or self.negative.shape != sums.negative.shape:
            raise ValueError(
                f"the memory holds {self.counts.numel()} classes with {self.negative.shape[0]} features, the batch has "
                f"{sums.counts.numel()} with {sums.negative.shape[0]}: the checkpoint belongs to another loss"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("counts", "positive", "negative"):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape != getattr(self, name).shape:
                setattr(self, name, torch.zeros_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)
