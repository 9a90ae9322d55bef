"""PixelAveragePrecision against scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor

from aucseg.metrics import PixelAveragePrecision
from tests.metrics.samples import ROUNDING, sample


def sklearn_average_precision(scores: Tensor, target: Tensor) -> np.ndarray:
    return np.array([average_precision_score(target == c, scores[:, c]) for c in range(scores.shape[1])])


@pytest.mark.parametrize(
    ("num_classes", "spread", "signal"),
    [(6, 0.05, 0.0), (6, 1.0, 2.0), (150, 1.0, 0.0), (150, 1.0, 6.0), (150, 3.0, 9.0)],
)
def test_within_the_bounds_of_sklearn(num_classes: int, spread: float, signal: float) -> None:
    logits, target = sample(num_classes, 5000, spread, signal)
    groups = {"head": [0, 1], "tail": list(range(num_classes // 2, num_classes))}
    metric = PixelAveragePrecision(num_classes, groups)
    for part in range(0, 5000, 1250):
        metric.update(logits[part : part + 1250], target[part : part + 1250])
    result = metric.details()
    expected = sklearn_average_precision(logits.softmax(1), target)
    bound = result["per_class_error_bound"].numpy()
    assert (np.abs(result["per_class"].numpy() - expected) <= bound + ROUNDING).all()
    assert abs(result["map"].item() - expected.mean()) <= result["error_bound"].item() + ROUNDING
    for name, class_ids in groups.items():
        assert abs(result[name].item() - expected[class_ids].mean()) <= bound[class_ids].mean() + ROUNDING
    assert 0 < 2 * result["error_bound"] < 1e-2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 100), st.floats(0.01, 30), st.booleans())
def test_bound_holds_for_any_bins_scale_and_ties(seed: int, bins: int, spread: float, ties: bool) -> None:
    logits, target = sample(3, 150, spread=spread, seed=seed)
    scores = logits.softmax(1)
    if ties:  # scikit-learn gives all tied positives the precision at the end of the tie
        scores = (scores * 8).round() / 8
    metric = PixelAveragePrecision(3, scores="identity", bins=bins)
    metric.update(scores, target)
    result = metric.details()
    error = np.abs(result["per_class"].numpy() - sklearn_average_precision(scores, target))
    assert (error <= result["per_class_error_bound"].numpy() + ROUNDING).all()


def test_equal_scores_count_as_scikit_learn_counts_them() -> None:
    labels = torch.randint(3, (2000,), generator=torch.Generator().manual_seed(0))
    labels[labels == 2] = torch.where(torch.rand(int((labels == 2).sum())) < 0.05, 2, 0)
    scores = torch.zeros(2000, 3)  # one-hot scores, of which class 2 is never the highest
    scores[torch.arange(2000), torch.where(torch.arange(2000) % 5 > 0, labels.clamp(max=1), 0)] = 1
    metric = PixelAveragePrecision(3, scores="identity")
    metric.update(scores, labels)
    result = metric.details()
    expected = sklearn_average_precision(scores, labels)
    assert expected[2] < 0.05
    np.testing.assert_allclose(result["per_class"], expected, rtol=1e-6)
    assert result["per_class_error_bound"][2] > 0.9  # how they would be ranked if they were not equal


def test_many_bins_are_nearly_exact() -> None:
    logits, target = sample(4, 300)
    metric = PixelAveragePrecision(4, bins=200_000)
    metric.update(logits, target)
    result = metric.details()
    np.testing.assert_allclose(result["per_class"], sklearn_average_precision(logits.softmax(1), target), atol=2e-3)


def test_absent_classes_and_ignored_pixels() -> None:
    logits, target = sample(5, 400)
    target = torch.where(target == 3, 255, target)
    metric = PixelAveragePrecision(5, {"head": [0, 4], "tail": [3]})
    metric.update(logits, target)
    result = metric.details()
    kept = PixelAveragePrecision(5, {"head": [0, 4], "tail": [3]})
    kept.update(logits[target != 255], target[target != 255])
    torch.testing.assert_close(result, kept.details(), equal_nan=True)
    assert result["per_class"].isnan().tolist() == [False, False, False, True, False]
    assert result["tail"].isnan()
    torch.testing.assert_close(result["head"], result["per_class"][[0, 4]].mean())


def test_only_positives_is_one() -> None:
    metric = PixelAveragePrecision(2)
    metric.update(torch.randn(5, 2), torch.zeros(5, dtype=torch.long))
    result = metric.details()
    assert result["per_class"][0] == 1
    assert result["per_class"][1].isnan()


def test_reserved_group_name() -> None:
    with pytest.raises(ValueError, match="cannot be called 'map'"):
        PixelAveragePrecision(2, {"map": [0]})
