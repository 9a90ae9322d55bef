"""Pixel-level average precision over a data set, in constant memory and with an error bound."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aucseg.metrics.pixel_metric import check_groups, group_means
from aucseg.metrics.score_histogram import ScoreHistogramMetric, Scores
from aucseg.tensors.dtypes import float64_of


class PixelAveragePrecision(ScoreHistogramMetric):
    r"""Average precision of every class against the rest, over all pixels of a data set.

    .. math:: \mathrm{AP} = \sum_n (R_n - R_{n-1}) P_n

    over the thresholds n from high to low (scikit-learn's `average_precision_score`, not interpolated). Scores in one
    bin count as equal: with T positives and F negatives above a bin that holds p positives and n negatives, the
    positives of the bin have the precision (T + p) / (T + p + F + n). If their scores differ it is at most
    (T + p) / (T + p + F), all of them first, and their precisions sum, all of them last, to

    .. math:: \sum_{i=1}^{p} \frac{T + i}{T + i + F + n} \ge p - (F + n) \log\frac{T + F + n + p + 1/2}{T + F + n + 1/2}

    (midpoint rule of a concave function). The distance to the farther of the two is the error bound. A class without a
    pixel in the truth is NaN and left out of the means.

    Args:
        num_classes: Number of classes K, at least 2.
        groups: Class ids per group, such as `{"head": [...], "middle": [...], "tail": [...]}`; None for no groups.
        scores: How logits become scores: `"softmax"`, `"sigmoid"`, or `"identity"` for scores in 0..1.
        bins: Number of bins, 4,096 by default.
        ignore_index: Pixels with this label in the target don't count.
        class_names: Names of the classes for `plot`; None for their numbers.
        **kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from aucseg.metrics import PixelAveragePrecision
        >>> metric = PixelAveragePrecision(num_classes=3, groups={"tail": [1]})
        >>> logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
        >>> metric.update(logits, torch.tensor([0, 1, 1, 255]))
        >>> round(metric.compute().item(), 1)
        0.7
        >>> {name: round(value.item(), 1) for name, value in metric.details().items() if value.ndim == 0}
        {'map': 0.7, 'tail': 0.8, 'error_bound': 0.0}
    """

    score_name = "average precision"

    def __init__(
        self,
        num_classes: int,
        groups: Mapping[str, Sequence[int]] | None = None,
        scores: Scores = "softmax",
        bins: int | None = None,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, "ovr", scores, bins, ignore_index, class_names, **kwargs)
        reserved = ("map", "per_class", "error_bound", "per_class_error_bound")
        self.groups = check_groups(groups, num_classes, reserved)

    def compute(self) -> Tensor:
        """Returns the mean average precision.

        Returns:
            Mean over the classes that occur: float32 scalar in 0..1, NaN where there is none.

        Raises:
            ValueError: Updates on an accelerator met labels out of range, non-finite logits or scores outside 0..1.
        """
        return self.details()["map"]

    def details(self) -> dict[str, Tensor]:
        """Returns the average precision, that of every class and group, and how far they can be off.

        Returns:
            `map`: what `compute` returns, and `error_bound`, the largest distance of the true value from it; one
            mean per group, under its name; `per_class` and `per_class_error_bound`, (K,). All float32 in 0..1, NaN
            for a class or group that does not occur.

        Raises:
            ValueError: As `compute`.
        """
        with self.over_processes():
            self.raise_if_invalid()
            negatives, positives = float64_of(self.histogram).flip(-1)
            positives_above, negatives_above = (c.cumsum(-1) - c for c in (positives, negatives))
            found, negatives_up_to = positives_above + positives, negatives_above + negatives
            equal, best = (
                positives * found / (found + others).clamp(min=1) for others in (negatives_up_to, negatives_above)
            )
            worst = positives - negatives_up_to * torch.log1p(positives / (positives_above + negatives_up_to + 0.5))
            per_class, upper, lower = (sums.sum(-1) / positives.sum(-1) for sums in (equal, best, worst))
            bound = torch.maximum(upper - per_class, per_class - lower)
            result = {
                "map": per_class.nanmean(),
                **group_means(per_class, self.groups),
                "error_bound": bound.nanmean(),
                "per_class": per_class,
                "per_class_error_bound": bound,
            }
            return self.results(result)
