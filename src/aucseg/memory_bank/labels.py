"""What a label means to the memory bank: which tail class it is, and whether its pixels may be pasted over."""

from collections.abc import Sequence

import torch
from torch import Tensor


class LabelTables:
    """Answers for whole tensors of labels, on the device that ``move`` was called with.

    Args:
        tail_classes: ids of the tail classes.
        protected: ids of the classes that are not pasted over.
        num_classes: number of classes K; a label outside 0..K-1 is of no tail class and not protected.
    """

    def __init__(self, tail_classes: Sequence[int], protected: Sequence[int], num_classes: int) -> None:
        self._num_classes = num_classes
        # The last entry serves every label outside 0..K-1.
        self._position = torch.full((num_classes + 1,), -1)
        self._position[list(tail_classes)] = torch.arange(len(tail_classes))
        self._protected = torch.zeros(num_classes + 1, dtype=torch.bool)
        self._protected[list(protected)] = True

    def move(self, device: torch.device) -> None:
        """Brings the tables to a device."""
        self._position, self._protected = self._position.to(device), self._protected.to(device)

    def tail_position(self, labels: Tensor) -> Tensor:
        """Position of each label among the tail classes, int64, -1 for all others."""
        return self._position.index_select(0, self._class_or_other(labels))

    def is_protected(self, labels: Tensor) -> Tensor:
        """Whether each label is that of a protected class."""
        return self._protected.index_select(0, self._class_or_other(labels))

    def is_spared(self, labels: Tensor) -> Tensor:
        """Whether each label is that of a protected class or of a tail class."""
        return self.is_protected(labels) | (self.tail_position(labels) >= 0)

    def _class_or_other(self, labels: Tensor) -> Tensor:
        """Labels as int64; K for every label outside 0..K-1."""
        labels = labels.long()
        return torch.where(labels >= 0, labels, self._num_classes).clamp(max=self._num_classes)
