"""What a validation of the training task measures."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric

from aucseg.datasets import DatasetCard
from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision
from aucseg.tensors.upsampling import predicted_labels


class ValidationResult(NamedTuple):
    """The figures of one validation, those of all processes.

    Attributes:
        scores: The mean `loss` of an image, overall (`miou`), head, middle and tail mean IoU, mean precision, recall
            and F1, in [0, 1]; with pixel metrics `auroc` and, where the card has a tail, `tail_ap`.
        per_class_iou: IoU in [0, 1] of each of the K classes; NaN where no image holds it.
        confusion: Pixels by true and predicted class, K rows of K counts.
        roc_curves: False and true positive rates of each tail class against all others; None without pixel metrics.
    """

    scores: dict[str, Tensor]
    per_class_iou: list[float]
    confusion: list[list[int]]
    roc_curves: dict[str, tuple[Tensor, Tensor]] | None


class ValidationMetrics(nn.Module):
    """Gathers the metrics of a validation over its batches and over processes.

    Args:
        card: Card of the data.
        pixel_metrics: Whether to take the pixel AUC and the mean average precision of the tail classes, too.
    """

    def __init__(self, card: DatasetCard, pixel_metrics: bool) -> None:
        super().__init__()
        self._card = card
        # Not Lightning's mean over processes, which rounds down how many images each one has, nor a weighted mean of
        # torchmetrics, which forgets weights where it does not look for NaN: an image without a label has no loss.
        self.loss_sum, self.num_losses = SumMetric(nan_strategy="disable"), SumMetric(nan_strategy="disable")
        settings: dict[str, Any] = {"groups": card.named_groups, "ignore_index": card.ignore_index}
        self.iou = GroupedMeanIoU(card.num_classes, **settings)
        self.auroc: PixelAUROC | None = None
        self.average_precision: PixelAveragePrecision | None = None
        if pixel_metrics:
            self.auroc = PixelAUROC(card.num_classes, ignore_index=card.ignore_index)
            self.average_precision = PixelAveragePrecision(card.num_classes, **settings)

    def update(self, logits: Tensor, target: Tensor, loss: nn.Module) -> Tensor:
        """Adds a batch.

        Args:
            logits: (B, K, h, w), at any resolution.
            target: Class ids (B, H, W), int64.
            loss: From logits and target to a scalar; taken of each image alone.

        Returns:
            The predicted labels (B, H, W).
        """
        for i in range(len(target)):
            self.loss_sum.update(loss(logits[i : i + 1], target[i : i + 1]))
            self.num_losses.update((target[i] != self._card.ignore_index).any())
        labels = predicted_labels(logits, target.shape[-2:])
        self.iou.update(labels, target)
        if self.auroc is not None and self.average_precision is not None:
            self.auroc.update(logits, target)
            self.average_precision.update(logits, target)
        return labels

    def compute(self) -> ValidationResult:
        """The figures of all batches since the last reset."""
        with warnings.catch_warnings():
            # A process none of whose images can be read has nothing to add.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            scores = {"loss": self.loss_sum.compute() / self.num_losses.compute(), **self.iou.compute()}
            per_class_iou = self.iou.details()["per_class"].tolist()
            with self.iou.sync_context():
                confusion = self.iou.confusion.tolist()
            roc_curves = None
            if self.auroc is not None and self.average_precision is not None:
                tail = (self._card.named_groups or {}).get("tail", [])
                scores["auroc"] = self.auroc.compute()
                if tail:
                    scores["tail_ap"] = self.average_precision.details()["tail"]
                with self.auroc.sync_context():
                    roc_curves = {self._card.class_names[c]: self.auroc.roc_curve(c) for c in tail}
        return ValidationResult(scores, per_class_iou, confusion, roc_curves)

    def reset(self) -> None:
        """Forgets all batches."""
        with torch.inference_mode(False):  # else the validation of a training after this one could not add to them
            for metric in (self.loss_sum, self.num_losses, self.iou, self.auroc, self.average_precision):
                if metric is not None:
                    metric.reset()
