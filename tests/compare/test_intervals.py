import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aucseg.compare.intervals import holm, paired_difference, summarize, t_interval

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


@given(VALUES)
def test_interval_is_that_of_scipy(values: list[float]) -> None:
    interval = t_interval(values)
    assert interval.mean == pytest.approx(np.mean(values), abs=1e-9)
    spread = np.std(values, ddof=1)
    if spread <= 1e-9 * max(map(abs, values)):
        return
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(0.95)
    assert (high - low) / 2 == pytest.approx(interval.half_width, rel=1e-7)
    assert interval.p == pytest.approx(test.pvalue, rel=1e-6, abs=1e-12)


def test_paired_difference_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(2, 1, 5), rng.normal(1, 1, 5)
    ours = paired_difference(dict(enumerate(first)), dict(enumerate(second)) | {99: 0.0})
    test = stats.ttest_rel(first, second)
    low, high = test.confidence_interval(0.95)
    assert ours.n == 5
    assert (ours.mean - ours.half_width, ours.mean + ours.half_width) == pytest.approx((low, high))
    assert ours.p == pytest.approx(test.pvalue)


def test_intervals_over_folds_are_those_of_the_corrected_resampled_t_test() -> None:
    """Nadeau and Bengio's: with 4 folds there is a validation image for three training images."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(2, 1, 4), rng.normal(1, 1, 4)
    ours = paired_difference(dict(enumerate(first)), dict(enumerate(second)), folds=4)
    difference = first - second
    error = math.sqrt((1 / 4 + 1 / 3) * np.var(difference, ddof=1))
    assert ours.mean == pytest.approx(np.mean(difference))
    assert ours.half_width == pytest.approx(stats.t.ppf(0.975, 3) * error)
    assert ours.p == pytest.approx(2 * stats.t.sf(abs(np.mean(difference)) / error, 3))
    # What is significant over independent seeds may not be over folds.
    close = {"ce": dict(enumerate([1.0, 1.1, 1.2])), "la": dict(enumerate([1.5, 1.8, 1.6]))}
    assert summarize(close, "ce")["la"].mark == "best"
    assert summarize(close, "ce", folds=3)["la"].mark == ""


def test_one_seed_has_a_mean_and_no_interval() -> None:
    one, none = t_interval([3.0]), t_interval([])
    assert (one.n, one.mean) == (1, 3.0)
    assert (none.n, math.isnan(none.mean)) == (0, True)
    assert all(math.isnan(value) for value in (one.half_width, one.p, none.half_width, none.p))


def test_equal_values_have_no_spread() -> None:
    for values in ([0.1 + 0.2, 0.3], [0.0, 0.0]):
        interval = t_interval(values)
        assert (interval.half_width, math.isnan(interval.p)) == (0.0, True)
    cells = summarize({"ce": _seeds(1.0, 2.0), "la": _seeds(11.0, 12.0)}, "ce")
    assert (cells["la"].mark, math.isnan(cells["la"].p_holm)) == ("", True)


def test_holm_by_hand() -> None:
    # Sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, each at least the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    corrected = holm([0.02, math.nan, 0.01])
    assert corrected[0] == corrected[2] == 0.02
    assert math.isnan(corrected[1])


@given(st.lists(st.floats(0, 1), max_size=10))
def test_holm_rejects_what_the_sequential_procedure_rejects(p_values: list[float]) -> None:
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if (len(p_values) - rank) * p_values[i] >= 0.05:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p < 0.05} == rejected


def _seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_only_significant_places_are_marked() -> None:
    clear = {"ce": _seeds(10.0, 10.1, 9.9), "la": _seeds(12.0, 12.2, 11.9), "aucseg": _seeds(15.0, 15.1, 14.8)}
    cells = summarize(clear, "ce")
    assert [cells[method].mark for method in clear] == ["", "second", "best"]
    assert cells["ce"].difference is None
    difference = cells["aucseg"].difference
    assert difference is not None
    assert difference.mean == pytest.approx(np.mean([5.0, 5.0, 4.9]))
    raw = [stats.ttest_rel(list(clear[m].values()), list(clear["ce"].values())).pvalue for m in ("la", "aucseg")]
    assert [cells[m].p_holm for m in ("la", "aucseg")] == pytest.approx([max(raw), 2 * min(raw)])

    close = clear | {"aucseg": _seeds(12.1, 11.9, 12.3)}
    assert [cell.mark for cell in summarize(close, "ce").values()] == ["", "", ""]


def test_one_seed_and_unranked_metrics_are_never_marked() -> None:
    assert {cell.mark for cell in summarize({"ce": _seeds(1.0), "la": _seeds(2.0)}, "ce").values()} == {""}
    values = {"ce": _seeds(1.0, 1.0), "la": _seeds(2.0, 2.1)}
    assert {cell.mark for cell in summarize(values, "ce", rank=False).values()} == {""}


def test_missing_values_and_a_missing_baseline() -> None:
    cells = summarize({"la": _seeds(1.0, math.nan, 3.0)}, "ce")
    assert (cells["la"].mean.n, cells["la"].mean.mean, cells["la"].difference) == (2, 2.0, None)
