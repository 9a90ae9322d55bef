"""class_weights against the formulas written out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aucseg.losses.build import build_loss
from aucseg.losses.class_weights import WeightRule, check_class_counts, class_weights
from aucseg.statistics.class_statistics import ClassStatistics

COUNTS = [9000.0, 800.0, 150.0, 50.0]


def test_inverse() -> None:
    np.testing.assert_allclose(class_weights(COUNTS, "inverse"), [2500 / n for n in COUNTS], rtol=1e-6)
    np.testing.assert_allclose(
        class_weights(COUNTS, "inverse", power=0.5), [(2500 / n) ** 0.5 for n in COUNTS], rtol=1e-6
    )


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_effective_number(beta: float) -> None:
    raw = np.array([(1 - beta) / (1 - beta**n) for n in COUNTS])
    np.testing.assert_allclose(class_weights(COUNTS, "effective", beta=beta), raw * 4 / raw.sum(), rtol=1e-6)


def test_effective_number_by_default_levels_out_above_the_median() -> None:
    weights = class_weights([1e9, 1e8, 1e6, 1e3, 1e2], "effective")
    assert weights[0] == pytest.approx(weights[1].item())
    assert (weights[4] / weights[3]).item() == pytest.approx(10, rel=1e-2)


def test_median_frequency() -> None:
    np.testing.assert_allclose(class_weights(COUNTS, "median"), [475 / n for n in COUNTS], rtol=1e-6)
    pixels = [10_000.0, 10_000.0, 5_000.0, 1_000.0]
    frequency = np.array(COUNTS) / pixels
    weights = class_weights(COUNTS, "median", image_pixels=pixels)
    np.testing.assert_allclose(weights, np.median(frequency) / frequency, rtol=1e-6)


@pytest.mark.parametrize("rule", ["inverse", "effective", "median", "enet"])
def test_class_statistics_are_taken_as_they_are(rule: WeightRule) -> None:
    statistics = ClassStatistics(4)
    statistics.update(torch.tensor([[0, 0, 0, 0], [0, 0, 1, 255]]))
    statistics.update(torch.tensor([[0, 0], [2, 2]]))
    # Labelled pixels of the images with the class, counted by hand; class 3 never occurs.
    if rule == "median":
        median = torch.tensor([1 / 7, 1 / 7, 8 / 11, 1 / 2]).double().quantile(0.5)
        expected = (median / torch.tensor([8 / 11, 1 / 7, 2 / 4, 1 / 7])).float()
    else:
        expected = class_weights([8, 1, 2, 0], rule)
    torch.testing.assert_close(class_weights(statistics, rule), expected)


def test_the_public_name_is_the_function_whatever_was_imported_before() -> None:
    import aucseg

    assert aucseg.class_weights is class_weights


def test_enet() -> None:
    expected = [1 / np.log(1.02 + n / 10_000) for n in COUNTS]
    np.testing.assert_allclose(class_weights(COUNTS, "enet"), expected, rtol=1e-6)


@pytest.mark.parametrize("rule", ["inverse", "effective", "median", "enet"])
def test_absent_classes_are_as_rare_as_the_rarest(rule: WeightRule) -> None:
    weights = class_weights([0, 500, 20, 0], rule)
    assert weights[0] == weights[2] == weights[3] > weights[1] > 0


@given(
    st.lists(st.integers(1, 10**12), min_size=2, max_size=20),
    st.sampled_from(["inverse", "effective", "median", "enet"]),
)
def test_rarer_classes_never_weigh_less(counts: list[int], rule: WeightRule) -> None:
    weights = class_weights(counts, rule)
    assert (weights > 0).all()
    assert weights.isfinite().all()
    ordered = weights[torch.tensor(counts).argsort()]
    assert (ordered[1:] <= ordered[:-1] * (1 + 1e-6)).all()


def test_errors() -> None:
    weigh: Callable[..., object] = class_weights
    for counts, options, message in (
        ([1.0, -2.0], {}, "that of class 1 is -2"),
        ([1.0, float("nan")], {}, "that of class 1 is nan"),
        ([0.0, 0.0], {}, "all zero"),
        ([[1.0, 2.0]], {}, "one count for each"),
        ([5.0], {}, "at least 2 classes"),
        (COUNTS, {"rule": "sqrt"}, "rule must be one of inverse, effective, median, enet"),
        (COUNTS, {"power": "abc"}, "power must be a finite number, got 'abc'"),
        (COUNTS, {"power": None}, "power must be"),
        (
            COUNTS,
            {"power": -0.25},
            "power must be at least 0, got -0.25",
        ),
        (COUNTS, {"power": float("nan")}, "power must be"),
        (COUNTS, {"power": 1000}, "power 1000 makes a weight that float32 does not hold"),
        (COUNTS, {"rule": "effective", "beta": 1.0}, "beta"),
        ([0.9, 0.1], {"rule": "effective"}, "not shares"),
        (COUNTS, {"rule": "enet", "offset": 1.0}, "offset"),
        (COUNTS, {"rule": "median", "image_pixels": [1.0, 2.0]}, "2 classes, but counts has 4"),
        (
            COUNTS,
            {"rule": "median", "power": 0.25},
            "power 0.25 goes with the rule 'inverse', but",
        ),
        (COUNTS, {"beta": 0.9}, "beta 0.9 goes with the rule 'effective'"),
    ):
        with pytest.raises(ValueError, match=message):
            weigh(counts, **{"rule": "inverse", **options})


def test_numbers_of_numpy_are_numbers() -> None:
    power: Any = np.float32(0.5)
    weights = class_weights(COUNTS, "inverse", power=power)
    torch.testing.assert_close(weights, class_weights(COUNTS, "inverse", power=0.5))


def test_statistics_are_not_taken_for_counts() -> None:
    counts: Any = ClassStatistics(3)
    with pytest.raises(ValueError, match="give the pixel_counts of the statistics"):
        build_loss("la", counts)


def test_counts_are_not_changed() -> None:
    counts = torch.tensor([0.0, 5.0], dtype=torch.float64)
    check_class_counts(counts)
    assert counts.tolist() == [0, 5]
