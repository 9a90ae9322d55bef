"""IoU by image against counting by hand, and against scikit-learn image by image."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from aucseg.metrics.image_iou import image_scores, per_image_overlap


def test_overlap_in_narrow_dtypes() -> None:
    labels = torch.tensor([[0, 3, 3]], dtype=torch.uint8)
    assert per_image_overlap(labels, labels, 4, ignore_index=-253) == {0: [1, 1, 1], 3: [2, 2, 2]}  # 3 in eight bits


@given(seed=st.integers(0, 10_000), num_classes=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_overlap_equals_counting_by_hand(seed: int, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(num_classes, (7, 9), generator=generator)
    target = torch.randint(num_classes, (7, 9), generator=generator)
    target[torch.rand(7, 9, generator=generator) < 0.2] = 255
    valid = target != 255
    expected = {}
    for class_id in range(num_classes):
        intersection = int(((predicted == class_id) & (target == class_id)).sum())
        union = int((((predicted == class_id) | (target == class_id)) & valid).sum())
        if union:
            expected[class_id] = [intersection, union, int((target == class_id).sum())]
    assert per_image_overlap(predicted, target, num_classes, 255) == expected


def test_scores_equal_the_mean_of_each_image() -> None:
    generator = torch.Generator().manual_seed(0)
    overlap, means = {}, []
    for index in range(23):
        target = torch.randint(4, (8, 9), generator=generator)
        predicted = torch.where(torch.rand(8, 9, generator=generator) < index / 23, target, target.flip(0))
        if index % 2:
            target[target == 3] = 255  # predicted there, but not in the truth
        overlap[str(index)] = per_image_overlap(predicted, target, 4, 255)
        true, guess = (labels[target != 255].numpy() for labels in (target, predicted))
        means.append(jaccard_score(true, guess, labels=np.unique(true), average="macro"))
    scores = image_scores(overlap)
    np.testing.assert_allclose(scores["image_miou"], np.mean(means), rtol=1e-12)
    np.testing.assert_allclose(scores["image_worst"], np.sort(means)[:3].mean(), rtol=1e-12)


def test_images_without_a_labelled_pixel_do_not_count() -> None:
    empty = per_image_overlap(torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), 255), 3, 255)
    assert image_scores({"a": empty, "b": {0: [1, 2, 2]}})["image_miou"] == 0.5
    assert all(math.isnan(value) for value in image_scores({"a": empty}).values())


@pytest.mark.parametrize(
    ("predicted", "target", "error"),
    [([[5, 0]], [[0, 0]], ValueError), ([[-1, 0]], [[0, 0]], ValueError), ([[1.7, 0]], [[1, 0]], TypeError)],
)
def test_labels_that_are_no_classes_are_named(predicted: Any, target: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="predicted"):
        per_image_overlap(torch.tensor(predicted), torch.tensor(target), 3, 255)
    assert per_image_overlap(torch.tensor([[7, 0]]), torch.tensor([[255, 0]]), 3, 255) == {0: [1, 1, 1]}
