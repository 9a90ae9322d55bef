"""Pixel-level AUC over a data set, in constant memory and with an error bound."""

from typing import Any

import torch
from torch import Tensor

from aucseg.metrics.score_histogram import Average, ScoreHistogramMetric, Scores


class PixelAUROC(ScoreHistogramMetric):
    r"""Area under the ROC curve of every class over all pixels of a data set.

    For channel c and label a with the normalized histograms p (scores of channel c at pixels of class c) and q (at
    pixels labelled a), ties inside a bin counting one half,

    .. math:: \mathrm{AUC}_{ca} = \sum_b p_b \Big(\sum_{b' < b} q_{b'} + \tfrac12 q_b\Big) \pm \tfrac12 \sum_b p_b q_b

    The true value lies within the bound. ``average="ovo"`` averages over ordered pairs of classes (Hand and Till, *A
    Simple Generalisation of the Area Under the ROC Curve for Multiple Class Classification Problems*, 2001;
    scikit-learn's ``roc_auc_score(multi_class="ovo")``), ``"ovr"`` takes all other pixels as the negatives of a
    class. Classes without a pixel in the truth are NaN and left out of the means. How scores are binned:
    :class:`ScoreHistogramMetric`.

    AUC alone looks optimistic under imbalance: read it beside IoU and average precision.

    Args:
        num_classes: Number of classes K, at least 2.
        average: ``"ovo"`` or ``"ovr"``.
        scores: How logits become scores: ``"softmax"``, ``"sigmoid"``, or ``"identity"`` for scores in 0..1.
        bins: Number of bins; None for as many as fit in 180 MB, 4,096 at most (K = 150, ovo: 1,000).
        ignore_index: Pixels with this label in the target don't count.
        **kwargs: Options of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> from aucseg.metrics import PixelAUROC
        >>> metric = PixelAUROC(num_classes=2)
        >>> logits = torch.tensor([[0.0, -2.0], [0.0, 1.0], [0.0, -1.0], [0.0, 2.0], [0.0, 0.0]])
        >>> metric.update(logits, torch.tensor([0, 0, 1, 1, 255]))
        >>> result = metric.compute()
        >>> result["auroc"].item(), result["error_bound"].item(), result["per_class"].tolist()
        (0.75, 0.0, [0.75, 0.75])
    """

    def __init__(
        self,
        num_classes: int,
        average: Average = "ovo",
        scores: Scores = "softmax",
        bins: int | None = None,
        ignore_index: int = 255,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, average, scores, bins, ignore_index, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Return the AUC and how far it can be off.

        Returns:
            ``auroc``: mean over the pairs (ovo) or classes (ovr) that occur, and ``error_bound``, the largest distance
            of the true value from it; ``per_class`` and ``per_class_error_bound`` likewise, (K,). All float32 in 0..1,
            NaN where a class, or every other class, does not occur.

        Raises:
            ValueError: Updates on an accelerator met labels out of range, non-finite logits or scores outside 0..1.
        """
        self.raise_if_invalid()
        num_negatives = self.num_classes if self.average == "ovo" else 1
        aucs = self.histogram.new_empty((self.num_classes, num_negatives), dtype=torch.float64)
        bounds = torch.empty_like(aucs)
        for class_id in range(self.num_classes):
            self._auc_of_class(class_id, aucs[class_id], bounds[class_id])
        per_class, per_class_bound = aucs.nanmean(dim=1), bounds.nanmean(dim=1)
        return {
            "auroc": per_class.nanmean().float(),
            "error_bound": per_class_bound.nanmean().float(),
            "per_class": per_class.float(),
            "per_class_error_bound": per_class_bound.float(),
        }

    def roc_curve(self, class_id: int) -> tuple[Tensor, Tensor]:
        """Return the ROC curve of a class against all others: false and true positive rates.

        Args:
            class_id: The class, in ``0..K - 1``.

        Returns:
            Two float32 tensors (bins + 1,), rising from 0 to 1; NaN where there are no negatives or no positives.
        """
        positives, negatives = (counts.flip(0).cumsum(0) for counts in self.counts_of_class(class_id))
        zero = positives.new_zeros(1)
        false_rate, true_rate = (torch.cat([zero, c]).double() / c[-1] for c in (negatives, positives))
        return false_rate.float(), true_rate.float()

    def _auc_of_class(self, class_id: int, auc: Tensor, bound: Tensor) -> None:
        """Write AUC and bound of a channel against its negatives: (K,) for ovo, (1,) for ovr, NaN where undefined."""
        if self.average == "ovo":
            q = self.histogram[:, class_id].double()
            p = q[class_id].clone()
            q[class_id] = 0  # the class is no negative of its own: 0 / 0 = NaN
        else:
            positives, negatives = self.counts_of_class(class_id)
            p, q = positives.double(), negatives.double().unsqueeze(0)
        p /= p.sum()
        q /= q.sum(dim=1, keepdim=True)
        torch.mv(q, p / 2, out=bound)
        torch.mv(q.cumsum(dim=1), p, out=auc)
        auc -= bound
