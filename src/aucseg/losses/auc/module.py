"""What the two loss modules share: the way from logits and labels to the loss, and to sums of a part of a batch."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from aucseg.losses.auc.checks import check_inputs
from aucseg.losses.auc.class_sums import ClassSums
from aucseg.losses.auc.objective import class_sums, weighted_loss
from aucseg.losses.auc.options import LossOptions
from aucseg.tensors.buffers import ExactBuffers
from aucseg.tensors.dtypes import can_be_asked, plain_tensor
from aucseg.tensors.labels import DEFAULT_IGNORE_INDEX

# Batches of two classes with ignored pixels and no pixel of class 1, before a warning.
_NUM_WITHOUT = 20


class AUCModule(ExactBuffers):
    """A loss that is computed from sums over the pixels of each class."""

    upsample = False

    def __init__(self) -> None:
        super().__init__()
        # Of two classes: batches so far without class 1; None once it was there.
        self._num_without: int | None = 0

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss; see the class for shapes and errors."""
        return weighted_loss(*self._checked(logits, target))

    def class_sums(self, logits: Tensor, target: Tensor) -> ClassSums:
        """Sums of a micro-batch on this rank, for `aucseg.losses.MicroBatchAUC`."""
        return class_sums(*self._checked(logits, target))

    def given_sums(self, whole: ClassSums, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a whole with the given sums; its gradient is that of this part."""
        return weighted_loss(*self._checked(logits, target), whole)

    def loss_options(self) -> LossOptions:
        """What to compute."""
        raise NotImplementedError

    def _checked(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, LossOptions]:
        for part in (self, *self.children()):
            if isinstance(part, ExactBuffers):
                part.put_back()
        options = self.loss_options()
        check_inputs(logits, target, options, upsample=self.upsample)
        logits, target = plain_tensor(logits), plain_tensor(target)
        if logits.shape[1] <= 2 and options.auc.ignore_index == DEFAULT_IGNORE_INDEX:
            self._look_for_positives(target)
        return logits, target, options

    def _look_for_positives(self, target: Tensor) -> None:
        """Warns where masks of 0 and 255 seem to be meant as classes: all that is looked for would be ignored."""
        if not can_be_asked(target) or self._num_without is None or target.dtype == torch.bool:
            return
        labels = target.to(torch.int64)
        if bool((labels == 1).any()):
            self._num_without = None
        elif bool((labels == DEFAULT_IGNORE_INDEX).any()):
            self._num_without += 1
            if self._num_without == _NUM_WITHOUT:
                self._num_without = None
                warnings.warn(
                    f"the masks of {_NUM_WITHOUT} batches hold class 0 and the ignore label 255, and never class 1: if "
                    "255 stands for class 1, pass (target > 0)",
                    stacklevel=2,
                )
