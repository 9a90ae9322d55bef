"""Pixel-level AUC over a data set, in constant memory and with an error bound."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.metrics.score_histogram import Average, ScoreHistogramMetric, Scores
from aucseg.tensors.dtypes import float64_of


class PixelAUROC(ScoreHistogramMetric):
    r"""Area under the ROC curve of every class over all pixels of a data set.

    For channel c and label a with the normalized histograms p (scores of channel c at pixels of class c) and q (at
    pixels labelled a), ties inside a bin counting one half,

    .. math:: \mathrm{AUC}_{ca} = \sum_b p_b \Big(\sum_{b' < b} q_{b'} + \tfrac12 q_b\Big) \pm \tfrac12 \sum_b p_b q_b

    The true value lies within the bound. `average="ovo"` averages over ordered pairs of classes (Hand and Till, *A
    Simple Generalisation of the Area Under the ROC Curve for Multiple Class Classification Problems*, 2001;
    scikit-learn's `roc_auc_score(multi_class="ovo")`), `"ovr"` takes all other pixels as the negatives of a
    class. Classes without a pixel in the truth are NaN and left out of the means. How scores are binned:
    `ScoreHistogramMetric`.

    AUC alone looks optimistic under imbalance: read it beside IoU and average precision.

    Args:
        num_classes: Number of classes K, at least 2.
        average: `"ovo"` or `"ovr"`.
        scores: How logits become scores: `"softmax"`, `"sigmoid"`, or `"identity"` for scores in 0..1.
        bins: Number of bins; None for as many as fit in 180 MB, 4,096 at most (K = 150, ovo: 1,000).
        ignore_index: Pixels with this label in the target don't count.
        class_names: Names of the classes for `plot`; None for their numbers.
        **kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from aucseg.metrics import PixelAUROC
        >>> metric = PixelAUROC(num_classes=2)
        >>> logits = torch.tensor([[0.0, -2.0], [0.0, 1.0], [0.0, -1.0], [0.0, 2.0], [0.0, 0.0]])
        >>> metric.update(logits, torch.tensor([0, 0, 1, 1, 255]))
        >>> metric.compute().item()
        0.75
        >>> {name: value.tolist() for name, value in metric.details().items()}
        {'auroc': 0.75, 'error_bound': 0.0, 'per_class': [0.75, 0.75], 'per_class_error_bound': [0.0, 0.0]}
    """

    score_name = "pixel AUC"

    def __init__(
        self,
        num_classes: int,
        average: Average = "ovo",
        scores: Scores = "softmax",
        bins: int | None = None,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, average, scores, bins, ignore_index, class_names, **kwargs)

    def compute(self) -> Tensor:
        """Returns the AUC.

        Returns:
            Mean over the pairs (ovo) or classes (ovr) that occur: float32 scalar in 0..1, NaN where there is none.

        Raises:
            ValueError: Updates on an accelerator met labels out of range, non-finite logits or scores outside 0..1.
        """
        return self.details()["auroc"]

    def details(self) -> dict[str, Tensor]:
        """Returns the AUC, that of every class, and how far they can be off.

        Returns:
            `auroc`: what `compute` returns, and `error_bound`, the largest distance of the true value from it;
            `per_class` and `per_class_error_bound` likewise, (K,). All float32 in 0..1, NaN where a class, or every
            other class, does not occur.

        Raises:
            ValueError: As `compute`.
        """
        with self.over_processes():
            self.raise_if_invalid()
            pairs = [self._auc_of_class(class_id) for class_id in range(self.num_classes)]
            per_class, per_class_bound = (torch.stack(values).nanmean(dim=1) for values in zip(*pairs, strict=True))
            return self.results(
                {
                    "auroc": per_class.nanmean(),
                    "error_bound": per_class_bound.nanmean(),
                    "per_class": per_class,
                    "per_class_error_bound": per_class_bound,
                }
            )

    def roc_curve(self, class_id: int) -> tuple[Tensor, Tensor]:
        """Returns the ROC curve of a class against all others: false and true positive rates.

        Args:
            class_id: The class, in `0..K - 1`.

        Returns:
            Two float32 tensors (bins + 1,), rising from 0 to 1; NaN where there are no negatives or no positives.

        Raises:
            ValueError: As `compute`.
        """
        with self.over_processes():
            self.raise_if_invalid()
            positives, negatives = (float64_of(counts).flip(0).cumsum(0) for counts in self.counts_of_class(class_id))
            rates = [F.pad(counts, (1, 0)) / counts[-1] for counts in (negatives, positives)]
            false_rate, true_rate = self.results({"false": rates[0], "true": rates[1]}).values()
        return false_rate, true_rate

    def _auc_of_class(self, class_id: int) -> tuple[Tensor, Tensor]:
        """AUC and bound of a channel against its negatives, float64 (K,) for ovo, (1,) for ovr; NaN where undefined."""
        if self.average == "ovo":
            q = float64_of(self.histogram[:, class_id])
            p = q[class_id].clone()
            q[class_id] = 0  # the class is not a negative of its own: 0 / 0 = NaN
        else:
            p, q = (float64_of(counts) for counts in self.counts_of_class(class_id))
            q = q.unsqueeze(0)
        p /= p.sum()
        q /= q.sum(dim=1, keepdim=True)
        bound = q @ (p / 2)
        return q.cumsum(dim=1) @ p - bound, bound
