"""Boundary IoU against erosion by scipy, class by class."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from aucseg.metrics.boundary_iou import boundary_overlap, boundary_region, boundary_width


def band(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """A mask without what erosion leaves of it; outside of the image there is nothing."""
    square = np.ones((3,) * mask.ndim, bool)
    eroded: NDArray[np.bool_] = ndimage.binary_erosion(mask, square, iterations=width, border_value=0)
    return mask & ~eroded


def labels(seed: int, shape: tuple[int, ...], num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blobs as truth, and the truth moved and disturbed as prediction."""
    rng = np.random.default_rng(seed)
    noise = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 2) for _ in range(num_classes)])
    target = noise.argmax(0)
    predicted = np.roll(target, 1, axis=-1)
    predicted[rng.random(shape) < 0.05] = rng.integers(num_classes)
    target[rng.random(shape) < 0.1] = 255
    return torch.from_numpy(predicted), torch.from_numpy(target)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 14), min_size=1, max_size=3),
    st.integers(1, 6),
)
def test_region_is_the_mask_without_its_erosion(seed: int, shape: list[int], width: int) -> None:
    target = np.random.default_rng(seed).integers(0, 3, (2, *shape)) // 2
    region = boundary_region(torch.from_numpy(target), width).numpy()
    for image, found in zip(target, region, strict=True):
        expected = np.zeros(image.shape, bool)
        for label in np.unique(image):
            expected |= band(image == label, width)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("shape", "width"), [((40, 31), None), ((40, 31), 3), ((12, 14, 9), 1)])
def test_overlap_equals_bands_of_each_class(shape: tuple[int, ...], width: int | None) -> None:
    pairs = [labels(seed, shape, 4) for seed in range(3)]
    predicted, target = (torch.stack(part) for part in zip(*pairs, strict=True))
    counts = boundary_overlap(predicted, target, 4, width=width).numpy()
    reach = boundary_width(shape) if width is None else width
    for class_id in range(4):
        sums = np.zeros(2, int)
        for p, t in pairs:
            counted = t.numpy() != 255
            bands = [band((part.numpy() == class_id) & counted, reach) for part in (p, t)]
            sums += [(bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum()]
        np.testing.assert_array_equal(counts[:, class_id], sums)


def test_a_right_prediction_has_no_error_at_ignored_pixels() -> None:
    predicted, target = labels(0, (30, 30), 3)
    right = torch.where(target == 255, predicted, target)
    intersection, union = boundary_overlap(right[None], target[None], 3)
    torch.testing.assert_close(intersection, union)


def test_width_is_a_share_of_the_diagonal() -> None:
    # As in the code of the paper: int(round(0.02 * sqrt(h^2 + w^2))), at least 1.
    assert [boundary_width(size) for size in ((480, 640), (333, 500), (10, 10))] == [16, 12, 1]


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        boundary_region(torch.zeros(1, 3, 3, dtype=torch.long), 0)
    with pytest.raises(ValueError, match="expected"):
        boundary_overlap(torch.zeros(1, 3, 3, dtype=torch.long), torch.zeros(1, 3, 4, dtype=torch.long), 2)
    with pytest.raises(ValueError, match=r"predicted holds label 2: expected 0\.\.1"):
        boundary_overlap(torch.full((1, 3, 3), 2), torch.zeros(1, 3, 3, dtype=torch.long), 2)
    with pytest.raises(TypeError, match="predicted must hold integer"):
        boundary_overlap(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3, dtype=torch.long), 2)
