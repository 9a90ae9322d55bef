"""One offset a class, fitted to a mean of IoUs on images that were not trained on, and judged by cross-fitting."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from aucseg.inference.candidate_scores import CandidateScores, Floats, Integers, ScoreCollector
from aucseg.inference.offset_search import OffsetSearch, PenalizedMeanIoU, predict
from aucseg.metrics.pixel_metric import check_groups

# A step is the power of two below this part of the largest offset.
_STEPS = 64
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class OffsetFit:
    r"""Offsets for the logits, and what they are worth on images that they were not fitted on.

    Means are over the classes that occur in the truth.

    Attributes:
        offsets: One for each class, to be added to its logit; their mean is 0 up to half a step.
        gain: Cross-fitted: what offsets fitted on the other folds bring to the objective, in -1..1.
        spread: Half width of the one-sided 95 % interval of the gain: the standard error over the images (or clusters),
            by the jackknife, times the quantile of Student's t.
        before: The objective without offsets, in 0..1.
        fitted: The objective with `offsets` on the very images that they were fitted on; no evidence. Mostly above
            `before + gain`; less where few images hold a class, which the fit gives little or no weight.
        iou_before: IoU of each class; NaN for one in neither truth nor prediction.
        iou_after: The same, cross-fitted.
        occurs: Whether the truth has the class.
        num_images: Clusters: images, unless they were given in larger groups.
        num_folds: Parts of them.
        objective: `"miou"`, a group, or `"weights"`.
        is_exact: Whether every pixel was counted; otherwise pixels of frequent labels were drawn to bound the memory.
    """

    offsets: tuple[float, ...]
    gain: float
    spread: float
    before: float
    fitted: float
    iou_before: tuple[float, ...]
    iou_after: tuple[float, ...]
    occurs: tuple[bool, ...]
    num_images: int
    num_folds: int
    objective: str
    is_exact: bool

    @property
    def after(self) -> float:
        """The objective with cross-fitted offsets."""
        return self.before + self.gain

    @property
    def accepted(self) -> bool:
        """Whether the gain is above its spread; otherwise leave the model as it is."""
        return self.gain > self.spread

    def as_dict(self) -> dict[str, Any]:
        """Gives everything as plain values for JSON."""
        return asdict(self) | {"after": self.after, "accepted": self.accepted}


class OffsetFitter:
    r"""Fits one offset a class to the logits so that a mean of IoUs rises.

    The prediction becomes :math:`\arg\max_c z_c(x) + b_c`, and the offsets maximize

    .. math:: \sum_c w_c \frac{TP_c(b)}{n_c + PP_c(b) - TP_c(b)}
        - \frac{\rho}{C} \sum_c \frac{(b_c - \bar b)^2}{m_c}

    with :math:`n_c` pixels of the class, :math:`PP_c` predicted ones, C classes in the objective and :math:`m_c` images
    that hold the class, so that the offset of a class is the bolder the more images say so; a class that a single image
    holds is left alone. The counts are exact over all pixels, and the search is coordinate ascent whose line search
    sees every value of an offset (`aucseg.inference.offset_search.OffsetSearch`), from the best of a few logit
    adjustments (Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021).

    Why thresholds: predicting by the largest probability is optimal for accuracy, not for IoU. For a measure of the
    confusion matrix the optimal rule weighs the classes' probabilities (Narasimhan et al., *Consistent Multiclass
    Algorithms for Complex Performance Measures*, ICML 2015), and with calibrated probabilities of two classes the best
    threshold for F1 is half of the best F1 (Lipton et al., *Thresholding Classifiers to Maximize F1 Score*, 2014), so
    that it lies below one half, the lower the harder the class. Rare classes overfit their thresholds (Lin and Lin, *On
    the Thresholding Strategy for Infrequent Labels in Multi-label Classification*, CIKM 2023), hence the penalty and
    the cross-fitting.

    Args:
        num_classes: K, at least 2.
        ignore_index: Pixels with this label in the target don't count.
        max_offset: Offsets lie in `[-max_offset, max_offset]` before their mean is taken off, in units of the logits.
        max_scores: Bound on the memory, see `aucseg.inference.candidate_scores.ScoreCollector`.

    Raises:
        ValueError: A number out of its range.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> fitter = OffsetFitter(2)
        >>> for _ in range(20):  # class 1 is rare, and its logit is 1 too low
        ...     target = (torch.rand(1, 30, 30, generator=generator) < 0.1).long()
        ...     margin = torch.randn(1, 30, 30, generator=generator) + 4 * target - 3
        ...     fitter.update(torch.stack([-margin / 2, margin / 2], dim=1), target)
        >>> fit = fitter.fit()
        >>> fit.accepted, 0.5 < fit.offsets[1] - fit.offsets[0] < 1.5
        (True, True)
    """

    def __init__(
        self, num_classes: int, *, ignore_index: int = 255, max_offset: float = 3.0, max_scores: int = 2**21
    ) -> None:
        self._collector = ScoreCollector(
            num_classes, ignore_index=ignore_index, max_offset=max_offset, max_scores=max_scores
        )
        self._step = 2.0 ** math.floor(math.log2(max_offset / _STEPS))
        self._limit = math.floor(max_offset / self._step)

    def update(self, logits: Tensor, target: Tensor, clusters: Sequence[Hashable] | Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            logits: `(B, K, *spatial)` float, at most as large as the target; smaller ones are upsampled (bilinear,
                `align_corners=False`). `(N, K)` logits with `(N,)` labels are one image; of two classes one logit
                z, `(B, 1, *spatial)`, is the two logits (0, z).
            target: `(B, *spatial)` integers in `0..K - 1` or `ignore_index`.
            clusters: For each image what it belongs to (a city, a video), as strings or numbers: folds keep clusters
                whole. Default: each image by itself. An image without a labelled pixel counts nowhere.

        Raises:
            TypeError: Logits that are not floating point, labels that are not integers.
            ValueError: Shapes that don't fit, labels out of range, non-finite logits.
        """
        self._collector.update(logits, target, clusters)

    def fit(
        self,
        objective: str | Sequence[float] = "miou",
        *,
        groups: Mapping[str, Sequence[int]] | None = None,
        num_folds: int = 5,
        shrinkage: float = 0.01,
    ) -> OffsetFit:
        r"""Fits on all images, and judges by fitting on all folds but one in turn.

        Args:
            objective: `"miou"`, all classes alike; a name of `groups` such as `"tail"`, the classes of that group
                alone, at whatever cost for the others; or K weights, not negative.
            groups: Class ids by group, as in `aucseg.metrics.GroupedMeanIoU`.
            num_folds: Parts of the images (or clusters), at least 2; with fewer images than that, each is a part.
            shrinkage: The penalty's strength, :math:`\rho` above; 0 for none.

        Returns:
            The offsets, and their gain.

        Raises:
            ValueError: Fewer than two images, an objective that names no class that occurs, or numbers out of range.
        """
        if num_folds < 2:
            raise ValueError(f"num_folds must be at least 2, got {num_folds}")
        if not 0 <= shrinkage < math.inf:
            raise ValueError(f"shrinkage must not be negative, got {shrinkage}")
        scores = self._collector.scores()
        weight = _class_weights(objective, groups, scores)
        num_clusters = len(scores.clusters)
        if num_clusters < 2:
            raise ValueError("offsets are judged on images that they were not fitted on: give at least 2 images")
        num_folds = min(num_folds, num_clusters)
        fold_of = np.random.default_rng(0).permutation(np.arange(num_clusters) % num_folds)
        hits, predicted = np.zeros(scores.num_true.shape), np.zeros(scores.num_true.shape)
        for fold in range(num_folds):
            steps = self._search(scores.of_clusters(fold_of != fold), weight, shrinkage)
            left_out = scores.of_clusters(fold_of == fold)
            for total, counts in zip((hits, predicted), _counts(left_out, self._step * steps), strict=True):
                total += counts
        steps = self._search(scores, weight, shrinkage)
        plain = _counts(scores, np.zeros(len(weight)))
        fitted = _iou(*(counts.sum(0) for counts in (*_counts(scores, self._step * steps), scores.num_true)))
        before = _iou(*(counts.sum(0) for counts in (*plain, scores.num_true)))
        after = _iou(*(counts.sum(0) for counts in (hits, predicted, scores.num_true)))
        steps = steps - round(float(steps.mean()))
        return OffsetFit(
            offsets=tuple((self._step * steps).tolist()),
            gain=_mean(after - before, weight),
            spread=_spread(plain, (hits, predicted), scores.num_true, weight),
            before=_mean(before, weight),
            fitted=_mean(fitted, weight),
            iou_before=tuple(before.tolist()),
            iou_after=tuple(after.tolist()),
            occurs=tuple((scores.num_true.sum(axis=0) > 0).tolist()),
            num_images=num_clusters,
            num_folds=num_folds,
            objective=objective if isinstance(objective, str) else "weights",
            is_exact=scores.is_exact,
        )

    def _search(self, scores: CandidateScores, weight: Floats, shrinkage: float) -> Integers:
        num_images = (scores.num_true > 0).sum(axis=0)
        penalty = shrinkage * self._step**2 / np.maximum(num_images, 1) / np.count_nonzero(weight)
        # What one image alone shows proves nothing.
        movable = num_images >= 2
        objective = PenalizedMeanIoU(np.where(movable, weight, 0), np.where(movable, penalty, 0))
        return OffsetSearch(scores, objective, self._step, self._limit, movable).run()


