from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from aucseg.datasets.counting import count_ids, scan_image, scan_mask, unpack_cells

# Blocks of equal labels (runs), as in real masks, and noise; both ways of counting are met.
masks = st.builds(
    lambda block, repeat: np.repeat(np.repeat(block, repeat, 0), repeat, 1),
    arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]),
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.integers(0, 255),
    ),
    st.integers(1, 20),
)


@settings(max_examples=50, deadline=None)
@given(masks)
def test_counts_are_those_of_unique(mask: np.ndarray[Any, Any]) -> None:
    ids, counts = count_ids(mask)
    expected_ids, expected_counts = np.unique(mask, return_counts=True)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(counts, expected_counts)
    assert ids.dtype == counts.dtype == np.int64


def test_nothing_to_count() -> None:
    ids, counts = count_ids(np.zeros((0, 5), np.uint8))
    assert len(ids) == len(counts) == 0


def test_negative_and_large_ids() -> None:
    ids, counts = count_ids(np.array([[-1, 70000, -1]]))
    assert (ids.tolist(), counts.tolist()) == ([-1, 70000], [2, 1])


@settings(max_examples=50, deadline=None)
@given(masks)
def test_small_masks_show_every_cell(mask: np.ndarray[Any, Any]) -> None:
    scan = scan_mask(mask)
    if max(mask.shape) > 128:
        return
    cells = unpack_cells(scan.cells)
    for class_cells, raw in zip(cells, scan.ids, strict=True):
        expected = np.zeros((8, 8), bool)
        for y, x in np.argwhere(mask == raw):
            expected[y * 8 // mask.shape[0], x * 8 // mask.shape[1]] = True
        np.testing.assert_array_equal(class_cells, expected)


@pytest.mark.parametrize("shape", [(1024, 2048), (129, 700), (8, 8), (1, 1)])
def test_one_class_fills_its_quarter(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 2 :, shape[1] // 2 :] = 200
    scan = scan_mask(mask)
    assert scan.counts.sum() == mask.size
    cells = unpack_cells(scan.cells)[scan.ids.tolist().index(200)]
    # The middle of an odd side lies inside a cell; the lower right 3 x 3 are the class's for certain, the upper left
    # are not.
    if min(shape) >= 8:
        assert cells[5:, 5:].all()
        assert not cells[:4, :4].any() or shape[0] % 8


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 256), st.sampled_from(["L", "P"]))
def test_an_image_is_scanned_like_its_array(height: int, width: int, num_ids: int, mode: str) -> None:
    mask = np.random.default_rng(height * width).integers(0, num_ids, (height, width), dtype=np.uint8)
    image = Image.fromarray(mask)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    found, expected = scan_image(image), scan_mask(mask)
    for name in ("ids", "counts", "cells"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert (found.height, found.width) == (height, width)
