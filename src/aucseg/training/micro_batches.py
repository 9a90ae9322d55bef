"""A training step in micro-batches with the gradient of the whole batch, for `aucseg.SegmentationTask`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aucseg.losses import AUCSegLoss, MicroBatchAUC, PairwiseAUCLoss
from aucseg.losses.auc.class_sums import ClassSums
from aucseg.losses.pairwise_auc import auc_losses
from aucseg.tensors.dtypes import without_autocast

Outputs = tuple[Tensor, Tensor | None]


@dataclass
class _Sums:
    """The sums for the logits and for the auxiliary logits, if there are any."""

    parts: list[ClassSums]

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums([a + b for a, b in zip(self.parts, other.parts, strict=True)])

    def all_reduced(self, group: dist.ProcessGroup | None) -> _Sums:
        return _Sums([part.all_reduced(group) for part in self.parts])


class _LossOfOutputs:
    """A loss on logits and auxiliary logits together, in the terms of `MicroBatchAUC`."""

    def __init__(self, loss: PairwiseAUCLoss | AUCSegLoss, auxiliary_weight: float) -> None:
        self._loss, self._weights = loss, (1.0, auxiliary_weight)

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        return self._loss.process_group

    def class_sums(self, outputs: Outputs, target: Tensor) -> _Sums:
        return _Sums([self._loss.class_sums(logits, target) for logits in outputs if logits is not None])

    def given_sums(self, whole: _Sums, outputs: Outputs, target: Tensor) -> Tensor:
        given = [(weight, logits) for weight, logits in zip(self._weights, outputs, strict=True) if logits is not None]
        losses = [
            weight * self._loss.given_sums(sums, logits, target)
            for (weight, logits), sums in zip(given, whole.parts, strict=True)
        ]
        return torch.stack(losses).sum()


class _Network(nn.Module):
    """From images to logits and auxiliary logits."""

    def __init__(self, model: nn.Module, outputs: Callable[[Tensor], Outputs]) -> None:
        super().__init__()
        self.model, self._outputs = model, outputs

    def forward(self, images: Tensor) -> Outputs:
        return self._outputs(images)


def check_micro_batches(loss: nn.Module, accumulate_grad_batches: int) -> None:
    """Raises a ValueError if the gradient of a whole batch cannot be computed from micro-batches.

    Args:
        loss: The loss of the task.
        accumulate_grad_batches: The trainer's.
    """
    by_sorting = isinstance(loss, PairwiseAUCLoss | AUCSegLoss) and not auc_losses(loss)
    if by_sorting or not isinstance(loss, PairwiseAUCLoss | AUCSegLoss):
        what = "one that is computed by sorting" if by_sorting else "other losses"
        raise ValueError(
            f"model.micro_batches is offered for AUC losses that are computed from sums, not for {what} ({loss}): "
            "leave it at 1 and use trainer.accumulate_grad_batches"
        )
    if accumulate_grad_batches > 1:
        raise ValueError(
            "model.micro_batches takes the gradient of one batch of the loader, trainer.accumulate_grad_batches adds "
            "up several: leave one of them at 1 (and raise data.batch_size instead)"
        )


def scaled_backward(scaler: Any) -> Callable[[Tensor], None]:
    """What adds the gradient of a loss, times the scale of a gradient scaler (None for none), to the parameters."""

    def backward(value: Tensor) -> None:
        with without_autocast(value.device):
            (value if scaler is None else scaler.scale(value)).backward()

    return backward


def backward_all_but_last(
    loss: PairwiseAUCLoss | AUCSegLoss,
    model: nn.Module,
    outputs: Callable[[Tensor], Outputs],
    images: Tensor,
    target: Tensor,
    count: int,
    backward: Callable[[Tensor], Any],
) -> Tensor:
    """Runs a batch in micro-batches, forward twice and backward once, but for the last backward pass.

    Whoever calls it (Lightning) does the last one: under data-parallel training it is the one that synchronizes.

    Args:
        loss: An AUC loss that is computed from sums.
        model: Whose parameters learn.
        outputs: From images to its logits and auxiliary logits.
        images: (B, C, H, W).
        target: (B, H, W).
        count: Number of micro-batches; fewer if the batch has fewer images.
        backward: Adds the gradient of a loss to the parameters.

    Returns:
        The loss of the whole batch, with the gradient of its last micro-batch.
    """
    auxiliary_weight = float(getattr(model, "auxiliary_weight", 0.0))
    whole = MicroBatchAUC(_LossOfOutputs(loss, auxiliary_weight), _Network(model, outputs))
    parts = list(zip(images.chunk(count), target.chunk(count), strict=True))
    for part in parts:
        whole.collect(*part)
    for part in parts[:-1]:
        backward(whole.loss(*part))
    return whole.loss(*parts[-1])