def fit_offsets(
    scores_and_labels: Iterable[tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Sequence[Hashable] | Tensor]],
    num_classes: int,
    *,
    objective: str | Sequence[float] = "miou",
    groups: Mapping[str, Sequence[int]] | None = None,
    num_folds: int = 5,
    shrinkage: float = 0.01,
    ignore_index: int = 255,
    max_offset: float = 3.0,
    max_scores: int = 2**21,
) -> OffsetFit:
    """Fits one offset a class to the logits of any model, in one pass and in bounded memory.

    Args:
        scores_and_labels: Batches `(logits, target)` or `(logits, target, clusters)`, see
            `OffsetFitter.update`; of images that the model was not trained on.
        num_classes: K, at least 2.
        objective: What to maximize, see `OffsetFitter.fit`: `"miou"`, the name of a group, or K weights.
        groups: Class ids by group, for the name of one.
        num_folds: Parts of the images that are judged by offsets of the others, at least 2.
        shrinkage: Strength of the penalty that draws offsets together, at least 0.
        ignore_index: Pixels with this label in the target don't count.
        max_offset: Offsets lie in `[-max_offset, max_offset]` before their mean is taken off, in units of the logits.
        max_scores: Bound on the memory, see `aucseg.inference.candidate_scores.ScoreCollector`.

    Returns:
        The offsets, the gain on images that they were not fitted on, its spread, and whether it is above that.

    Raises:
        TypeError: As in `OffsetFitter.update`.
        ValueError: As in `OffsetFitter` and its methods.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> def batches():
        ...     for _ in range(10):  # noise: nothing is to be gained
        ...         target = torch.randint(3, (2, 8, 8), generator=generator)
        ...         yield torch.randn(2, 3, 8, 8, generator=generator), target
        >>> fit_offsets(batches(), 3).accepted
        False
    """
    fitter = OffsetFitter(num_classes, ignore_index=ignore_index, max_offset=max_offset, max_scores=max_scores)
    for batch in scores_and_labels:
        fitter.update(*batch)
    return fitter.fit(objective, groups=groups, num_folds=num_folds, shrinkage=shrinkage)


