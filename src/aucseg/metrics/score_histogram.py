"""Histograms of the scores of every channel, by label: the constant-memory state behind AUC and average precision."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from aucseg.hints import check_choice
from aucseg.metrics.pixel_metric import PixelMetric, bands_at, check_logits, triton_counts_for
from aucseg.tensors.labels import is_integer

Scores = Literal["softmax", "sigmoid", "identity"]
Average = Literal["ovo", "ovr"]

MAX_DEFAULT_BINS = 4096
MAX_STATE_BYTES = 180_000_000
# Bins are evenly spaced in sign(u) log(1 + |u| / BIN_SCALE) for |u| <= MAX_LOGIT, u the score's logit from the centre.
BIN_SCALE = 0.125
MAX_LOGIT = 26.0


class ScoreHistogramMetric(PixelMetric):
    """Counts of the scores of each channel, for each label (ovo) or for the channel's own class and the rest (ovr).

    The score of channel c is binned by its logit u = log(s / (1 - s)), from the logit of 1/K for softmax and identity
    scores, where they crowd when K is large and the model knows nothing, and from 0 for sigmoid scores. Bins are evenly
    spaced in sign(u) log(1 + 8 |u|) for |u| up to 26, so that they are about 1 % of |u| wide and finest at the centre;
    scores beyond go to the outermost bins. The rule depends on nothing that was seen, so that histograms of batches and
    ranks add up.

    Args:
        num_classes: Number of classes K, at least 2.
        average: `"ovo"` keeps (K, K, bins) counts, `"ovr"` (2, K, bins), in int64.
        scores: How logits become scores: `"softmax"`, `"sigmoid"`, or `"identity"` for scores in 0..1.
        bins: Number of bins; None for as many as fit in 180 MB, 4,096 at most (K = 150, ovo: 1,000).
        ignore_index: Pixels with this label in the target don't count.
        class_names: Names of the classes for `plot`; None for their numbers.
        **kwargs: Options of `torchmetrics.Metric`.
    """

    def __init__(
        self,
        num_classes: int,
        average: Average,
        scores: Scores = "softmax",
        bins: int | None = None,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, ignore_index, class_names, **kwargs)
        check_choice("average", average, ("ovo", "ovr"))
        check_choice("scores", scores, ("softmax", "sigmoid", "identity"))
        num_rows = num_classes if average == "ovo" else 2
        if bins is None:
            bins = max(2, min(MAX_DEFAULT_BINS, MAX_STATE_BYTES // (8 * num_rows * num_classes)))
        if not is_integer(bins) or bins < 2:
            raise ValueError(f"bins must be an integer of at least 2, got {bins!r}")
        self.average: Average = average
        self.scores: Scores = scores
        self.bins = bins
        self._histogram_name = self.add_sums("histogram", average, scores, shape=(num_rows, num_classes, bins))

    @property
    def histogram(self) -> Tensor:
        """Counts in int64: (K, K, bins) by label and channel for ovo, (2, K, bins) for ovr with row 1 the own class."""
        histogram: Tensor = getattr(self, self._histogram_name)
        return histogram

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Adds a batch to the histograms.

        Args:
            logits: (B, K, *spatial) floating point, finite (scores in 0..1 with `scores="identity"`). Smaller than
                the target, they are upsampled first (bilinear, `align_corners=False`), a band of rows at a time.
                (N, K) logits go with (N,) labels. With two classes also one logit z a pixel, (B, 1, *spatial): the
                scores are then those of class 1 (`"softmax"` and `"sigmoid"`: the sigmoid of z), and one minus them
                those of class 0.
            target: Labels (B, *spatial), integers in `0..K - 1` or `ignore_index`; bool with two classes.

        Raises:
            TypeError: Labels that are not integers, logits that are not floating point.
            ValueError: Shapes that don't fit, labels out of range, non-finite logits, scores outside 0..1.
        """
        logits, target = check_logits(logits, target, self.num_classes)
        kernels = triton_counts_for(logits, target)
        checked = kernels is not None and logits.shape[1:] == (self.num_classes, *target.shape[1:])
        if not checked:
            if self.scores == "identity":
                self.refuse(~((logits >= 0) & (logits <= 1)), logits, "score", "identity scores must lie in 0..1")
            self.check_values(logits, target)
        if logits.shape[1] == 1:
            logits = self._two_channels(logits)
        if kernels is not None:
            kernels.count_scores(
                logits, target, self.histogram, self.num_invalid if checked else None, self.ignore_index,
                self.scores, self.average == "ovo", self._center, BIN_SCALE, MAX_LOGIT,
            )  # fmt: skip
            return
        for band, band_target in bands_at(logits, target):
            self._count(band.flatten(2)[0], band_target.flatten())

    def counts_of_class(self, class_id: int) -> tuple[Tensor, Tensor]:
        """Returns the counts (bins,) int64 of channel `class_id`: at pixels of its class and at all others."""
        if not 0 <= class_id < self.num_classes:
            raise ValueError(f"class id {class_id} is outside 0..{self.num_classes - 1}")
        if self.average == "ovr":
            return self.histogram[1, class_id], self.histogram[0, class_id]
        positives = self.histogram[class_id, class_id]
        return positives, self.histogram[:, class_id].sum(0) - positives

    def _two_channels(self, logits: Tensor) -> Tensor:
        """Logits (B, 2, *spatial) whose scores are 1 - s and s, from (B, 1, *spatial) with the score s."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        other = {"softmax": torch.zeros_like(logits), "sigmoid": -logits, "identity": 1 - logits}[self.scores]
        return torch.cat([other, logits], dim=1)

    def _count(self, logits: Tensor, labels: Tensor) -> None:
        """Counts `logits` (K, N) float32 with `labels` (N,) int64."""
        valid = (labels != self.ignore_index) & ~self.out_of_range(labels)
        cell = self._bin(logits)
        channel = torch.arange(self.num_classes, device=logits.device).unsqueeze(1)
        row = labels.where(valid, 0) if self.average == "ovo" else (labels == channel).long()
        cell += channel * self.bins
        cell += row * (self.num_classes * self.bins)
        weight = valid.long().expand_as(cell).reshape(-1)
        self.histogram.view(-1).scatter_add_(0, cell.reshape(-1), weight)

    @property
    def _center(self) -> float:
        """The logit in the middle of the bins."""
        return 0.0 if self.scores == "sigmoid" else -math.log(self.num_classes - 1)

    def _bin(self, logits: Tensor) -> Tensor:
        """Bin of every score, int64: a monotone function of the float32 score."""
        if self.scores == "softmax":
            scores = logits.softmax(dim=0)
        else:
            scores = logits.sigmoid() if self.scores == "sigmoid" else logits
        logit = torch.logit(scores).sub_(self._center)
        position = (logit.abs() / BIN_SCALE).log1p_().copysign_(logit)
        half = self.bins / 2
        position.mul_(half / math.log1p(MAX_LOGIT / BIN_SCALE)).add_(half)
        # A NaN, which was refused or counted, has a place too: on an accelerator none may lead outside of the state.
        return position.nan_to_num_(0).clamp_(0, self.bins - 1).long()
