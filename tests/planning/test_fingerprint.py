import numpy as np
import pytest
import scipy.ndimage

from aucseg.datasets.counting import scan_mask
from aucseg.planning.fingerprint import ImageSizes, count_objects


def test_objects_without_holes_are_counted_as_by_their_components() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.zeros((60, 80), bool)
        for y, x in rng.integers(0, 50, (6, 2)):
            mask[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = True
        filled = scipy.ndimage.binary_fill_holes(mask)
        # Holes of diagonal neighbours are filled as well: with four neighbours the background has eight.
        holes = scipy.ndimage.label(~filled, np.ones((3, 3)))[1] - 1
        assert count_objects(filled) == max(1, scipy.ndimage.label(filled)[1] - max(0, holes))
    assert count_objects(np.zeros((4, 4), bool)) == 1


@pytest.mark.parametrize(("num_marks", "area"), [(1, 100), (4, 25)])
def test_a_class_of_many_small_objects_is_not_taken_for_a_large_one(num_marks: int, area: int) -> None:
    side = round(area**0.5)
    masks = []
    sizes = ImageSizes()
    for index in range(10):
        mask = np.zeros((200, 300), np.uint8)
        for mark in range(num_marks):
            mask[50 : 50 + side, 60 * mark : 60 * mark + side] = 1
        masks.append(mask)
        sizes.add(scan_mask(mask), index)
    assert sizes.smallest_share([1]) == pytest.approx(100 / 60000)
    assert sizes.smallest_share([1], masks.__getitem__) == pytest.approx(area / 60000)
    assert sizes.smallest_share([2], masks.__getitem__) is None
