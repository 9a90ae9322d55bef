"""Metrics of volumes: the same as of their voxels in a row, and against scipy and scikit-learn."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score
from torch import Tensor

from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision
from aucseg.metrics.boundary_iou import boundary_overlap
from aucseg.metrics.found_objects import found_objects
from aucseg.metrics.image_iou import per_image_overlap
from aucseg.metrics.pixel_metric import PixelMetric

NUM_CLASSES = 4
SHAPE = (2, 5, 6, 7)
GROUPS = {"head": [0, 1], "tail": [2, 3]}
METRICS: list[Callable[[], PixelMetric]] = [
    partial(GroupedMeanIoU, NUM_CLASSES, GROUPS),
    partial(PixelAUROC, NUM_CLASSES, "ovo"),
    partial(PixelAUROC, NUM_CLASSES, "ovr", "sigmoid"),
    partial(PixelAveragePrecision, NUM_CLASSES, GROUPS),
]


def volumes(*small: int) -> tuple[Tensor, Tensor]:
    """Logits (2, K, *small), the classes unequal, and labels (2, D, H, W), some ignored."""
    generator = torch.Generator().manual_seed(0)
    target = torch.multinomial(torch.tensor([0.7, 0.2, 0.07, 0.03]), 420, replacement=True, generator=generator)
    target = target.view(SHAPE)
    logits = torch.randn(2, NUM_CLASSES, *(small or SHAPE[1:]), generator=generator)
    if not small:
        logits += F.one_hot(target, NUM_CLASSES).movedim(-1, 1)
    return logits, target.where(torch.rand(SHAPE, generator=generator) > 0.1, 255)


def details(metric: PixelMetric, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    metric.update(logits, target)
    return metric.details()


@pytest.mark.parametrize("metric", METRICS)
def test_a_volume_is_its_voxels_in_a_row(metric: Callable[[], PixelMetric]) -> None:
    logits, target = volumes()
    expected = details(metric(), logits, target)
    assert 0 < expected["per_class"].min() < 1
    for layout in (
        (logits.movedim(1, -1).reshape(-1, NUM_CLASSES), target.flatten()),
        (logits.flatten(3), target.flatten(2)),
        (logits.contiguous(memory_format=torch.channels_last_3d), target.to(torch.uint8)),
    ):
        torch.testing.assert_close(details(metric(), *layout), expected, equal_nan=True)


@pytest.mark.parametrize("metric", METRICS)
def test_small_logits_are_upsampled(metric: Callable[[], PixelMetric]) -> None:
    logits, target = volumes(2, 3, 5)
    upsampled = F.interpolate(logits, size=SHAPE[1:], mode="trilinear", align_corners=False)
    expected = details(metric(), upsampled.flatten(2), target.flatten(1))
    torch.testing.assert_close(details(metric(), logits, target), expected, atol=2e-3, rtol=0)


def test_scores_equal_scikit_learn() -> None:
    logits, target = volumes()
    true, guess = (labels[target != 255].numpy() for labels in (target, logits.argmax(1)))
    found = details(METRICS[0](), logits, target)
    np.testing.assert_allclose(found["per_class"], jaccard_score(true, guess, average=None), rtol=1e-6)
    np.testing.assert_allclose(found["per_class_f1"], f1_score(true, guess, average=None), rtol=1e-6)
    areas = details(METRICS[2](), logits, target)
    for class_id in range(NUM_CLASSES):
        scores = logits[:, class_id][target != 255].numpy()
        error = abs(areas["per_class"][class_id] - roc_auc_score(true == class_id, scores))
        assert error <= areas["per_class_error_bound"][class_id] + 1e-6


def test_one_logit_and_labels() -> None:
    logit, target = torch.randn(2, 1, 3, 4, 5), torch.randint(2, (2, 3, 4, 5))
    expected = details(GroupedMeanIoU(2), logit.flatten(2), target.flatten(1))
    torch.testing.assert_close(details(GroupedMeanIoU(2), logit, target), expected)
    torch.testing.assert_close(details(GroupedMeanIoU(2), (logit[:, 0] > 0).long(), target), expected)
    with pytest.raises(ValueError, match="does not fit logits"):
        GroupedMeanIoU(2).update(logit, target[:, 0])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.tuples(*[st.integers(1, 9)] * 3))
def test_found_objects_are_the_components_of_scipy(seed: int, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    target = (rng.random(shape) < 0.25).astype(np.uint8) + (rng.random(shape) < 0.1)
    predicted = np.where(rng.random(shape) < 0.5, target, 0).astype(np.uint8)
    target[rng.random(shape) < 0.05] = 255
    counts = found_objects(predicted, target, 3, side_limits=(1.5, 2.5))
    for class_id in range(3):
        expected = np.zeros((3, 2), int)
        components, number = ndimage.label(target == class_id, ndimage.generate_binary_structure(3, 3))
        for component in range(1, number + 1):
            inside = components == component
            size = int(inside.sum() >= 1.5**3) + int(inside.sum() >= 2.5**3)
            expected[size] += [2 * (predicted[inside] == class_id).sum() >= inside.sum(), 1]
        np.testing.assert_array_equal(counts[class_id], expected)


def test_corners_join_in_three_dimensions() -> None:
    target = np.zeros((2, 2, 2), np.uint8)
    target[0, 0, 0] = target[1, 1, 1] = 1
    assert found_objects(target, target, 2)[1, 0].tolist() == [1, 1]
    assert sum(found_objects(plane, plane, 2)[1, 0, 1] for plane in target) == 2


def test_overlap_of_one_volume_is_that_of_its_voxels() -> None:
    logits, target = volumes()
    predicted = logits.argmax(1)[0]
    found = per_image_overlap(predicted, target[0], NUM_CLASSES, 255)
    assert found == per_image_overlap(predicted.flatten()[None], target[0].flatten()[None], NUM_CLASSES, 255)
    assert found.keys() == {0, 1, 2, 3}


def test_what_does_not_fit_is_refused() -> None:
    labels = torch.zeros(2, 3, 4, dtype=torch.long)
    for other in (labels[0], labels[:, :2], labels[None]):
        with pytest.raises(ValueError, match="expected"):
            found_objects(labels.numpy(), other.numpy(), 2)
        with pytest.raises(ValueError, match="differ"):
            per_image_overlap(labels, other, 2, 255)
        with pytest.raises(ValueError, match="expected"):
            boundary_overlap(labels, other, 2)
    with pytest.raises(ValueError, match="of one volume"):
        found_objects(labels[None].numpy(), labels[None].numpy(), 2)
    with pytest.raises(ValueError, match="side_limits must be"):
        found_objects(labels.numpy(), labels.numpy(), 2, side_limits=(9, 3))
