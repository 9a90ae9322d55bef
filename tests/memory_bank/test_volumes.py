"""The bank on volumes against scipy's components, whole volumes that are interpolated, and simulations in numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from tests.memory_bank.small_banks import TAIL, assert_same, colours, make_bank, random_masks, stored

PROTECTED = 1


def random_volumes(generator: torch.Generator, batch_size: int, depth: int, height: int, width: int) -> Tensor:
    """Masks (B, D, H, W) uint8 of boxes of all classes, some pixels ignored; two planes alike follow each other."""
    planes = random_masks(generator, batch_size * math.ceil(depth / 2), height, width)
    return planes.view(batch_size, -1, height, width).repeat_interleave(2, dim=1)[:, :depth]


def one_box(class_id: int, *box: slice, size: tuple[int, ...] = (6, 8, 10)) -> Tensor:
    masks = torch.zeros(1, *size, dtype=torch.uint8)
    masks[0][box] = class_id
    return masks


@given(seed=st.integers(0, 2**32 - 1), size=st.tuples(*[st.integers(1, 8)] * 3), min_pixels=st.sampled_from([1, 4]))
@settings(deadline=None, max_examples=25)
def test_what_is_stored_are_the_components_of_scipy(seed: int, size: tuple[int, int, int], min_pixels: int) -> None:
    rng = np.random.default_rng(seed)
    masks = np.where(rng.random(size) < 0.2, rng.integers(3, 6, size), 0).astype(np.uint8)
    images = torch.from_numpy(rng.random((1, 2, *size)))
    bank = make_bank(min_pixels=min_pixels, max_components=2, sample_ratio=0.0)
    bank(images, torch.from_numpy(masks)[None])
    samples = bank.get_extra_state()["samples"]
    for class_id, of_class in zip(TAIL, samples, strict=True):
        components, number = ndimage.label(masks == class_id, ndimage.generate_binary_structure(3, 3))
        areas = np.bincount(components.ravel(), minlength=number + 1)[1:]
        kept = sorted((area for area in areas if area >= min_pixels), reverse=True)[:2]
        assert len(of_class) == (len(kept) > 0)
        for sample in of_class:
            start, length, component = sample["runs"].long()
            assert (sample["depth"], sample["height"], sample["width"]) == size
            pixels = torch.cat([torch.arange(s, s + n) for s, n in zip(start.tolist(), length.tolist(), strict=True)])
            assert torch.equal(sample["values"], images[0].flatten(1).T[pixels])
            owner = torch.repeat_interleave(component, length).numpy()
            found = components.ravel()[pixels.numpy()]
            assert (found > 0).all()
            assert len(set(zip(owner, found, strict=True))) == len(set(owner)) == len(kept)
            assert sorted(np.bincount(owner), reverse=True) == kept


@pytest.mark.parametrize("ratio", [0.4, 0.73, 1.0, 1.6])
@pytest.mark.parametrize("size", [(6, 9, 11), (9, 7, 16), (3, 20, 20)])
def test_canvas_resizing_equals_interpolation_of_whole_volumes(ratio: float, size: tuple[int, int, int]) -> None:
    """Oracle: resize the whole canvas (mask nearest, colours trilinear, normalized by the mask), try every offset."""
    generator = torch.Generator().manual_seed(0)
    canvas = (6, 9, 11)
    masks = (torch.rand(1, *canvas, generator=generator) < 0.6).long() * 3
    images = torch.rand(1, 2, *canvas, generator=generator, dtype=torch.float64)
    bank = make_bank(resize_ratio=ratio, max_components=1000)
    bank(images, masks)
    new_images, new_masks = bank(
        torch.zeros(1, 2, *size, dtype=torch.float64), torch.zeros(1, *size, dtype=torch.int64)
    )

    scale = min(ratio, *(side / old for side, old in zip(size, canvas, strict=True)))
    new_size = [round(side * scale) for side in canvas]
    inside = (masks == 3).double().unsqueeze(1)
    small_mask = F.interpolate(inside, size=new_size, mode="nearest-exact")[0, 0] == 1
    weight = F.interpolate(inside, size=new_size, mode="trilinear")
    small_image = (F.interpolate(images * inside, size=new_size, mode="trilinear") / weight)[0]
    assert bank.last_pastes == [(0, 3, int(small_mask.sum()))]
    matches = 0
    for corner in np.ndindex(*(side - new + 1 for side, new in zip(size, new_size, strict=True))):
        expected = torch.zeros(size, dtype=torch.bool)
        expected[tuple(slice(x, x + new) for x, new in zip(corner, new_size, strict=True))] = small_mask
        if torch.equal(new_masks[0] == 3, expected):
            matches += 1
            torch.testing.assert_close(new_images[0][:, expected], small_image[:, small_mask], rtol=1e-5, atol=1e-5)
    assert matches == 1


def test_uniform_places_one_whole_component_anywhere() -> None:
    masks = one_box(3, slice(1, 3), slice(2, 5), slice(4, 5))
    masks[0, 5, 7, 8:10] = 3
    bank = make_bank(placement="uniform")
    bank(colours(masks), masks)
    places: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    empty = torch.zeros(1000, 3, 4, 3, dtype=torch.uint8)
    for new_mask in bank(colours(empty), empty)[1]:
        voxels = (new_mask == 3).nonzero()
        low, box = voxels.amin(0), voxels.amax(0) - voxels.amin(0) + 1
        assert len(voxels) == box.prod()
        places.setdefault(tuple(box.tolist()), set()).add(tuple(low.tolist()))
    assert {box: len(corners) for box, corners in places.items()} == {(2, 3, 1): 2 * 2 * 3, (1, 1, 2): 3 * 4 * 2}


def fits_somewhere(free: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a box of this shape somewhere inside the volume has a free voxel: every place is tried."""
    corners = np.ndindex(*(side - box + 1 for side, box in zip(free.shape, shape, strict=True)))
    return any(free[tuple(slice(x, x + box) for x, box in zip(corner, shape, strict=True))].any() for corner in corners)


