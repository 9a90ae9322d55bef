"""The offsets that maximize a mean of IoUs: coordinate ascent over exact counts.

Offsets are whole numbers of steps, a step a power of two, and sums are in double precision, so that every comparison of
two logits with their offsets is exact.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aucseg.inference.candidate_scores import CandidateScores, Floats, Integers, weighted_counts

# Strengths of logit adjustment to begin with.
_PRIOR_STRENGTHS = (0.0, 0.1, 0.25, 0.5, 1.0)
_MAX_SWEEPS = 50
# Improvements below this are rounding.
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class PenalizedMeanIoU:
    r"""The mean :math:`\sum_c w_c \mathrm{IoU}_c`, less a penalty for the offsets of classes that few clusters show.

    Attributes:
        weight: `(K,)` not negative, sum 1.
        penalty: `(K,)` the penalty of the steps k is the weighted sum of squares of k around its weighted mean.
    """

    weight: Floats
    penalty: Floats

    def mean_iou(self, hits: Floats, predicted: Floats, num_true: Floats) -> Floats:
        """Computes the weighted mean of the IoUs for counts `(..., K)`."""
        union = num_true + predicted - hits
        return np.divide(hits, union, out=np.zeros_like(union), where=union > 0) @ self.weight

    def cost(self, steps: Integers) -> Floats:
        """Computes the penalty of steps `(..., K)`."""
        total = self.penalty.sum()
        if total == 0:
            return np.zeros(steps.shape[:-1])
        mean: Floats = steps @ self.penalty / total
        return (steps - mean[..., None]) ** 2 @ self.penalty


class OffsetSearch:
    """Coordinate ascent from the best logit adjustment.

    For class c and fixed offsets of all others, a pixel turns to c where its offset reaches the largest of the others
    less its own logit. A histogram of these turning points gives the exact counts for all values of the offset at once,
    one pass over the scores of class c. Classes take turns, the rarest first, until none moves.

    Args:
        scores: What to fit on; at least one pixel.
        objective: What to maximize.
        step: Size of a step, a power of two.
        limit: Most steps up or down.
        movable: `(K,)` bool, the classes whose offsets may differ from 0. Default: those that have a pixel.
    """

    def __init__(
        self,
        scores: CandidateScores,
        objective: PenalizedMeanIoU,
        step: float,
        limit: int,
        movable: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.scores = scores
        self.objective = objective
        self.step = step
        self.limit = limit
        self.num_true = scores.num_true.sum(axis=0).astype(np.float64)
        self._weight = scores.weight[scores.label]
        self._pixel = np.repeat(np.arange(len(scores.label)), np.diff(scores.start))
        order = np.argsort(scores.class_id, kind="stable")
        borders = np.cumsum(np.bincount(scores.class_id, minlength=scores.num_classes))[:-1]
        self._entries_of = np.split(order, borders)
        self._is_movable = self.num_true > 0 if movable is None else movable
        order = np.argsort(self.num_true, kind="stable")
        self._movable = order[self._is_movable[order]]

    def run(self) -> Integers:
        """Searches.

        Returns:
            `(K,)` steps within `-limit..limit`, 0 for classes that may not move.
        """
        best = max(self._starts(), key=lambda steps: self.value(steps))
        return self._ascend(best)

    def value(self, steps: Integers) -> float:
        """Computes the objective of steps `(K,)`, penalty included."""
        hits, predicted = (counts.sum(axis=0) for counts in self.scores.counts(self._best_of(steps)))
        return float(self.objective.mean_iou(hits, predicted, self.num_true) - self.objective.cost(steps))

    def _starts(self) -> list[Integers]:
        log_share = np.log(np.where(self._is_movable, self.num_true, 1.0))
        log_share -= log_share[self._movable].mean() if len(self._movable) else 0.0
        starts = [-strength * np.where(self._is_movable, log_share, 0.0) / self.step for strength in _PRIOR_STRENGTHS]
        return [np.rint(start).clip(-self.limit, self.limit).astype(np.int64) for start in starts]

    def _best_of(self, steps: Integers) -> Integers:
        return predict(self.scores, self.step * steps)

    def _ascend(self, steps: Integers) -> Integers:
        steps = steps.copy()
        everything = np.arange(len(self.scores.label))
        size = len(everything)
        # Of each pixel the two best classes and their logits with offsets: the best of the classes other than c is
        # either the first or the second.
        self._first, self._second = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        self._top, self._next = np.zeros(size), np.zeros(size)
        self._rank(everything, steps)
        for _ in range(_MAX_SWEEPS):
            moved = False
            self._hits, self._predicted = (counts.sum(axis=0) for counts in self.scores.counts(self._first))
            for class_id in self._movable:
                new = self._line_search(int(class_id), steps)
                if new != steps[class_id]:
                    steps[class_id] = new
                    self._rank(self._affected(int(class_id), int(new)), steps)
                    moved = True
            if not moved:
                break
        return steps

    def _line_search(self, class_id: int, steps: Integers) -> int:
        scores, num_classes = self.scores, self.scores.num_classes
        entries = self._entries_of[class_id]
        pixel = self._pixel[entries]
        is_first = self._first[pixel] == class_id
        rival = np.where(is_first, self._second[pixel], self._first[pixel])
        turning = (np.where(is_first, self._next[pixel], self._top[pixel]) - scores.score[entries]) / self.step
        # The first step at which the class wins; of equal logits the one of the lower class does.
        wins_at = np.floor(turning) + 1
        wins_at -= (turning == wins_at - 1) & (class_id < rival)
        num_bins = 2 * self.limit + 2  # the last one: never
        place = (wins_at + self.limit).clip(0, num_bins - 1).astype(np.int64)
        weight, label = self._weight[pixel], scores.label[pixel]

        def won(chosen: npt.NDArray[np.bool_] | slice, by_rival: bool) -> Floats:
            cell, size = (place * num_classes + rival, (num_bins, num_classes)) if by_rival else (place, (num_bins,))
            totals: Floats = np.cumsum(weighted_counts(cell[chosen], weight[chosen], size), axis=0)[:-1]
            return totals

        now = int(steps[class_id]) + self.limit
        hits, predicted = (
            total + lost[now] - lost + np.outer(gained - gained[now], np.arange(num_classes) == class_id)
            for total, gained, lost in (
                (self._hits, won(label == class_id, by_rival=False), won(label == rival, by_rival=True)),
                (self._predicted, won(slice(None), by_rival=False), won(slice(None), by_rival=True)),
            )
        )
        trials = np.repeat(steps[None], num_bins - 1, axis=0)
        trials[:, class_id] = np.arange(-self.limit, self.limit + 1)
        values = self.objective.mean_iou(hits, predicted, self.num_true) - self.objective.cost(trials)
        if values.max() <= values[now] + _TOLERANCE:
            return int(steps[class_id])
        best = np.flatnonzero(values >= values.max() - _TOLERANCE)
        nearest = int(best[np.argmin(np.abs(best - now))])
        self._hits, self._predicted = hits[nearest], predicted[nearest]
        return nearest - self.limit

    def _affected(self, class_id: int, new: int) -> Integers:
        """Pixels whose two best classes may be others after a class has moved."""
        entries = self._entries_of[class_id]
        pixel = self._pixel[entries]
        value = self.scores.score[entries] + self.step * new
        among = (self._first[pixel] == class_id) | (self._second[pixel] == class_id) | (value >= self._next[pixel])
        affected: Integers = pixel[among]
        return affected

    def _rank(self, pixel: Integers, steps: Integers) -> None:
        scores = self.scores
        if len(pixel) == 0:
            return
        length = np.diff(scores.start)[pixel]
        start = np.concatenate([[0], np.cumsum(length)[:-1]])
        entries = np.repeat(scores.start[pixel] - start, length) + np.arange(length.sum())
        values = scores.score[entries] + self.step * steps[scores.class_id[entries]]
        for top, class_of in ((self._top, self._first), (self._next, self._second)):
            best = _first_maximum(values, start, length)
            top[pixel], class_of[pixel] = values[best], scores.class_id[entries[best]]
            values[best] = -np.inf


def predict(scores: CandidateScores, offsets: Floats) -> Integers:
    """Gives the class of the largest logit with its offset for each open pixel; of equal ones the lowest.

    Args:
        scores: N open pixels.
        offsets: `(K,)`.

    Returns:
        `(N,)` class ids.
    """
    if len(scores.label) == 0:
        return np.zeros(0, dtype=np.int64)
    values = scores.score + offsets[scores.class_id]
    best = _first_maximum(values, scores.start[:-1], np.diff(scores.start))
    return scores.class_id[best]


def _first_maximum(values: Floats, start: Integers, length: Integers) -> Integers:
    """Where each of the consecutive segments of `values` has its maximum for the first time."""
    top = np.maximum.reduceat(values, start)
    at_top = np.flatnonzero(values == np.repeat(top, length))
    return at_top[np.searchsorted(at_top, start)]
