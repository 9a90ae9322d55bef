"""Means over seeds or folds with t intervals, paired differences with Holm's correction, and who is significantly best.

Seeds are few, so intervals come from Student's t; runs of one seed share order and augmentation of the data, so
differences are taken seed by seed. The same holds of folds, whose runs share training images as well: `t_interval`
widens their intervals for that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LEVEL = 0.05


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval (NaN for one value); `p` is of the two-sided t test against 0.

    Attributes:
        n: Number of values.
        mean: Their mean, NaN for none.
        half_width: Half the width of the interval, NaN for less than two values.
        p: Probability of a mean at least this far from 0 if the true one is 0; NaN for less than two values, and for
            equal ones, whose spread is not known.
    """

    n: int
    mean: float
    half_width: float
    p: float


@dataclass
class Cell:
    """One method and one metric.

    Attributes:
        mean: Over the seeds.
        difference: To the baseline, over the seeds that both have; None for the baseline itself.
        p_holm: Of the difference, Holm-corrected over the methods.
        mark: `"best"` or `"second"` where that is significant, else `""`.
    """

    mean: Interval
    difference: Interval | None = None
    p_holm: float = math.nan
    mark: str = field(default="")


def t_interval(values: Sequence[float], folds: int | None = None) -> Interval:
    """Mean, 95 % t interval and p value.

    The variance of the mean is `s^2 / n` for independent values. Models of a cross-validation are trained on largely
    the same images, so that their values are not independent: there it is `s^2 (1 / n + 1 / (folds - 1))`, the last
    term being the number of validation images over that of training images (Nadeau and Bengio, *Inference for the
    Generalization Error*, Machine Learning 52, 2003).

    Args:
        values: (n,) results, one a seed or fold.
        folds: Number of folds of the cross-validation that they are of; None for independent values.

    Example:
        >>> interval = t_interval([1.0, 2.0, 3.0])
        >>> interval.mean, round(interval.half_width, 3), round(interval.p, 3)
        (2.0, 2.484, 0.074)
    """
    from scipy.special import stdtr, stdtrit

    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    if n < 2:
        return Interval(n, mean, math.nan, math.nan)
    shared = 0.0 if folds is None else 1 / (folds - 1)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) * (1 / n + shared))
    if error <= 1e-12 * max(map(abs, values)):  # equal but for rounding
        return Interval(n, mean, 0.0, math.nan)
    p = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return Interval(n, mean, float(stdtrit(n - 1, 1 - LEVEL / 2)) * error, p)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float], folds: int | None = None) -> Interval:
    """Interval of `values - baseline` over the seeds (or folds) that both have (paired t test).

    Args:
        values: Value by seed.
        baseline: Value by seed.
        folds: See `t_interval`.

    Example:
        >>> paired_difference({0: 3.0, 1: 5.0, 2: 9.0}, {0: 1.0, 1: 2.0}).mean
        2.5
    """
    return t_interval([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())], folds)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm, *A Simple Sequentially Rejective Multiple Test Procedure*, 1979).

    NaN stays NaN and does not count.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [math.nan] * len(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[i] = largest
    return corrected


def summarize(
    values: Mapping[str, Mapping[int, float]], baseline: str, *, rank: bool = True, folds: int | None = None
) -> dict[str, Cell]:
    """Everything that a table says of one metric.

    The best method by mean is marked if it is better than every other, then the runner-up if it is better than every
    method but the best: paired t tests on the common seeds, 5 %, Holm-corrected.

    Args:
        values: For each method its value by seed; NaN values count as missing.
        baseline: Method that the others are compared with.
        rank: Whether larger is better; False for a metric that is not ranked.
        folds: See `t_interval`.

    Returns:
        A cell for each method, in the order of `values`.
    """
    finite = {
        method: {seed: value for seed, value in by_seed.items() if not math.isnan(value)}
        for method, by_seed in values.items()
    }
    cells = {method: Cell(t_interval(list(by_seed.values()), folds)) for method, by_seed in finite.items()}
    others = [method for method in finite if method != baseline]
    if baseline in finite:
        differences = [paired_difference(finite[method], finite[baseline], folds) for method in others]
        corrected = holm([difference.p for difference in differences])
        for method, difference, p in zip(others, differences, corrected, strict=True):
            cells[method].difference, cells[method].p_holm = difference, p
    if rank:
        ranked = sorted((m for m in finite if finite[m]), key=lambda method: -cells[method].mean.mean)
        for place, mark in enumerate(("best", "second")):
            below = ranked[place + 1 :]
            if not below or not _is_above(finite[ranked[place]], [finite[method] for method in below], folds):
                break
            cells[ranked[place]].mark = mark
    return cells


def _is_above(values: Mapping[int, float], others: Sequence[Mapping[int, float]], folds: int | None) -> bool:
    differences = [paired_difference(values, other, folds) for other in others]
    corrected = holm([difference.p for difference in differences])
    # NaN, a difference that cannot be tested, is not a proof.
    return all(d.mean > 0 and p < LEVEL for d, p in zip(differences, corrected, strict=True))
