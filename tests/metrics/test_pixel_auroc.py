"""PixelAUROC against scikit-learn and against the comparison of every pair of pixels."""

import pickle
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor
from torchmetrics import MetricCollection

from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision
from aucseg.metrics.pixel_metric import PixelMetric
from tests.metrics.samples import ROUNDING, sample


def pairwise_auc(scores: np.ndarray, target: np.ndarray, num_classes: int) -> np.ndarray:
    """AUC of channel c for positives c and negatives a from all pairs of pixels: [c, a], NaN where undefined."""
    aucs = np.full((num_classes, num_classes), np.nan)
    one_hot = (target[:, None] == np.arange(num_classes)).astype(np.float64)
    counts = one_hot.sum(0)
    for c in np.unique(target):
        positives = scores[target == c, c]
        wins = (positives[:, None] > scores[:, c]).mean(0) + 0.5 * (positives[:, None] == scores[:, c]).mean(0)
        with np.errstate(invalid="ignore"):
            aucs[c] = wins @ one_hot / counts
        aucs[c, c] = np.nan
    return aucs


@pytest.mark.parametrize("average", ["ovo", "ovr"])
@pytest.mark.parametrize(("spread", "signal"), [(0.05, 0.0), (1.0, 0.0), (1.0, 1.0), (3.0, 4.0)])
def test_six_classes_equal_sklearn(average: Literal["ovo", "ovr"], spread: float, signal: float) -> None:
    logits, target = sample(6, 3000, spread, signal)
    metric = PixelAUROC(6, average=average)
    for part in range(0, 3000, 1000):
        metric.update(logits[part : part + 1000], target[part : part + 1000])
    result = metric.details()
    scores = logits.softmax(1).double()
    expected = roc_auc_score(target, (scores / scores.sum(1, keepdim=True)).numpy(), multi_class=average)
    assert 0 < 2 * result["error_bound"] < 1e-2
    assert abs(result["auroc"].item() - expected) <= result["error_bound"].item() + ROUNDING


@pytest.mark.parametrize(("spread", "signal"), [(0.1, 0.0), (1.0, 1.0), (5.0, 10.0)])
def test_150_classes_are_within_the_bound(spread: float, signal: float) -> None:
    logits, target = sample(150, 6000, spread, signal)
    metric = PixelAUROC(150)
    metric.update(logits, target)
    result = metric.details()
    pairs = pairwise_auc(logits.softmax(1).numpy(), target.numpy(), 150)
    assert 0 < 2 * result["error_bound"] < 1e-2
    assert abs(result["auroc"].item() - np.nanmean(pairs)) <= result["error_bound"].item() + ROUNDING
    error = np.abs(result["per_class"].numpy() - np.nanmean(pairs, axis=1))
    assert (error <= result["per_class_error_bound"].numpy() + ROUNDING).all()


def test_state_of_150_classes_fits_in_200_mb() -> None:
    metric = PixelAUROC(150)
    assert metric.bins >= 512
    defaults = [default for default in metric._defaults.values() if isinstance(default, Tensor)]
    assert metric.histogram.nbytes + sum(default.untyped_storage().nbytes() for default in defaults) < 200e6
    assert len(defaults) == 2
    assert PixelAUROC(150, average="ovr").histogram.nbytes < 20e6


def test_one_against_the_rest_of_150_classes_equals_sklearn() -> None:
    logits, target = sample(150, 3000)
    metric = PixelAUROC(150, average="ovr")
    metric.update(logits, target)
    result = metric.details()
    scores = logits.softmax(1).numpy()
    expected = [roc_auc_score(target == c, scores[:, c]) for c in range(150)]
    error = np.abs(result["per_class"].numpy() - expected)
    assert (error <= result["per_class_error_bound"].numpy() + ROUNDING).all()
    assert result["per_class_error_bound"].max() < 1e-2