@pytest.mark.parametrize("kind", ["nothing", "scattered", "a third of the volumes wholly"])
@pytest.mark.parametrize("box", [(1, 1, 1), (2, 3, 2)])
def test_the_presence_target_is_reached_wherever_there_is_a_free_place(kind: str, box: tuple[int, int, int]) -> None:
    target, share, size, rng = 0.5, 0.1, (4, 6, 5), np.random.default_rng(0)
    bank = make_bank(
        presence_target=target,
        presence=[0.0, 0.0, 0.0, share, 1.0, 1.0],
        placement="uniform",
        protect_classes=[PROTECTED],
    )
    masks = one_box(3, *map(slice, box), size=size)
    bank(colours(masks), masks)
    number, batch_size, simulated, held = 1200, 60, 0.0, 0
    for _ in range(number // batch_size):
        batch = np.zeros((batch_size, *size), dtype=np.uint8)
        if kind == "scattered":
            batch[rng.random(batch.shape) < 0.95] = PROTECTED
        elif kind == "a third of the volumes wholly":
            batch[rng.random(batch_size) < 1 / 3] = PROTECTED
        batch[rng.random(batch_size) < share, -1, -1, -1] = 3
        for mask in batch:  # how likely the class is in the volume afterwards
            fits = fits_somewhere((mask != PROTECTED) & (mask != 3), box)
            simulated += 1.0 if (mask == 3).any() else fits * (target - share) / (1 - share)
        _, after = bank(colours(torch.from_numpy(batch)), torch.from_numpy(batch))
        held += int((after == 3).flatten(1).any(1).sum())
    assert held / number == pytest.approx(simulated / number, abs=4 * 0.5 / math.sqrt(number))
    if kind == "a third of the volumes wholly":
        assert held / number < 0.42
    assert bank.presence_reached[3] == pytest.approx((held + 1) / (number + 1))  # the first volume held it


def test_max_bytes_drops_the_oldest_of_the_fullest_class() -> None:
    bank = make_bank(max_bytes=5 * (2 * 12 + 3 * 8))  # five boxes of two runs of four voxels, three bytes each
    for class_id, plane in [(3, 0), (3, 1), (4, 2), (3, 3), (5, 4)]:
        masks = one_box(class_id, slice(plane, plane + 1), slice(2, 4), slice(3, 7))
        bank(colours(masks), masks)
    assert bank.num_samples == {3: 3, 4: 1, 5: 1}
    assert bank.nbytes == bank.max_bytes
    assert bank.nbytes == sum(t.numel() * t.element_size() for s in stored(bank) for t in (s["runs"], s["values"]))
    masks = one_box(5, slice(5, 6), slice(2, 4), slice(3, 7))
    bank(colours(masks), masks)
    assert bank.num_samples == {3: 2, 4: 1, 5: 2}
    assert [int(sample["runs"][0, 0]) // (8 * 10) for sample in stored(bank)] == [1, 3, 2, 4, 5]
    large = one_box(4, slice(0, 6), slice(0, 8), slice(0, 10))  # above the bound by itself
    bank(colours(large), large)
    assert bank.num_samples[4] == 1


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    channels_last=st.booleans(),
    options=st.fixed_dictionaries(
        {
            "scope": st.sampled_from(["image", "batch"]),
            "placement": st.sampled_from(["canvas", "uniform"]),
            "protect_tail": st.booleans(),
            "capacity": st.integers(1, 3),
            "resize_ratio": st.sampled_from([0.3, 1.0, 1.8]),
            "max_components": st.sampled_from([1, 4]),
            "max_bytes": st.sampled_from([None, 300, 2000]),
            "protect_classes": st.sampled_from([(), (1, 2)]),
            "presence_target": st.sampled_from([None, 0.6]),
        }
    ),
)
@settings(deadline=None, max_examples=30)
def test_whatever_the_settings(seed: int, dtype: torch.dtype, channels_last: bool, options: dict[str, Any]) -> None:
    """Images and masks change together, protected voxels never; a resumed bank that has plans goes on alike."""
    generator = torch.Generator().manual_seed(seed)
    bank, resumed = make_bank(seed, **options), make_bank(seed, **options)
    for step in range(4):
        batch_size, *size = (int(torch.randint(n, (), generator=generator)) + 1 for n in (3, 6, 10, 12))
        masks = random_volumes(generator, batch_size, *size)
        images = colours(masks, dtype)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last_3d)
        before = images.clone(), masks.clone()
        new_images, new_masks = bank(images, masks)
        assert_same([images, masks], list(before))
        assert bank.max_bytes is None or bank.nbytes <= bank.max_bytes
        assert all(count <= bank.capacity for count in bank.num_samples.values())
        assert new_images.stride() == images.stride() or images.numel() == max(images.shape)

        tolerance = 0 if dtype == torch.uint8 else 1e-3
        assert (new_images.float() - colours(new_masks, dtype).float()).abs().max() <= tolerance
        changed = new_masks != masks
        spared = [*bank.protect_classes, *(TAIL if bank.protect_tail else [])]
        assert not (changed & torch.isin(masks, torch.tensor(spared, dtype=torch.uint8))).any()
        counts = {(image, class_id): count for image, class_id, count in bank.last_pastes}
        for image, class_id in np.ndindex(batch_size, 6):
            assert counts.get((image, class_id), 0) == (changed[image] & (new_masks[image] == class_id)).sum()

        assert_same(list(resumed(images, masks, plan=resumed.planner(masks))), [new_images, new_masks])
        if step == 1:
            state = resumed.state_dict()
            resumed = make_bank(seed + 1, **options)
            resumed.load_state_dict(state)
