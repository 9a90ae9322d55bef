import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aucseg.memory_bank.components import connected_components, expand, horizontal_runs


def flood_fill(mask: Tensor) -> Tensor:
    """For each pixel of (H, W) the flat index of the first pixel of its 8-connected component, by the definition."""
    height, width = mask.shape
    first = torch.full((height * width,), -1)
    for pixel in range(height * width):
        if first[pixel] >= 0:
            continue
        first[pixel] = pixel
        pending = [pixel]
        while pending:
            y, x = divmod(pending.pop(), width)
            for other_y in range(max(y - 1, 0), min(y + 2, height)):
                for other_x in range(max(x - 1, 0), min(x + 2, width)):
                    other = other_y * width + other_x
                    if first[other] < 0 and mask[other_y, other_x] == mask[y, x]:
                        first[other] = pixel
                        pending.append(other)
    return first.view(height, width)


def components_per_pixel(masks: Tensor) -> Tensor:
    """`connected_components` on the pixels (B, H, W): flat index of the first pixel of each one's component."""
    start, length, label = horizontal_runs(masks)
    root = connected_components(start, length, label, masks.shape[1:])
    run, column = expand(length)
    painted = np.full(masks.numel(), -1)
    painted[start[run] + column] = start[root[run]] % masks[0].numel()
    return torch.from_numpy(painted).view(masks.shape)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_equals_flood_fill(seed: int, num_images: int, height: int, width: int, num_labels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(num_labels, (num_images, height, width), generator=generator, dtype=torch.uint8)
    expected = torch.stack([flood_fill(mask) for mask in masks])
    assert torch.equal(components_per_pixel(masks), expected)


@given(st.integers(0, 2**32 - 1), st.integers(1, 2), st.tuples(*[st.integers(1, 7)] * 3), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_volumes_equal_scipy(seed: int, num_volumes: int, size: tuple[int, int, int], num_labels: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    generator = torch.Generator().manual_seed(seed)
    volumes = torch.randint(num_labels, (num_volumes, *size), generator=generator, dtype=torch.uint8)
    found = components_per_pixel(volumes)
    for volume, components in zip(volumes.numpy(), found.numpy(), strict=True):
        for class_id in range(num_labels):
            expected, _ = ndimage.label(volume == class_id, structure=np.ones((3, 3, 3)))
            inside = expected > 0
            pairs = np.unique(np.stack([expected[inside], components[inside]]), axis=1)
            assert len(pairs[0]) == len(set(pairs[0])) == len(set(pairs[1]))  # one to one


def test_comb_and_spiral_are_single_components() -> None:
    comb = torch.zeros(1, 9, 41, dtype=torch.int64)
    comb[:, :, ::2] = 1
    comb[:, -1] = 1
    spiral = torch.zeros(1, 31, 31, dtype=torch.int64)
    y, x, dy, dx = 0, 0, 0, 1
    spiral[0, y, x] = 1
    for length in [30, 30, *(side for n in range(28, 1, -2) for side in (n, n)), 2]:
        for _ in range(length):
            y, x = y + dy, x + dx
            spiral[0, y, x] = 1
        dy, dx = dx, -dy
    for masks in (comb, spiral):
        assert len(set(components_per_pixel(masks)[masks == 1].tolist())) == 1


def test_a_subset_of_the_runs_will_do() -> None:
    masks = torch.tensor([[[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1]]])
    start, length, label = horizontal_runs(masks)
    keep = label == 1
    root = connected_components(start[keep], length[keep], label[keep], (3, 4))
    assert root.tolist() == [0, 0, 0, 3]


def test_no_runs() -> None:
    empty = np.zeros(0, dtype=np.int64)
    assert connected_components(empty, empty, empty, (4, 5)).tolist() == []