def test_pairwise_oracle_equals_sklearn() -> None:
    logits, target = sample(5, 400)
    scores = logits.softmax(1).numpy()
    pairs = pairwise_auc(scores, target.numpy(), 5)
    for c, a in ((0, 3), (4, 1)):
        both = (target == c) | (target == a)
        np.testing.assert_allclose(pairs[c, a], roc_auc_score(target[both] == c, scores[both.numpy(), c]))


@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "identity"])
def test_score_functions(scores: Literal["softmax", "sigmoid", "identity"]) -> None:
    logits, target = sample(4, 800, spread=2)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax": lambda x: x.softmax(1),
        "sigmoid": torch.sigmoid,
        "identity": lambda x: x,
    }
    given_scores = logits.sigmoid() if scores == "identity" else logits
    metric = PixelAUROC(4, scores=scores)
    metric.update(given_scores, target)
    expected = np.nanmean(pairwise_auc(functions[scores](given_scores).numpy(), target.numpy(), 4))
    result = metric.details()
    assert abs(result["auroc"].item() - expected) <= result["error_bound"].item() + ROUNDING
    assert result["error_bound"] < 1e-2


def test_saturated_scores_are_ties() -> None:
    """Scores of exactly 0 and 1 are counted, as ties where they tie."""
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    target = torch.tensor([0, 0, 1, 1])
    metric = PixelAUROC(2, scores="identity")
    metric.update(scores, target)
    result = metric.details()
    np.testing.assert_allclose(result["per_class"].numpy(), [0.75, 0.75])
    assert metric.histogram.sum() == 8


@pytest.mark.parametrize("average", ["ovo", "ovr"])
def test_absent_classes_are_left_out(average: Literal["ovo", "ovr"]) -> None:
    logits, target = sample(6, 500)
    target = torch.where(target >= 4, 255, target)
    metric = PixelAUROC(6, average=average)
    metric.update(logits, target)
    result = metric.details()
    present = PixelAUROC(6, average=average)
    present.update(logits[target != 255], target[target != 255])
    torch.testing.assert_close(result, present.details(), equal_nan=True)
    assert result["per_class"].isnan().tolist() == [False] * 4 + [True] * 2
    torch.testing.assert_close(result["auroc"], result["per_class"][:4].mean())


@pytest.mark.parametrize("average", ["ovo", "ovr"])
@pytest.mark.parametrize("label", [2, 255])
def test_fewer_than_two_classes_are_nan(average: Literal["ovo", "ovr"], label: int) -> None:
    metric = PixelAUROC(3, average=average)
    metric.update(torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), label))
    assert all(value.isnan().all() for value in metric.details().values())


def test_low_resolution_logits_are_upsampled() -> None:
    logits = torch.randn(2, 5, 4, 6)
    target = torch.randint(5, (2, 13, 24))
    low, full = PixelAUROC(5), PixelAUROC(5)
    low.update(logits, target)
    full.update(F.interpolate(logits, size=(13, 24), mode="bilinear", align_corners=False), target)
    torch.testing.assert_close(low.details()["per_class"], full.details()["per_class"], atol=1e-4, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 300))
def test_invariances(seed: int, cut: int) -> None:
    """Splitting into batches, permuting pixels and adding ignored pixels change nothing."""
    logits, target = sample(4, 300, spread=3, seed=seed)
    whole, parts = PixelAUROC(4, bins=64), PixelAUROC(4, bins=64)
    whole.update(logits, target)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(seed))
    for part in (order[:cut], order[cut:]):
        parts.update(logits[part], target[part])
    parts.update(logits[:cut], torch.full((cut,), 255))
    assert torch.equal(whole.histogram, parts.histogram)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 200), st.floats(0.01, 30))
def test_bound_holds_for_any_bins_and_scale(seed: int, bins: int, spread: float) -> None:
    logits, target = sample(3, 200, spread=spread, seed=seed)
    metric = PixelAUROC(3, bins=bins)
    metric.update(logits, target)
    result = metric.details()
    expected = np.nanmean(pairwise_auc(logits.softmax(1).numpy(), target.numpy(), 3))
    assert abs(result["auroc"].item() - expected) <= result["error_bound"].item() + ROUNDING


