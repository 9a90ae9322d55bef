import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aucseg.inference import OffsetFit, OffsetFitter, fit_offsets
from aucseg.inference.candidate_scores import ScoreCollector
from aucseg.inference.offset_search import OffsetSearch, PenalizedMeanIoU, predict
from aucseg.metrics import GroupedMeanIoU
from tests.inference.conftest import Batch, gaussian_images, mean_iou

PRIOR = (0.6, 0.25, 0.1, 0.05)


def centered(values: tuple[float, ...]) -> list[float]:
    return [value - sum(values) / len(values) for value in values]


def test_a_known_shift_is_found(shifted_images: list[Batch]) -> None:
    fit = fit_offsets(shifted_images, 4, shrinkage=0)
    # Of logits without the shift the same offsets are best, but for the shift itself.
    unshifted = [(z - torch.tensor([0, 0, 0, -1.5]).view(1, -1, 1, 1), y) for z, y in shifted_images]
    best = fit_offsets(unshifted, 4, shrinkage=0)
    expected = [value + change for value, change in zip(centered(best.offsets), [-0.375] * 3 + [1.125], strict=True)]
    np.testing.assert_allclose(centered(fit.offsets), expected, atol=0.1)
    assert fit.accepted
    assert fit.is_exact
    assert fit.before == pytest.approx(mean_iou(shifted_images, [0] * 4, 4))
    assert fit.fitted == pytest.approx(mean_iou(shifted_images, fit.offsets, 4))
    assert fit.gain > 0.04


