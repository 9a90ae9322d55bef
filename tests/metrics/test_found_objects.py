"""Found objects against a flood fill by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aucseg.metrics.found_objects import SIDE_LIMITS, found_objects


def components(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Pixels of each 8-connected component."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while left:
        stack, pixels = [left.pop()], []
        while stack:
            y, x = stack.pop()
            pixels.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            stack += near
        found.append(pixels)
    return found


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_equals_a_flood_fill(seed: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, num_classes + 1, (9, 11))
    target[target == num_classes] = 255
    predicted = np.where(rng.random(target.shape) < 0.5, target, 0)
    counts = found_objects(predicted.astype(np.uint8), target.astype(np.uint8), num_classes)
    for class_id in range(num_classes):
        objects = components(target == class_id)
        hits = [sum(predicted[place] == class_id for place in pixels) / len(pixels) for pixels in objects]
        assert counts[class_id].tolist() == [[sum(hit >= 0.5 for hit in hits), len(objects)], [0, 0], [0, 0]]


def test_sizes_are_those_of_coco() -> None:
    target = np.zeros((120, 600), np.int64)
    sides = (31, 32, 95, 96)
    for i, side in enumerate(sides):
        target[:side, 130 * i : 130 * i + side] = 1
    predicted = target.copy()
    predicted[:17, 130:162] = 0  # more than half of the second one is missed
    assert SIDE_LIMITS == (32, 96)
    assert found_objects(predicted, target, 2)[1].tolist() == [[1, 1], [1, 2], [1, 1]]


def test_truths_and_images_without_a_pixel() -> None:
    lesion = np.zeros((4, 4), bool)
    lesion[1:3, 1:3] = True
    assert found_objects(lesion, lesion, 2)[1, 0].tolist() == [1, 1]
    assert found_objects(np.zeros((0, 4), int), np.zeros((0, 4), int), 2).sum() == 0
    with pytest.raises(TypeError, match="predicted must hold integer class ids"):
        found_objects(np.zeros((4, 4)), lesion, 2)
