"""Mean intersection over union from one global confusion matrix, with head, middle and tail groups."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aucseg.metrics.pixel_metric import (
    PixelMetric,
    bands_at,
    check_groups,
    check_logits,
    group_means,
    triton_counts_for,
)
from aucseg.tensors.dtypes import check_tensor, float64_of, int64_labels
from aucseg.tensors.upsampling import labels_of

# Beside IoU, under these names, with "per_class_" before them for each class and a group's name for its mean.
_SCORES = ("precision", "recall", "f1")


class GroupedMeanIoU(PixelMetric):
    r"""Mean intersection over union over a data set, for all classes and for groups of classes.

    One confusion matrix is summed over all batches and ranks; IoU is taken from it once, so that images count by their
    pixels:

    .. math:: \mathrm{IoU}_c = \frac{TP_c}{TP_c + FP_c + FN_c}

    (the Jaccard index; Everingham et al., *The PASCAL Visual Object Classes Challenge*, 2010), and beside it

    .. math:: P_c = \frac{TP_c}{TP_c + FP_c}, \quad R_c = \frac{TP_c}{TP_c + FN_c}, \quad
        F_{1,c} = \frac{2\,TP_c}{2\,TP_c + FP_c + FN_c}

    with 0 for the precision of a class that is never predicted and the recall of one that is never true. A class that
    occurs neither in the truth nor in the prediction is NaN and is left out of the means. So is the class
    `ignore_index` if it is one of the classes, as it can have no true pixel; a pixel of another class that is called
    it is still missed.

    Labels outside `0..num_classes - 1` that are not `ignore_index`, and non-finite logits, raise `ValueError`:
    from `update` on the CPU, from `compute` on an accelerator, where `update` does not wait for the device.

    Args:
        num_classes: Number of classes K, at least 2.
        groups: Class ids per group, such as `{"head": [...], "middle": [...], "tail": [...]}`; None for no groups.
        ignore_index: Pixels with this label in the target don't count.
        class_names: Names of the classes for `plot`; None for their numbers.
        **kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from aucseg.metrics import GroupedMeanIoU
        >>> metric = GroupedMeanIoU(4, groups={"head": [0], "middle": [1], "tail": [2, 3]})
        >>> predicted = torch.tensor([[0, 0, 1, 2, 0]])
        >>> target = torch.tensor([[0, 0, 1, 1, 255]])
        >>> metric.update(predicted, target)
        >>> {name: round(value.item(), 2) for name, value in metric.compute().items()}
        {'miou': 0.5, 'head': 1.0, 'middle': 0.5, 'tail': 0.0, 'precision': 0.67, 'recall': 0.5, 'f1': 0.56}
        >>> details = metric.details()
        >>> details["per_class"].tolist(), details["per_class_precision"].tolist(), details["tail_recall"].item()
        ([1.0, 0.5, 0.0, nan], [1.0, 1.0, 0.0, nan], 0.0)
    """

    score_name = "IoU"

    def __init__(
        self,
        num_classes: int,
        groups: Mapping[str, Sequence[int]] | None = None,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, ignore_index, class_names, **kwargs)
        reserved = ("miou", "per_class", *_SCORES, *(f"per_class_{score}" for score in _SCORES))
        self.groups = check_groups(groups, num_classes, reserved)
        check_groups(self.groups, num_classes, [f"{name}_{score}" for name in self.groups for score in _SCORES])
        self._confusion_name = self.add_sums("confusion", shape=(num_classes, num_classes))

    @property
    def confusion(self) -> Tensor:
        """Pixels by true class (row) and predicted class (column), (K, K) int64."""
        confusion: Tensor = getattr(self, self._confusion_name)
        return confusion

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch to the confusion matrix.

        Args:
            preds: Predicted labels, integers (or bool) of the target's shape; or logits (B, K, *spatial), floating
                point, whose argmax is the prediction. Logits smaller than the target are upsampled first (bilinear,
                `align_corners=False`), a band of rows at a time. (N, K) logits go with (N,) labels. With two classes
                also one logit a pixel, (B, 1, *spatial): class 1 where it is above 0.
            target: Labels (B, *spatial), integers in `0..K - 1` or `ignore_index`; bool with two classes.

        Raises:
            TypeError: Labels that are not integers.
            ValueError: Shapes that don't fit, labels out of range, non-finite logits.
        """
        check_tensor(preds, "preds")
        if preds.is_floating_point():
            logits, target = check_logits(preds, target, self.num_classes)
            kernels = triton_counts_for(logits, target) if logits.shape[1] > 1 else None
            checked = kernels is not None and logits.shape[2:] == target.shape[1:]
            if not checked:
                self.check_values(logits, target)
            if kernels is not None:
                num_invalid = self.num_invalid if checked else None
                kernels.count_confusion(logits, target, self.confusion, num_invalid, self.ignore_index)
                return
            for band, band_target in bands_at(logits, target):
                self._count(labels_of(band), band_target)
        else:
            preds, target = int64_labels(preds, "preds"), int64_labels(target)
            if preds.shape != target.shape:
                raise ValueError(
                    f"predicted labels of shape {tuple(preds.shape)} and target of shape {tuple(target.shape)} differ; "
                    "logits must be floating point"
                )
            self.check_labels(target, target, "target label")
            self.check_labels(preds, target, "predicted label")
            self._count(preds, target)

    def compute(self) -> dict[str, Tensor]:
        """Returns the means.

        Returns:
            `miou`: mean over the classes that occur; one mean per group, under its name; `precision`, `recall`
            and `f1`: means over the classes that occur. All float32 scalars in 0..1, NaN where no class occurs, or
            none that is not ignored.

        Raises:
            ValueError: Updates on an accelerator met labels out of range or non-finite logits.
        """
        details = self.details()
        return {name: details[name] for name in ("miou", *self.groups, *_SCORES)}

    def details(self) -> dict[str, Tensor]:
        """Returns the means and the values of every class.

        Returns:
            What `compute` returns; `tail_precision`, `tail_recall`, `tail_f1` and so on for each group;
            `per_class` (the IoU), `per_class_precision`, `per_class_recall`, `per_class_f1`: (K,). All float32
            in 0..1, NaN for a class or group that does not occur or is ignored.

        Raises:
            ValueError: As `compute`.
        """
        with self.over_processes():
            self.raise_if_invalid()
            confusion = float64_of(self.confusion)
            hits, predicted, true = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
            iou = hits / (predicted + true - hits)  # 0 / 0 = NaN: does not occur
            if 0 <= self.ignore_index < self.num_classes:
                iou[self.ignore_index] = torch.nan
            scores = {
                "precision": hits / predicted.clamp(min=1),
                "recall": hits / true.clamp(min=1),
                "f1": 2 * hits / (predicted + true).clamp(min=1),
            }
            scores = {name: score.where(iou.isfinite(), torch.nan) for name, score in scores.items()}
            result = {"miou": iou.nanmean(), **group_means(iou, self.groups), "per_class": iou}
            for name, score in scores.items():
                result |= {name: score.nanmean(), f"per_class_{name}": score}
                result |= {f"{group}_{name}": mean for group, mean in group_means(score, self.groups).items()}
            return self.results(result)

    def _count(self, predicted: Tensor, target: Tensor) -> None:
        num_cells = self.num_classes**2
        valid = (target != self.ignore_index) & ~(self.out_of_range(target) | self.out_of_range(predicted))
        cell = torch.where(valid, target * self.num_classes + predicted, num_cells).flatten()
        if cell.device.type == "cpu":
            counts = torch.bincount(cell, minlength=num_cells + 1)
        else:  # bincount would wait for the device to learn its largest value
            counts = torch.zeros(num_cells + 1, dtype=torch.int64, device=cell.device)
            counts.scatter_add_(0, cell, torch.ones_like(cell))
        self.confusion.add_(counts[:num_cells].view_as(self.confusion))