def _class_weights(
    objective: str | Sequence[float], groups: Mapping[str, Sequence[int]] | None, scores: CandidateScores
) -> Floats:
    checked = check_groups(groups, scores.num_classes, reserved=("miou",))
    if not isinstance(objective, str):
        weight = np.asarray(objective, dtype=np.float64)
        if weight.shape != (scores.num_classes,) or not np.isfinite(weight).all() or (weight < 0).any():
            raise ValueError(f"objective: expected {scores.num_classes} weights >= 0, got {objective}")
    elif objective == "miou":
        weight = np.ones(scores.num_classes)
    elif objective in checked:
        weight = np.zeros(scores.num_classes)
        weight[checked[objective]] = 1
    else:
        known = ", ".join(map(repr, ("miou", *checked)))
        raise ValueError(f"unknown objective {objective!r}: expected one of {known}, or a weight for each class")
    weight = np.where(scores.num_true.sum(axis=0) > 0, weight, 0)
    if not weight.any():
        raise ValueError(f"none of the classes of the objective {objective!r} has a labelled pixel")
    normalized: Floats = weight / weight.sum()
    return normalized


def _counts(scores: CandidateScores, offsets: Floats) -> tuple[Floats, Floats]:
    return scores.counts(predict(scores, offsets))


def _iou(hits: Floats, predicted: Floats, num_true: Floats) -> Floats:
    union = num_true + predicted - hits
    return np.divide(hits, union, out=np.full_like(union, np.nan), where=union > 0)


def _mean(values: Floats, weight: Floats) -> float:
    return float(np.where(weight > 0, values, 0) @ weight)


def _spread(before: tuple[Floats, Floats], after: tuple[Floats, Floats], num_true: Integers, weight: Floats) -> float:
    """Computes the half width of the gain's interval from the gains without each cluster in turn."""
    from scipy import stats

    without = []
    for hits, predicted in (before, after):
        parts = (counts.sum(axis=0) - counts for counts in (hits, predicted, num_true))
        without.append(_iou(*parts))
    # A class that one cluster alone shows has no gain without it.
    gains = np.nan_to_num(without[1] - without[0]) @ weight
    num_clusters = len(gains)
    error = math.sqrt((num_clusters - 1) * gains.var())
    return float(stats.t.ppf(_CONFIDENCE, num_clusters - 1)) * error
