"""Mean intersection over union from one global confusion matrix, with head, middle and tail groups."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aucseg.metrics.pixel_metric import (
    PixelMetric,
    check_groups,
    check_label_type,
    check_logits,
    group_means,
    upsampled_bands,
)


class GroupedMeanIoU(PixelMetric):
    r"""Mean intersection over union over a data set, for all classes and for groups of classes.

    One confusion matrix is summed over all batches and ranks; IoU is taken from it once, so that images count by their
    pixels:

    .. math:: \mathrm{IoU}_c = \frac{TP_c}{TP_c + FP_c + FN_c}

    (the Jaccard index; Everingham et al., *The PASCAL Visual Object Classes Challenge*, 2010). A class that occurs
    neither in the truth nor in the prediction is NaN and is left out of the means.

    Labels outside ``0..num_classes - 1`` that are not ``ignore_index``, and non-finite logits, raise ``ValueError``:
    from ``update`` on the CPU, from ``compute`` on an accelerator, where ``update`` does not wait for the device.

    Args:
        num_classes: Number of classes K, at least 2.
        groups: Class ids per group, such as ``{"head": [...], "middle": [...], "tail": [...]}``; None for no groups.
        ignore_index: Pixels with this label in the target don't count.
        **kwargs: Options of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> from aucseg.metrics import GroupedMeanIoU
        >>> metric = GroupedMeanIoU(4, groups={"head": [0], "middle": [1], "tail": [2, 3]})
        >>> predicted = torch.tensor([[0, 0, 1, 2, 0]])
        >>> target = torch.tensor([[0, 0, 1, 1, 255]])
        >>> metric.update(predicted, target)
        >>> {name: value.tolist() for name, value in metric.compute().items()}
        {'miou': 0.5, 'head': 1.0, 'middle': 0.5, 'tail': 0.0, 'per_class': [1.0, 0.5, 0.0, nan]}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor

    def __init__(
        self,
        num_classes: int,
        groups: Mapping[str, Sequence[int]] | None = None,
        ignore_index: int = 255,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, ignore_index, **kwargs)
        self.groups = check_groups(groups, num_classes, reserved=("miou", "per_class"))
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch to the confusion matrix.

        Args:
            preds: Predicted labels, integers of the target's shape; or logits (B, K, *spatial), floating point, whose
                argmax is the prediction. Logits smaller than the target are upsampled first (bilinear,
                ``align_corners=False``), a band of rows at a time. (N, K) logits go with (N,) labels.
            target: Labels (B, *spatial), integers in ``0..K - 1`` or ``ignore_index``.

        Raises:
            TypeError: Labels that are not integers.
            ValueError: Shapes that don't fit, labels out of range, non-finite logits.
        """
        if preds.is_floating_point():
            logits, target = check_logits(preds, target, self.num_classes)
            self.check_values(logits, target)
            for band, band_target in upsampled_bands(logits, target):
                self._count(band.argmax(dim=1), band_target)
        else:
            check_label_type(preds, "preds")
            check_label_type(target, "target")
            if preds.shape != target.shape:
                raise ValueError(
                    f"predicted labels of shape {tuple(preds.shape)} and target of shape {tuple(target.shape)} differ; "
                    "logits must be floating point"
                )
            preds, target = preds.long(), target.long()
            self.check_labels(target, target, "target label")
            self.check_labels(preds, target, "predicted label")
            self._count(preds, target)

    def compute(self) -> dict[str, Tensor]:
        """Return the means and the IoU of every class.

        Returns:
            ``miou``: mean over the classes that occur; one mean per group, under its name; ``per_class``: (K,). All
                float32 in 0..1,
            NaN for a class or group that does not occur.

        Raises:
            ValueError: Updates on an accelerator met labels out of range or non-finite logits.
        """
        self.raise_if_invalid()
        intersection = self.confusion.diagonal()
        union = self.confusion.sum(0) + self.confusion.sum(1) - intersection
        per_class = intersection.double() / union  # 0 / 0 = NaN: the class does not occur
        means = {"miou": per_class.nanmean(), **group_means(per_class, self.groups), "per_class": per_class}
        return {name: value.float() for name, value in means.items()}

    def _count(self, predicted: Tensor, target: Tensor) -> None:
        num_cells = self.num_classes**2
        valid = (target != self.ignore_index) & ~(self.out_of_range(target) | self.out_of_range(predicted))
        cell = torch.where(valid, target * self.num_classes + predicted, num_cells).flatten()
        if cell.device.type == "cpu":
            counts = torch.bincount(cell, minlength=num_cells + 1)
        else:  # bincount would wait for the device to learn its largest value
            counts = torch.zeros(num_cells + 1, dtype=torch.int64, device=cell.device)
            counts.scatter_add_(0, cell, torch.ones_like(cell))
        self.confusion += counts[:num_cells].view_as(self.confusion)