@pytest.mark.parametrize("average", ["ovo", "ovr"])
def test_roc_curve(average: Literal["ovo", "ovr"]) -> None:
    logits, target = sample(3, 500)
    metric = PixelAUROC(3, average=average)
    metric.update(logits, target)
    false_rate, true_rate = metric.roc_curve(1)
    expected_false, expected_true, _ = roc_curve(target == 1, logits.softmax(1)[:, 1])
    np.testing.assert_allclose(
        np.interp([0.1, 0.5, 0.9], false_rate, true_rate),
        np.interp([0.1, 0.5, 0.9], expected_false, expected_true),
        atol=0.02,
    )
    assert false_rate[[0, -1]].tolist() == true_rate[[0, -1]].tolist() == [0, 1]
    with pytest.raises(ValueError, match="class id 3"):
        metric.roc_curve(3)


def test_clone_pickle_forward_and_collection() -> None:
    logits, target = sample(4, 300)
    metric = PixelAUROC(4)
    batch_value = metric(logits, target)
    copies: list[PixelAUROC] = [metric.clone(), pickle.loads(pickle.dumps(metric))]  # type: ignore[list-item]
    for copy in copies:
        torch.testing.assert_close(copy.compute(), batch_value)
        copy.reset()
        assert copy.histogram.sum() == 0
        copy.update(logits, target)
        assert torch.equal(copy.histogram, metric.histogram)
    # States are shared between metrics whose first values agree: here all are zero at first, and yet none must be
    # shared.
    collection = MetricCollection(
        {
            "iou": GroupedMeanIoU(2),
            "ovo": PixelAUROC(2),
            "ovr": PixelAUROC(2, average="ovr"),
            "sigmoid": PixelAUROC(2, scores="sigmoid"),
            "ap": PixelAveragePrecision(2),
        }
    )
    collection.update(torch.randn(3, 2), torch.full((3,), 255))
    logits, target = sample(2, 300)
    collection.update(logits, target)
    result = collection.compute()
    for name, alone in (("ovo", PixelAUROC(2)), ("sigmoid", PixelAUROC(2, scores="sigmoid"))):
        alone.update(logits, target)
        torch.testing.assert_close(result[name], alone.compute())


def test_a_metric_that_is_moved_keeps_one_copy_of_its_state() -> None:
    metric = PixelAUROC(19)
    for moved in (metric.to("meta"), PixelAUROC(19).float(), pickle.loads(pickle.dumps(PixelAUROC(19))).to("meta")):
        (default,) = [value for name, value in moved._defaults.items() if "histogram" in name]
        assert isinstance(default, Tensor)
        assert default.untyped_storage().nbytes() == 8
        assert default.shape == moved.histogram.shape == (19, 19, 4096)
    logits, target = sample(4, 300)
    metric = PixelAUROC(4)
    metric.to("cpu").float()
    for _ in range(2):
        metric.reset()
        metric.update(logits, target)
    assert metric.histogram.sum() == 4 * 300


SETTINGS: list[Callable[[], PixelMetric]] = [
    lambda: GroupedMeanIoU(3),
    lambda: GroupedMeanIoU(3, ignore_index=0),
    lambda: GroupedMeanIoU(3, ignore_index=-100),
    lambda: GroupedMeanIoU(3, {"tail": [2]}, ignore_index=2),
    *(
        partial(PixelAUROC, 3, average, scores, ignore_index=ignored)
        for average in ("ovo", "ovr")
        for scores in ("softmax", "sigmoid")
        for ignored in (0, 2, 255)
    ),
    lambda: PixelAUROC(3, bins=64),
    lambda: PixelAveragePrecision(3),
    lambda: PixelAveragePrecision(3, ignore_index=1),
    lambda: PixelAveragePrecision(3, scores="sigmoid"),
]