def test_a_batch_that_is_refused_leaves_nothing_behind() -> None:
    """It may be mended and given again; its images before the bad one must not count twice."""
    batches = gaussian_images(6, [0] * 3, prior=[0.6, 0.3, 0.1], size=12)
    batches = [
        (torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(batches[::2], batches[1::2], strict=True)
    ]
    fits = []
    for repeats in (False, True):
        fitter = OffsetFitter(3, max_scores=500)
        for logits, target in batches:
            if repeats:
                bad = logits.clone()
                bad[1, 0, 0, 0] = -math.inf
                with pytest.raises(ValueError, match="logits must be finite"):
                    fitter.update(bad, target)
            fitter.update(logits, target)
        fits.append(fitter.fit())
    assert fits[0] == fits[1]


def test_two_classes_reach_the_threshold_that_theory_says() -> None:
    """With calibrated probabilities the best threshold for the IoU J of one class is J / (1 + J): half the best F1."""
    batches = gaussian_images(60, (0.0, 0.0), prior=(0.8, 0.2), size=40)
    fit = fit_offsets(batches, 2, objective=[0, 1], shrinkage=0)
    best = fit.fitted
    threshold = best / (1 + best)
    expected = -math.log(threshold / (1 - threshold))  # logit margin at which class 1 begins
    assert fit.offsets[1] - fit.offsets[0] == pytest.approx(expected, abs=0.12)


def test_one_logit_is_two_of_which_the_first_is_zero() -> None:
    torch.manual_seed(0)
    target = torch.randint(0, 2, (6, 8, 8))
    logit = torch.randn(6, 1, 8, 8) + 2 * target[:, None] - 2
    fits = []
    for logits in (logit, torch.cat([torch.zeros_like(logit), logit], dim=1)):
        fitter = OffsetFitter(2)
        fitter.update(logits, target)
        fits.append(fitter.fit())
    assert fits[0] == fits[1]
    assert fits[0].before > 0.4
    assert min(fits[0].iou_before) > 0.2


def test_what_differs_from_image_to_image_is_not_fitted() -> None:
    """Each image has shifts of its own, so what fits some says nothing about the others."""
    accepted = [
        fit_offsets(gaussian_images(8, [0] * 4, prior=[0.25] * 4, size=12, spread_of_images=1, seed=seed), 4).accepted
        for seed in range(20)
    ]
    assert sum(accepted) <= 2


@pytest.mark.parametrize(("num_images", "brought"), [(1, 0), (2, 6), (8, 24)])
def test_a_class_of_a_handful_of_pixels_needs_more_than_one_image(num_images: int, brought: int) -> None:
    batches = gaussian_images(10, [0] * 3, prior=[0.5, 0.3, 0.2], size=16)
    batches = [(torch.cat([z, torch.full_like(z[:, :1], -8)], 1), y) for z, y in batches]
    for logits, target in batches[:num_images]:
        target[0, 0, :3] = 3
        logits[0, 3, 0, :3] = logits[0, :3, 0, :3].amax(0) - 1.5  # an offset of 1.5 brings these pixels
    offsets = torch.tensor(fit_offsets(batches, 4).offsets).view(1, -1, 1, 1)
    predicted = torch.cat([(logits + offsets).argmax(1)[0, 0, :3] for logits, _ in batches[:num_images]])
    assert int((predicted == 3).sum()) == brought


def test_the_tail_is_a_choice(shifted_images: list[Batch]) -> None:
    groups = {"head": [0, 1], "tail": [3]}
    whole = fit_offsets(shifted_images, 4)
    tail = fit_offsets(shifted_images, 4, objective="tail", groups=groups)
    assert tail.objective == "tail"
    assert tail.before == pytest.approx(whole.iou_before[3])
    assert tail.fitted >= whole.iou_after[3]
    by_hand = fit_offsets(shifted_images, 4, objective=[0, 0, 0, 5])
    assert by_hand.offsets == tail.offsets


def test_iou_before_is_that_of_the_metric(shifted_images: list[Batch]) -> None:
    metric = GroupedMeanIoU(5)
    fitter = OffsetFitter(5)
    for logits, target in shifted_images[:6]:
        target = target.clone()
        target[0, :2] = 255
        small = torch.cat([logits[..., ::2, ::2], torch.full_like(logits[:, :1, ::2, ::2], -50)], 1)
        metric.update(small, target)
        fitter.update(small, target)
    fit = fitter.fit()
    np.testing.assert_allclose(fit.iou_before, metric.details()["per_class"].numpy(), rtol=1e-6)
    assert math.isnan(fit.iou_before[4])


def small_case(seed: int, num_classes: int, num_images: int = 3) -> tuple[list[Batch], ScoreCollector]:
    generator = torch.Generator().manual_seed(seed)
    collector = ScoreCollector(num_classes, ignore_index=255, max_offset=1.0, max_scores=10**6)
    batches = []
    for _ in range(num_images):
        target = torch.randint(num_classes, (1, 3, 4), generator=generator)
        # Whole numbers of steps of 1/4, so that equal logits do occur.
        logits = torch.randint(-6, 7, (1, num_classes, 3, 4), generator=generator) / 4
        batches.append((logits, target))
        collector.update(logits, target)
    return batches, collector


@given(seed=st.integers(0, 10**6), num_classes=st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_the_search_ends_where_no_single_offset_can_be_bettered(seed: int, num_classes: int) -> None:
    """Brute force: every value of every offset, counted pixel by pixel."""
    batches, collector = small_case(seed, num_classes)
    scores = collector.scores()
    seen = scores.num_true.sum(0) > 0
    objective = PenalizedMeanIoU(seen / seen.sum(), np.zeros(num_classes))
    search = OffsetSearch(scores, objective, step=0.25, limit=4)
    steps = search.run()

    def score(trial: np.ndarray) -> float:
        return mean_iou(batches, (0.25 * trial).tolist(), num_classes)

    found = score(steps)
    assert search.value(steps) == pytest.approx(found)
    assert found >= score(np.zeros(num_classes, dtype=np.int64)) - 1e-12
    for class_id, value in itertools.product(range(num_classes), range(-4, 5)):
        trial = steps.copy()
        trial[class_id] = value
        if seen[class_id]:
            assert score(trial) <= found + 1e-12


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_the_search_comes_near_the_best_of_all_offsets(seed: int) -> None:
    batches = gaussian_images(4, (0.0, -0.5, 0.5), prior=(0.5, 0.3, 0.2), size=10, seed=seed)
    collector = ScoreCollector(3, ignore_index=255, max_offset=1.0, max_scores=10**6)
    for batch in batches:
        collector.update(*batch)
    search = OffsetSearch(collector.scores(), PenalizedMeanIoU(np.full(3, 1 / 3), np.zeros(3)), step=0.25, limit=4)
    found = search.value(search.run())
    best = max(search.value(np.array([0, *rest])) for rest in itertools.product(range(-4, 5), repeat=2))
    assert best - 0.02 <= found


@given(seed=st.integers(0, 10**6), constant=st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_a_constant_for_all_classes_changes_nothing(seed: int, constant: float) -> None:
    _, collector = small_case(seed, 3)
    scores = collector.scores()
    offsets = np.random.default_rng(seed).uniform(-0.4, 0.4, 3)
    np.testing.assert_array_equal(predict(scores, offsets), predict(scores, offsets + constant))
    search = OffsetSearch(scores, PenalizedMeanIoU(np.full(3, 1 / 3), np.array([0.1, 0.2, 0.3])), step=0.25, limit=4)
    steps = np.array([1, -1, 2])
    assert search.value(steps) == pytest.approx(search.value(steps + 2))


def test_the_order_of_the_classes_does_not_matter(shifted_images: list[Batch]) -> None:
    order = [2, 0, 3, 1]
    renamed = torch.argsort(torch.tensor(order))
    fit = fit_offsets(shifted_images, 4)
    permuted = fit_offsets([(z[:, order], renamed[y]) for z, y in shifted_images], 4)
    assert permuted.offsets == tuple(np.array(fit.offsets)[order])
    assert permuted.gain == pytest.approx(fit.gain)
    assert permuted.spread == pytest.approx(fit.spread)


def test_batches_and_single_images_are_the_same(shifted_images: list[Batch]) -> None:
    parts = [shifted_images[start : start + 4] for start in range(0, 40, 4)]
    joined = [(torch.cat([z for z, _ in part]), torch.cat([y for _, y in part])) for part in parts]
    assert fit_offsets(joined, 4) == fit_offsets(shifted_images, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(shifted_images: list[Batch], dtype: torch.dtype) -> None:
    whole = fit_offsets(shifted_images, 4)
    fit = fit_offsets([(z.to(dtype), y) for z, y in shifted_images], 4)
    np.testing.assert_allclose(fit.offsets, whole.offsets, atol=0.2)
    assert fit.gain == pytest.approx(whole.gain, abs=0.01)


def test_bounded_memory_draws_pixels_of_frequent_labels(shifted_images: list[Batch]) -> None:
    collector = ScoreCollector(4, ignore_index=255, max_offset=3.0, max_scores=20_000)
    for batch in shifted_images:
        collector.update(*batch)
        assert collector.num_scores <= 20_000
    scores = collector.scores()
    whole = np.bincount(torch.cat([y for _, y in shifted_images]).flatten(), minlength=4)
    np.testing.assert_array_equal(scores.num_true.sum(0), whole)
    assert scores.weight[0] > 1 == scores.weight[3]
    exact, drawn = fit_offsets(shifted_images, 4), fit_offsets(shifted_images, 4, max_scores=20_000)
    assert not drawn.is_exact
    np.testing.assert_allclose(drawn.offsets, exact.offsets, atol=0.35)
    assert drawn.gain == pytest.approx(exact.gain, abs=0.015)


def test_clusters_are_kept_whole(shifted_images: list[Batch]) -> None:
    fitter = OffsetFitter(4)
    for index, (logits, target) in enumerate(shifted_images):
        fitter.update(logits, target, [f"city {index % 3}"])
    fit = fitter.fit()
    assert (fit.num_images, fit.num_folds) == (3, 3)


def test_the_spread_is_the_standard_error_over_images() -> None:
    """Over many draws of the images the gain varies as the jackknife says."""
    fits: list[OffsetFit] = [
        fit_offsets(gaussian_images(12, (0, 0, -1.0), prior=(0.6, 0.3, 0.1), size=12, seed=seed), 3)
        for seed in range(25)
    ]
    quantile = 1.796  # of Student's t, 95 %, 11 degrees of freedom
    said = np.mean([fit.spread for fit in fits]) / quantile
    assert 0.5 < said / np.std([fit.gain for fit in fits]) < 2


def test_a_fit_is_plain_data(shifted_images: list[Batch]) -> None:
    fit = fit_offsets(shifted_images[:4], 4, num_folds=2)
    values = fit.as_dict()
    assert values["after"] == pytest.approx(fit.before + fit.gain)
    assert values["accepted"] is fit.accepted
    assert values["num_folds"] == 2


def test_wrong_input_is_told(shifted_images: list[Batch]) -> None:
    logits, target = shifted_images[0]
    with pytest.raises(ValueError, match="at least 2 images"):
        fit_offsets([(logits, target)], 4)
    with pytest.raises(ValueError, match="unknown objective 'tial': expected one of 'miou', 'tail'"):
        fit_offsets(shifted_images, 4, objective="tial", groups={"tail": [3]})
    with pytest.raises(ValueError, match="expected 4 weights"):
        fit_offsets(shifted_images, 4, objective=[1, 2])
    with pytest.raises(ValueError, match="has a labelled pixel"):
        fit_offsets([(torch.cat([z, z[:, :1]], 1), y) for z, y in shifted_images], 5, objective=[0, 0, 0, 0, 1])
    with pytest.raises(ValueError, match="no labelled pixel"):
        fit_offsets([(logits, torch.full_like(target, 255))], 4)
    with pytest.raises(ValueError, match="no labelled pixel"):
        fit_offsets([], 4)
    with pytest.raises(ValueError, match="must be finite"):
        OffsetFitter(4).update(logits / 0, target)
    with pytest.raises(ValueError, match=r"target holds label 7: expected 0\.\.3"):
        OffsetFitter(4).update(logits, torch.where(target == 3, 7, target))
    with pytest.raises(ValueError, match="2 clusters for a batch of 1"):
        OffsetFitter(4).update(logits, target, ["a", "b"])
    with pytest.raises(TypeError, match="floating point"):
        OffsetFitter(4).update(target[:, None].expand(-1, 4, -1, -1), target)
    for options in ({"num_folds": 1}, {"shrinkage": -1.0}, {"max_offset": 0.0}, {"max_scores": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            fit_offsets(shifted_images[:2], 4, **options)
    with pytest.raises(ValueError, match="num_classes"):
        OffsetFitter(1)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_clusters_may_be_an_array_or_a_tensor(kind: Callable[[list[int]], Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(6, 3, 8, 8, generator=generator), torch.randint(3, (6, 8, 8), generator=generator)
    fits = []
    for clusters in ([0, 0, 0, 1, 1, 1], kind([0, 0, 0, 1, 1, 1])):
        fitter = OffsetFitter(3)
        fitter.update(logits, target, clusters)
        fits.append(fitter.fit())
    assert fits[0] == fits[1]
    assert fits[0].num_images == 2


def test_images_without_a_label_prove_nothing(shifted_images: list[Batch]) -> None:
    fits = []
    for unlabelled in (0, 5):
        fitter = OffsetFitter(4)
        for logits, target in shifted_images[:3]:
            for _ in range(unlabelled):
                fitter.update(logits, torch.full_like(target, 255))
            fitter.update(logits, target)
        fits.append(fitter.fit())
    assert fits[0] == fits[1]


@pytest.mark.parametrize("ignore_index", [None, "255"])
def test_the_ignore_label_is_an_integer(ignore_index: Any) -> None:
    with pytest.raises(TypeError, match="ignore_index must be an integer"):
        OffsetFitter(3, ignore_index=ignore_index)