@pytest.mark.parametrize("first", [255, 0, 1])
def test_a_collection_gives_what_each_metric_gives_alone(first: int) -> None:
    """Whatever the first batch makes equal: here it is of one class, or of ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    collection = MetricCollection({str(number): make() for number, make in enumerate(SETTINGS)})
    alone = [make() for make in SETTINGS]
    batches = [
        (torch.randn(40, 3, generator=generator), torch.full((40,), 1 if first == 0 else first)),
        (torch.randn(40, 3, generator=generator), torch.randint(3, (40,), generator=generator)),
    ]
    if first == 255:  # some would refuse it
        batches = batches[1:]
    for logits, target in batches:
        collection.update(logits, target)
        for metric in alone:
            metric.update(logits, target)
    result = collection.compute()
    for number, metric in enumerate(alone):
        found = collection[str(number)].details()  # type: ignore[operator, unused-ignore]
        torch.testing.assert_close(found, metric.details(), rtol=0, atol=0, equal_nan=True, msg=str(number))
        alone_value = metric.compute()
        values = alone_value if isinstance(alone_value, dict) else {"": alone_value}
        for name, expected in values.items():
            key = f"{number}_{name}".removesuffix("_")
            torch.testing.assert_close(result[key], expected, rtol=0, atol=0, equal_nan=True, msg=key)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "identity"])
@pytest.mark.parametrize("average", ["ovo", "ovr"])
def test_one_logit_is_two_classes(scores: Literal["softmax", "sigmoid", "identity"], average: str) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 12, 10, generator=generator) < 0.2
    logit = (torch.randn(2, 1, 12, 10, generator=generator) + 2 * target.unsqueeze(1)).clamp(-8, 8)
    score = logit.sigmoid()
    metric = PixelAUROC(2, average=average, scores=scores)  # type: ignore[arg-type]
    metric.update(score if scores == "identity" else logit, target)
    result = metric.details()
    expected = roc_auc_score(target.flatten(), score.flatten())
    assert (result["per_class"] - expected).abs().max() <= result["per_class_error_bound"].max() + ROUNDING
    precision = PixelAveragePrecision(2, scores=scores)
    precision.update(score if scores == "identity" else logit, target)
    found = precision.details()
    for class_id, (truth, values) in enumerate(((~target, 1 - score), (target, score))):
        expected = average_precision_score(truth.flatten(), values.flatten())
        bound = found["per_class_error_bound"][class_id].item() + ROUNDING
        assert abs(found["per_class"][class_id].item() - expected) <= bound


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int8, torch.int64])
def test_integer_types(dtype: torch.dtype) -> None:
    logits, target = sample(4, 300)
    plain, narrow = PixelAUROC(4, ignore_index=-100), PixelAUROC(4, ignore_index=-100)
    plain.update(logits, target)
    narrow.update(logits, target.to(dtype))
    assert torch.equal(plain.histogram, narrow.histogram)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"average": "macro"}, "average must be"),
        ({"scores": "logit"}, "scores must be"),
        ({"bins": 1}, "bins must be"),
    ],
)
def test_bad_options(arguments: dict[str, object], message: str) -> None:
    make: Callable[..., PixelAUROC] = PixelAUROC
    with pytest.raises(ValueError, match=message):
        make(3, **arguments)


def test_bad_input() -> None:
    target = torch.zeros(2, dtype=torch.long)
    metric = PixelAUROC(3, scores="identity")
    with pytest.raises(ValueError, match=r"score 1.5 at \(0, 2, 1\)"):
        metric.update(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.5]]), target)
    with pytest.raises(ValueError, match="score nan"):
        metric.update(torch.full((2, 3), torch.nan), target)
    with pytest.raises(TypeError, match="floating point"):
        metric.update(torch.zeros(2, 3, dtype=torch.long), target)
    assert metric.histogram.sum() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_equals_cpu() -> None:
    logits, target = sample(6, 3000)
    on_cpu, on_gpu = PixelAUROC(6), PixelAUROC(6).to("cuda")
    on_cpu.update(logits, target)
    on_gpu.update(logits.cuda(), target.cuda())
    difference = (on_cpu.details()["auroc"] - on_gpu.details()["auroc"].cpu()).abs()
    assert difference < 1e-5
