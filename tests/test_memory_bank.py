import copy
import io
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from aucseg.memory_bank import TailMemoryBank

NUM_CLASSES = 6
TAIL = [3, 4, 5]
IGNORE = 255


def colours(masks: Tensor, dtype: torch.dtype = torch.uint8, channels: int = 3) -> Tensor:
    """Images (B, C, H, W) that encode the label of every pixel, ignored ones too, in every channel."""
    planes = [masks.long() * (7 + 4 * c) % 251 + c for c in range(channels)]
    return torch.stack(planes, dim=1).to(dtype)


def random_masks(generator: torch.Generator, batch_size: int, height: int, width: int, low: int = 0) -> Tensor:
    """Masks (B, H, W) uint8 of random rectangles of all classes from ``low`` on, some pixels ignored."""
    masks = torch.zeros(batch_size, height, width, dtype=torch.uint8)
    for mask in masks:
        for _ in range(5):
            y, x = (
                int(torch.randint(height, (), generator=generator)),
                int(torch.randint(width, (), generator=generator)),
            )
            h, w = torch.randint(1, max(height, width) + 1, (2,), generator=generator).tolist()
            mask[y : y + h, x : x + w] = int(torch.randint(low, NUM_CLASSES, (), generator=generator))
        mask[torch.rand(height, width, generator=generator) < 0.02] = IGNORE
    return masks


def make_bank(seed: int = 0, **options: Any) -> TailMemoryBank:
    settings_: dict[str, Any] = {"sample_ratio": 1.0, "resize_ratio": 1.0, "scope": "image", "min_pixels": 1} | options
    return TailMemoryBank(TAIL, NUM_CLASSES, generator=torch.Generator().manual_seed(seed), **settings_)


def stored(bank: TailMemoryBank) -> Iterator[dict[str, Any]]:
    for samples in bank.get_extra_state()["samples"]:
        yield from samples


def empty(height: int, width: int, batch_size: int = 1) -> Tensor:
    return torch.zeros(batch_size, height, width, dtype=torch.uint8)


def one_object(class_id: int, rows: slice, columns: slice, height: int = 20, width: int = 30) -> Tensor:
    masks = empty(height, width)
    masks[0, rows, columns] = class_id
    return masks


OPTIONS = {
    "scope": st.sampled_from(["image", "batch"]),
    "placement": st.sampled_from(["canvas", "uniform"]),
    "protect_tail": st.booleans(),
    "capacity": st.integers(1, 3),
    "sample_ratio": st.sampled_from([0.0, 0.3, 1.0]),
    "resize_ratio": st.sampled_from([0.3, 1.0, 1.8]),
    "min_pixels": st.sampled_from([1, 9]),
    "max_components": st.sampled_from([1, 4]),
    "max_bytes": st.sampled_from([None, 300, 2000]),
    "presence_target": st.sampled_from([None, 0.6]),
    "protect_classes": st.sampled_from([(), (1, 2)]),
}


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float16]),
    channels=st.sampled_from([1, 3, 5]),
    channels_last=st.booleans(),
    options=st.fixed_dictionaries(OPTIONS),
)
@settings(deadline=None, max_examples=60)
def test_whatever_the_settings(
    seed: int, dtype: torch.dtype, channels: int, channels_last: bool, options: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank = make_bank(seed, **options)
    for _ in range(4):
        batch_size, height, width = (int(torch.randint(n, (), generator=generator)) + 1 for n in (3, 30, 30))
        masks = random_masks(generator, batch_size, height, width)
        images = colours(masks, dtype, channels)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        images_before, masks_before = images.clone(), masks.clone()
        earlier = {id(sample["values"]): (sample, copy.deepcopy(sample)) for sample in stored(bank)}
        seen_before = torch.isin(masks, torch.tensor(TAIL, dtype=torch.uint8))

        new_images, new_masks = bank(images, masks)

        # The inputs and what was stored before are untouched, and the bank is within its bounds.
        assert torch.equal(images, images_before)
        assert torch.equal(masks, masks_before)
        for sample, snapshot in earlier.values():
            assert torch.equal(sample["values"], snapshot["values"])
            assert torch.equal(sample["runs"], snapshot["runs"])
        assert bank.max_bytes is None or bank.nbytes <= bank.max_bytes
        assert all(count <= bank.capacity for count in bank.num_samples.values())
        assert new_images.shape == images.shape
        assert new_images.stride() == images.stride() or images.numel() == max(images.shape)
        assert (new_images.dtype, new_masks.dtype) == (images.dtype, masks.dtype)

        # Image and mask change at the same pixels, and every pixel has the colour of its label.
        tolerance = 0 if dtype == torch.uint8 else 0.26
        assert (new_images.float() - colours(new_masks, dtype, channels).float()).abs().max() <= tolerance
        changed = new_masks != masks
        if bank.protect_tail:
            assert not (changed & seen_before).any()
        assert not (changed & torch.isin(masks, torch.tensor(bank.protect_classes, dtype=torch.uint8))).any()

        # Only missing classes were pasted, and the record says which, where and how many pixels.
        recorded = {(image, class_id): count for image, class_id, count in bank.last_pastes}
        assert len(recorded) == len(bank.last_pastes)
        for image in range(batch_size):
            scope = masks if bank.scope == "batch" else masks[image]
            for class_id in TAIL:
                count = int((changed[image] & (new_masks[image] == class_id)).sum())
                assert recorded.get((image, class_id), 0) == count
                assert count == 0 or not (scope == class_id).any()
        assert not (changed & ~torch.isin(new_masks, torch.tensor(TAIL, dtype=torch.uint8))).any()


# ---- storing


def test_stores_components_with_their_places() -> None:
    masks = empty(12, 16)
    masks[0, 2:5, 3:7] = 3  # 12 pixels
    masks[0, 5, 7] = 3  # touches diagonally
    masks[0, 9:11, 10:12] = 3  # 4 pixels, a component of its own
    masks[0, 0, 15] = 3  # 1 pixel: too small
    masks[0, 7, :] = 4
    bank = make_bank(min_pixels=2, sample_ratio=0.0)
    bank(colours(masks), masks)
    sample = next(stored(bank))
    assert (sample["height"], sample["width"]) == (12, 16)
    starts = [2 * 16 + 3, 3 * 16 + 3, 4 * 16 + 3, 5 * 16 + 7, 9 * 16 + 10, 10 * 16 + 10]
    assert sample["runs"].tolist() == [starts, [4, 4, 4, 1, 2, 2], [0, 0, 0, 0, 1, 1]]
    assert torch.equal(sample["values"], colours(torch.full((1, 17, 1), 3))[0, :, :, 0].T)
    assert bank.num_samples == {3: 1, 4: 1, 5: 0}


def test_keeps_the_largest_components() -> None:
    masks = empty(20, 20)
    for number, size in enumerate([2, 5, 3, 4]):
        masks[0, 5 * number, :size] = 3
    bank = make_bank(max_components=2)
    bank(colours(masks), masks)
    sample = next(stored(bank))
    assert sample["runs"].tolist() == [[5 * 20, 15 * 20], [5, 4], [0, 1]]


def test_what_is_pasted_is_never_stored() -> None:
    bank = make_bank()
    masks = torch.cat([one_object(3, slice(2, 6), slice(2, 6)), empty(20, 30)])
    for calls in range(1, 4):
        _, new_masks = bank(colours(masks), masks)
        assert (new_masks[1] == 3).sum() == 16
        assert bank.num_samples[3] == calls


def test_a_batch_is_stored_before_it_is_pasted_into() -> None:
    bank = make_bank()
    masks = torch.cat([empty(20, 30), one_object(3, slice(2, 6), slice(2, 6))])
    bank(colours(masks), masks)
    assert bank.last_pastes == [(0, 3, 16)]


def test_ignored_pixels_are_neither_stored_nor_safe() -> None:
    bank = make_bank()
    masks = torch.full((2, 8, 8), IGNORE, dtype=torch.uint8)
    images, new_masks = bank(colours(masks), masks)
    assert torch.equal(new_masks, masks)
    assert torch.equal(images, colours(masks))
    assert bank.nbytes == 0
    masks[0, 2:4, 2:4] = 3
    masks[0, 3, 3] = IGNORE
    _, new_masks = bank(colours(masks), masks)
    assert (new_masks[1] == 3).sum() == 3


def test_an_ignore_index_among_the_classes() -> None:
    bank = make_bank(ignore_index=0)
    masks = one_object(3, slice(2, 6), slice(2, 6))
    bank(colours(masks), masks)
    assert bank.num_samples == {3: 1, 4: 0, 5: 0}


def test_a_full_class_replaces_a_random_slot() -> None:
    replaced = set()
    for seed in range(20):
        bank = make_bank(seed, capacity=3)
        for width in (1, 2, 3, 4):
            masks = one_object(3, slice(0, 1), slice(0, width))
            bank(colours(masks), masks)
        widths = [len(sample["values"]) for sample in stored(bank)]
        assert len(widths) == 3
        assert widths[-1] == 4
        replaced |= {1, 2, 3} - set(widths)
    assert replaced == {1, 2, 3}


def test_one_batch_can_fill_a_class_more_than_once() -> None:
    masks = torch.cat([one_object(3, slice(0, 1), slice(0, width)) for width in range(1, 10)])
    survivors = set()
    for seed in range(20):
        bank = make_bank(seed, capacity=2)
        bank(colours(masks), masks)
        widths = [len(sample["values"]) for sample in stored(bank)]
        assert len(widths) == 2
        assert widths[-1] == 9
        survivors.add(widths[0])
    assert len(survivors) > 2


def test_max_bytes_drops_the_oldest_of_the_fullest_class() -> None:
    bank = make_bank(max_bytes=5 * (12 + 3 * 10))  # five runs of ten pixels
    for class_id, row in [(3, 0), (3, 1), (4, 2), (3, 3), (5, 4)]:
        masks = one_object(class_id, slice(row, row + 1), slice(0, 10))
        bank(colours(masks), masks)
    assert bank.num_samples == {3: 3, 4: 1, 5: 1}
    assert bank.nbytes == bank.max_bytes
    masks = one_object(5, slice(5, 6), slice(0, 10))
    bank(colours(masks), masks)
    assert bank.num_samples == {3: 2, 4: 1, 5: 2}
    assert [int(sample["runs"][0, 0]) // 30 for sample in stored(bank)] == [1, 3, 2, 4, 5]


def test_max_bytes_spares_the_only_sample_of_a_class() -> None:
    bank = make_bank(max_bytes=300)
    for class_id, rows, width in [
        (4, slice(0, 2), 30),
        (3, slice(3, 4), 10),
        (3, slice(4, 5), 10),
        (3, slice(5, 6), 10),
    ]:
        masks = one_object(class_id, rows, slice(0, width))
        bank(colours(masks), masks)
    assert bank.num_samples == {3: 2, 4: 1, 5: 0}


def test_a_sample_above_max_bytes_by_itself_is_not_stored() -> None:
    bank = make_bank(max_bytes=100)
    small, large = one_object(3, slice(0, 1), slice(0, 20)), one_object(4, slice(0, 1), slice(0, 30))
    for masks in (small, large):
        bank(colours(masks), masks)
    assert bank.num_samples == {3: 1, 4: 0, 5: 0}


def test_takes_a_twentieth_of_whole_float_images_at_most() -> None:
    tail, size, generator = list(range(7)), 1024, torch.Generator().manual_seed(0)
    bank = TailMemoryBank(tail, 19, sample_ratio=0.0, generator=generator)
    grid = torch.arange(size)
    for _ in range(5):
        masks = torch.full((1, size, size), 9, dtype=torch.uint8)
        for class_id in tail:
            radius = size * math.sqrt(0.001 * 20 ** (class_id / 6) / math.pi)  # 0.1 to 2 % of the image
            row, column = 130 + class_id % 3 * 380, 130 + class_id // 3 * 380
            masks[0, (grid[:, None] - row) ** 2 + (grid - column) ** 2 < radius**2] = class_id
        bank(torch.rand(1, 3, size, size, generator=generator), masks)
    assert set(bank.num_samples.values()) == {5}
    assert 20 * bank.nbytes <= 35 * 3 * size * size * 4
    assert bank.nbytes == sum(t.numel() * t.element_size() for s in stored(bank) for t in (s["runs"], s["values"]))


def test_scattered_pixels_do_not_cost_the_box_around_them() -> None:
    bank = make_bank(min_pixels=16)
    masks = empty(512, 512)
    masks[0].fill_diagonal_(3)
    bank(colours(masks), masks)
    assert bank.nbytes == 512 * (12 + 3)


def test_state_has_no_hidden_storage() -> None:
    bank = make_bank()
    masks = random_masks(torch.Generator().manual_seed(1), 4, 40, 40)
    bank(colours(masks), masks)
    for sample in stored(bank):
        for tensor in (sample["runs"], sample["values"]):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


# ---- choosing


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (0.05, 1), (0.07, 7), (0.5, 50), (1.0, 100)])
def test_sample_ratio_is_a_share_of_the_missing_classes(ratio: float, expected: int) -> None:
    tail = list(range(1, 101))
    bank = TailMemoryBank(tail, 101, sample_ratio=ratio, resize_ratio=1.0, scope="image", min_pixels=1)
    masks = torch.arange(1, 101, dtype=torch.uint8).view(1, 10, 10)
    bank(colours(masks), masks)
    assert bank.last_pastes == []
    masks = empty(10, 10)
    bank(colours(masks), masks)
    pasted = [class_id for _, class_id, _ in bank.last_pastes]
    if ratio == 0.05:
        assert len(pasted) == 5
    else:
        assert len(pasted) == expected
    assert len(set(pasted)) == len(pasted)


def test_the_draw_is_among_classes_that_have_something_stored() -> None:
    bank = make_bank(sample_ratio=0.3)
    masks = one_object(5, slice(2, 6), slice(2, 6))
    bank(colours(masks), masks)
    for _ in range(5):
        bank(colours(empty(20, 30)), empty(20, 30))
        assert bank.last_pastes == [(0, 5, 16)]


def test_scope_batch_gives_each_missing_class_to_one_random_image() -> None:
    bank = make_bank(scope="batch")
    for class_id, row in ((3, 0), (4, 8)):
        masks = one_object(class_id, slice(row, row + 4), slice(0, 4))
        bank(colours(masks), masks)
    masks = torch.cat([empty(20, 30, 3), one_object(4, slice(10, 12), slice(10, 12))])
    images = set()
    for _ in range(25):
        bank(colours(masks), masks)
        ((image, class_id, _),) = bank.last_pastes
        assert class_id == 3
        images.add(image)
    assert images == {0, 1, 2, 3}


def test_scope_image_gives_every_image_what_it_lacks() -> None:
    bank = make_bank()
    masks = torch.cat(
        [one_object(3, slice(0, 4), slice(0, 4)), one_object(4, slice(8, 12), slice(0, 4)), empty(20, 30)]
    )
    bank(colours(masks), masks)
    assert sorted(bank.last_pastes) == [(0, 4, 16), (1, 3, 16), (2, 3, 16), (2, 4, 16)]


def test_presence_target_lifts_rare_classes_and_leaves_common_ones_alone() -> None:
    shares = {3: 0.1, 4: 0.3, 5: 0.7}
    presence = [1.0, 0.9, 0.0, *shares.values()]
    bank = make_bank(presence_target=0.5, presence=torch.tensor(presence, dtype=torch.float64), placement="uniform")
    for class_id in TAIL:
        masks = one_object(class_id, slice(0, 1), slice(0, 1), height=16, width=16)
        bank(colours(masks), masks)
    generator = torch.Generator().manual_seed(1)
    num_images = 800
    held = dict.fromkeys(TAIL, 0)
    for _ in range(num_images // 20):
        masks = empty(16, 16, 20)
        for mask in masks:
            for class_id, share in shares.items():
                if torch.rand((), generator=generator) < share:
                    mask[class_id, 0] = class_id
        _, new_masks = bank(colours(masks), masks)
        for class_id in TAIL:
            held[class_id] += int((new_masks == class_id).flatten(1).any(1).sum())
    tolerance = 4 * 0.5 / math.sqrt(num_images)
    assert {class_id: count / num_images for class_id, count in held.items()} == {
        3: pytest.approx(0.5, abs=tolerance),
        4: pytest.approx(0.5, abs=tolerance),
        5: pytest.approx(0.7, abs=tolerance),
    }
    assert bank.presence == pytest.approx(shares)


@given(
    target=st.floats(0, 1),
    shares=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    is_given=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=12)
def test_presence_reaches_the_target_and_never_passes_it(
    target: float, shares: list[float], is_given: bool, seed: int
) -> None:
    """Whatever the target and the shares: presence ends at max(share, target), within the noise of the sample."""
    presence = [0.0, 0.0, 0.0, *shares] if is_given else None
    bank = make_bank(seed, presence_target=target, presence=presence, placement="uniform")
    first = torch.zeros(3, 4, 8, dtype=torch.uint8)
    for number, class_id in enumerate(TAIL):
        first[number, 0, 0] = class_id
    bank(colours(first), first)  # something to paste of each class
    generator = torch.Generator().manual_seed(seed)
    held, seen = torch.zeros(3), torch.zeros(3)
    num_images, batch_size = 1200, 60
    for _ in range(num_images // batch_size):
        holds = torch.rand(batch_size, 3, generator=generator) < torch.tensor(shares)
        masks = torch.zeros(batch_size, 4, 8, dtype=torch.uint8)
        masks[:, 0, :3] = torch.where(holds, torch.tensor(TAIL), 0)
        _, new_masks = bank(colours(masks), masks)
        seen += holds.sum(0)
        held += torch.stack([(new_masks == class_id).flatten(1).any(1).sum() for class_id in TAIL])
    # Five standard deviations of a share, and what the running estimate is off in the first batch.
    tolerance = 5 * 0.5 / math.sqrt(num_images) + (0.0 if is_given else 0.5 * batch_size / num_images)
    for share, after in zip((seen / num_images).tolist(), (held / num_images).tolist(), strict=True):
        assert after == pytest.approx(max(share, target), abs=tolerance)


def test_the_estimate_of_presence_is_saved() -> None:
    bank, restored = make_bank(presence_target=0.5), make_bank(presence_target=0.5)
    masks = torch.cat([one_object(3, slice(0, 4), slice(0, 4)), empty(20, 30, 3)])
    bank(colours(masks), masks)
    restored.load_state_dict(bank.state_dict())
    assert restored.presence == bank.presence == {3: 0.25, 4: 0.0, 5: 0.0}


def test_presence_is_estimated_from_the_images_seen() -> None:
    bank = make_bank(presence_target=0.5)
    assert bank.presence == {3: 0.0, 4: 0.0, 5: 0.0}
    masks = torch.cat([one_object(3, slice(0, 4), slice(0, 4)), empty(20, 30, 3)])
    bank(colours(masks), masks)
    assert bank.presence == {3: 0.25, 4: 0.0, 5: 0.0}
    masks = torch.cat([one_object(3, slice(0, 4), slice(0, 4))] * 4)
    bank(colours(masks), masks)
    assert bank.presence[3] == 5 / 8
    masks = empty(20, 30, 2)
    for _ in range(2):  # 5/10, then 5/12 of the images hold the class
        bank(colours(masks), masks)
        pasted = bank.last_pastes
        assert bank.presence[3] != 0.5 or pasted == []


def test_presence_target_with_scope_batch_counts_batches() -> None:
    # 8 images at p = 0.1 hold the class with probability 1 - 0.9^8 = 0.57 > 0.5: nothing to do; one image needs help.
    options: dict[str, Any] = {"presence_target": 0.5, "presence": [0.0, 0.0, 0.0, 0.1, 0.1, 0.1], "scope": "batch"}
    bank = make_bank(**options)
    masks = one_object(3, slice(0, 4), slice(0, 4))
    bank(colours(masks), masks)
    pastes = {1: 0, 8: 0}
    for batch_size in pastes:
        masks = empty(20, 30, batch_size)
        for _ in range(80):
            bank(colours(masks), masks)
            pastes[batch_size] += len(bank.last_pastes)
    assert pastes[8] == 0
    assert pastes[1] / 80 == pytest.approx(0.4 / 0.9, abs=4 * 0.5 / math.sqrt(80))


def test_a_class_that_every_image_holds_needs_nothing() -> None:
    bank = make_bank(presence_target=1.0, presence=[1.0] * NUM_CLASSES)
    masks = torch.cat([one_object(3, slice(0, 4), slice(0, 4)), empty(20, 30)])
    bank(colours(masks), masks)
    assert bank.last_pastes == []


# ---- placing and resizing


def test_canvas_at_ratio_one_returns_objects_to_their_place() -> None:
    masks = random_masks(torch.Generator().manual_seed(3), 1, 40, 50, low=3)
    images = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8)
    bank = make_bank()
    bank(images, masks)
    new_images, new_masks = bank(torch.zeros_like(images), torch.zeros_like(masks))
    is_tail = (masks >= 3) & (masks != IGNORE)
    assert is_tail.any()
    assert torch.equal(new_masks, torch.where(is_tail, masks, 0))
    assert torch.equal(new_images, torch.where(is_tail[:, None], images, 0))


@pytest.mark.parametrize("ratio", [0.25, 0.4, 0.73, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("size", [(24, 36), (37, 23), (9, 60), (80, 80)])
def test_canvas_resizing_equals_interpolation_of_whole_images(ratio: float, size: tuple[int, int]) -> None:
    """Oracle: resize the whole canvas (mask nearest, colours bilinear, normalized by the mask), try every offset."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(1, 24, 36, dtype=torch.int64)
    masks[torch.rand(masks.shape, generator=generator) < 0.6] = 3
    images = torch.rand(1, 2, 24, 36, generator=generator, dtype=torch.float64)
    bank = make_bank(resize_ratio=ratio, max_components=1000)
    bank(images, masks)
    new_images, new_masks = bank(
        torch.zeros(1, 2, *size, dtype=torch.float64), torch.zeros(1, *size, dtype=torch.int64)
    )

    scale = min(ratio, size[0] / 24, size[1] / 36)
    new_size = (round(24 * scale), round(36 * scale))
    inside = (masks == 3).double().unsqueeze(1)
    small_mask = F.interpolate(inside, size=new_size, mode="nearest-exact")[0, 0] == 1
    weight = F.interpolate(inside, size=new_size, mode="bilinear")
    small_image = (F.interpolate(images * inside, size=new_size, mode="bilinear") / weight)[0]
    assert small_mask.any()
    assert bank.last_pastes == [(0, 3, int(small_mask.sum()))]
    matches = 0
    for top in range(size[0] - new_size[0] + 1):
        for left in range(size[1] - new_size[1] + 1):
            expected = torch.zeros(size, dtype=torch.bool)
            expected[top : top + new_size[0], left : left + new_size[1]] = small_mask
            if torch.equal(new_masks[0] == 3, expected):
                matches += 1
                torch.testing.assert_close(new_images[0][:, expected], small_image[:, small_mask], rtol=1e-5, atol=1e-5)
    assert matches == 1


def test_uniform_places_one_whole_component_anywhere() -> None:
    masks = one_object(3, slice(5, 7), slice(20, 23), height=10, width=30)
    masks[0, 0, 0:4] = 3
    bank = make_bank(placement="uniform")
    bank(colours(masks), masks)
    places: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for _ in range(10):
        _, new_masks = bank(colours(empty(4, 5, 20)), empty(4, 5, 20))
        for new_mask in new_masks:
            y, x = (new_mask == 3).nonzero(as_tuple=True)
            box = (int(y.max() - y.min()) + 1, int(x.max() - x.min()) + 1)
            assert len(y) == box[0] * box[1]
            places.setdefault(box, set()).add((int(y.min()), int(x.min())))
    assert {box: len(offsets) for box, offsets in places.items()} == {(2, 3): 3 * 3, (1, 4): 4 * 2}


def test_uniform_draws_components_by_their_number_of_pixels() -> None:
    masks = empty(30, 30)
    masks[0, 0, :3] = 3
    masks[0, 10:13, 10:19] = 3
    bank = make_bank(placement="uniform")
    bank(colours(masks), masks)
    masks = empty(30, 30, 100)
    bank(colours(masks), masks)
    sizes = [count for _, _, count in bank.last_pastes]
    assert set(sizes) == {3, 27}
    assert sizes.count(27) / 100 == pytest.approx(0.9, abs=4 * 0.3 / 10)


def test_a_large_sample_shrinks_to_fit() -> None:
    bank = make_bank()
    masks = torch.full((1, 60, 80), 3, dtype=torch.uint8)
    bank(colours(masks), masks)
    _, new_masks = bank(colours(empty(30, 20)), empty(30, 20))
    y, x = (new_masks[0] == 3).nonzero(as_tuple=True)
    assert (int(y.max() - y.min()) + 1, int(x.max() - x.min()) + 1) == (15, 20)
    assert bank.last_pastes == [(0, 3, 15 * 20)]


def test_a_sample_that_shrinks_to_nothing_is_not_listed() -> None:
    bank = make_bank(resize_ratio=0.1)
    masks = one_object(3, slice(0, 1), slice(0, 1), height=40, width=40)
    bank(colours(masks), masks)
    images, new_masks = bank(colours(empty(40, 40)), empty(40, 40))
    assert bank.last_pastes == []
    assert torch.equal(images, colours(new_masks))


@pytest.mark.parametrize("protect_tail", [True, False])
def test_pastes_that_meet(protect_tail: bool) -> None:
    bank = make_bank(protect_tail=protect_tail)
    for class_id in (3, 4):
        masks = one_object(class_id, slice(4, 8), slice(4, 8))
        bank(colours(masks), masks)
    masks = one_object(5, slice(6, 20), slice(6, 30))  # hides a quarter of where the others go
    _, new_masks = bank(colours(masks), masks)
    first, second = bank.last_pastes[0][1], 7 - bank.last_pastes[0][1]
    if protect_tail:
        assert bank.last_pastes == [(0, first, 12)]
        assert torch.equal(new_masks == 5, masks == 5)
    else:
        assert bank.last_pastes == [(0, first, 16)]
        assert (new_masks[0, 4:8, 4:8] == first).all()
        assert not (new_masks == second).any()


def test_protected_classes_are_not_pasted_over() -> None:
    masks = one_object(3, slice(4, 8), slice(4, 8))
    masks[0, 6:20, 6:30] = 1
    expected = torch.where(masks == 1, masks, 0)
    for options in ({}, {"protect_tail": False}):
        bank = make_bank(protect_classes=[1], **options)
        bank(colours(masks), masks)
        _, new_masks = bank(colours(expected), expected)
        assert bank.last_pastes == [(0, 3, 12)]
        assert torch.equal(new_masks, torch.where(expected == 0, masks, expected))


@pytest.mark.parametrize("protect_tail", [True, False])
def test_who_wins_where_pastes_meet_does_not_depend_on_protected_classes(protect_tail: bool) -> None:
    banks = [make_bank(protect_tail=protect_tail, protect_classes=classes) for classes in ([], [1])]
    for class_id in (3, 4):
        masks = one_object(class_id, slice(4, 8), slice(4, 8))
        for bank in banks:
            bank(colours(masks), masks)
    results = [bank(colours(empty(20, 30)), empty(20, 30))[1] for bank in banks]
    assert torch.equal(*results)


# ---- state


def run(bank: TailMemoryBank, generator: torch.Generator, calls: int) -> list[Tensor]:
    result = []
    for _ in range(calls):
        masks = random_masks(generator, 2, 24, 24)
        images, masks = bank(colours(masks), masks)
        result += [images, masks]
    return result


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{}, {"placement": "uniform", "resize_ratio": 0.5}, {"presence_target": 0.8}])
def test_checkpoint_in_the_middle_of_a_run_gives_the_same_pastes(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(5)
    bank = make_bank(capacity=2, **options)
    run(bank, generator, 4)
    file = io.BytesIO()
    torch.save({"bank": bank.state_dict(), "data": generator.get_state()}, file)
    expected = run(bank, generator, 4)
    assert any(bank.num_samples.values())

    file.seek(0)
    state = torch.load(file, weights_only=True)
    restored = make_bank(seed=99, capacity=2, **options)
    restored.load_state_dict(state["bank"])
    generator.set_state(state["data"])
    assert_same(run(restored, generator, 4), expected)
    assert restored.nbytes == bank.nbytes
    assert restored.presence == bank.presence


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda bank: pickle.loads(pickle.dumps(bank))])
def test_a_copy_goes_on_alike_and_alone(clone: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    bank = make_bank(capacity=2)
    run(bank, generator, 3)
    copied = clone(bank)
    data = generator.get_state()
    expected = run(bank, generator, 3)
    assert_same(run(copied, generator.set_state(data), 3), expected)


def test_same_seed_same_run_and_other_seed_other_run() -> None:
    runs = [run(make_bank(seed), torch.Generator().manual_seed(5), 4) for seed in (1, 1, 2)]
    assert_same(runs[0], runs[1])
    assert any(not torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_the_default_generator_follows_the_global_seed() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        bank = TailMemoryBank(TAIL, NUM_CLASSES, sample_ratio=1.0, resize_ratio=0.5, min_pixels=1)
        runs.append(run(bank, torch.Generator().manual_seed(5), 4))
    assert_same(runs[0], runs[1])


def test_loading_into_a_smaller_bank_drops_the_oldest() -> None:
    bank = make_bank()
    for width in (1, 2, 3):
        masks = one_object(3, slice(0, 1), slice(0, width))
        bank(colours(masks), masks)
    smaller = make_bank(capacity=2)
    smaller.load_state_dict(bank.state_dict())
    assert [len(sample["values"]) for sample in stored(smaller)] == [2, 3]
    smallest = make_bank(max_bytes=25)
    smallest.load_state_dict(bank.state_dict())
    assert [len(sample["values"]) for sample in stored(smallest)] == [3]


def test_loading_the_state_of_other_classes_names_both() -> None:
    state = make_bank().state_dict()
    with pytest.raises(ValueError, match=r"num_classes = 6, this one 7"):
        TailMemoryBank(TAIL, 7).load_state_dict(state)
    with pytest.raises(ValueError, match=r"tail_classes = \[3, 4, 5\], this one \[4, 5\]"):
        TailMemoryBank([4, 5], NUM_CLASSES).load_state_dict(state)


def test_clear_forgets_samples_and_presence() -> None:
    bank = make_bank()
    run(bank, torch.Generator().manual_seed(5), 2)
    assert bank.nbytes > 0
    bank.clear()
    assert (bank.nbytes, bank.last_pastes) == (0, [])
    assert set(bank.presence.values()) == {0.0}
    bank(torch.zeros(1, 4, 5, 5), torch.full((1, 5, 5), 3))  # another format may follow


def test_eval_returns_the_inputs_and_stores_nothing() -> None:
    bank = make_bank()
    masks = torch.cat([one_object(3, slice(0, 4), slice(0, 4)), empty(20, 30)])
    bank(colours(masks), masks)
    before = bank.state_dict()["_extra_state"]
    images = colours(masks)
    new_images, new_masks = bank.eval()(images, masks)
    assert new_images is images
    assert new_masks is masks
    assert bank.last_pastes == []
    after = bank.state_dict()["_extra_state"]
    assert torch.equal(before.pop("generator"), after.pop("generator"))
    assert str(before) == str(after)


# ---- inputs


@pytest.mark.parametrize("mask_dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype, mask_dtype: torch.dtype) -> None:
    bank = make_bank(resize_ratio=0.5)
    masks = one_object(5, slice(2, 10), slice(2, 10)).to(mask_dtype)
    masks[0, 0, 0] = IGNORE
    bank(colours(masks, dtype), masks)
    other = torch.full_like(masks, IGNORE)
    images, new_masks = bank(colours(other, dtype), other)
    assert (images.dtype, new_masks.dtype) == (dtype, mask_dtype)
    assert (new_masks == 5).sum() == 16
    assert (images.float() - colours(new_masks, dtype).float()).abs().max() <= 0.5


def test_more_classes_than_a_byte_holds() -> None:
    bank = TailMemoryBank([299], 300, sample_ratio=1.0, resize_ratio=1.0, scope="image", ignore_index=-1)
    masks = torch.full((2, 8, 8), -1)
    masks[0, :4, :4] = 299
    _, new_masks = bank(torch.zeros(2, 3, 8, 8), masks)
    assert torch.equal(new_masks[1], masks[0])
    with pytest.raises(ValueError, match=r"299 does not fit into masks of torch.uint8"):
        bank(torch.zeros(1, 3, 8, 8), empty(8, 8))


def test_inputs_that_are_views() -> None:
    masks = random_masks(torch.Generator().manual_seed(2), 2, 30, 40)
    images = torch.randint(0, 256, (2, 3, 30, 40), dtype=torch.uint8)
    outputs = []
    for view in (False, True):
        bank = make_bank(resize_ratio=0.7)
        if view:
            wide = torch.zeros(2, 3, 30, 80, dtype=torch.uint8)
            wide[..., ::2] = images
            given = (wide[..., ::2], masks.transpose(1, 2).contiguous().transpose(1, 2))
        else:
            given = (images, masks)
        outputs.append([t for _ in range(3) for t in bank(*given)])
    assert_same(*outputs)
    bank = make_bank()
    expanded = torch.zeros(1, 1, 1, 1).expand(2, 3, 30, 40)
    assert bank(expanded, masks)[0].shape == (2, 3, 30, 40)


def test_a_batch_without_pixels() -> None:
    bank = make_bank()
    images, masks = bank(torch.zeros(0, 3, 5, 5), torch.zeros(0, 5, 5, dtype=torch.uint8))
    assert (images.shape, masks.shape) == ((0, 3, 5, 5), (0, 5, 5))


def test_carries_no_gradient() -> None:
    bank = make_bank()
    masks = torch.cat([one_object(3, slice(0, 4), slice(0, 4)), empty(20, 30)])
    images, _ = bank(colours(masks, torch.float32).requires_grad_(), masks)
    assert not images.requires_grad
    assert not any(sample["values"].requires_grad for sample in stored(bank))


@pytest.mark.parametrize(
    ("images", "masks", "error", "message"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.int32), empty(4, 4), TypeError, "images must be uint8 or floating"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4), TypeError, "masks must be uint8"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool), TypeError, "masks must be uint8"),
        (torch.zeros(3, 4, 4), empty(4, 4), ValueError, r"\(3, 4, 4\) and \(1, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4), empty(4, 5), ValueError, r"\(1, 3, 4, 4\) and \(1, 4, 5\)"),
        (torch.zeros(2, 3, 4, 4), empty(4, 4), ValueError, r"\(2, 3, 4, 4\) and \(1, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4), empty(4, 4)[:, None], ValueError, r"\(1, 1, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4, device="meta"), empty(4, 4), ValueError, "on one device"),
    ],
)
def test_wrong_inputs(images: Tensor, masks: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_bank()(images, masks)


@pytest.mark.parametrize("label", [6, 254, -1])
def test_a_label_that_is_no_class_is_named_with_its_place(label: int) -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.int64)
    masks[1, 2, 5] = label
    masks[1, 3, 0] = IGNORE
    bank = make_bank()
    with pytest.raises(
        ValueError, match=f"label {label} at image 1, row 2, column 5 is neither a class 0..5 nor .*255"
    ):
        bank(torch.zeros(2, 3, 8, 8), masks)


def test_images_unlike_the_stored_ones() -> None:
    bank = make_bank()
    masks = one_object(3, slice(0, 4), slice(0, 4))
    bank(colours(masks), masks)
    with pytest.raises(ValueError, match=r"holds torch.uint8 pixels of 3 channels.*torch.float32 with 3"):
        bank(colours(masks, torch.float32), masks)
    with pytest.raises(ValueError, match=r"of 3 channels.*torch.uint8 with 4"):
        bank(colours(masks, channels=4), masks)


@pytest.mark.parametrize(
    ("tail_classes", "options", "message"),
    [
        ([], {}, "tail_classes is empty"),
        ([1, 6], {}, r"tail class 6 is outside 0..5"),
        ([-1, 2], {}, r"tail class -1 is outside 0..5"),
        ([2, 3, 2], {}, "tail class 2 is given twice"),
        ([0, 3], {"ignore_index": 3}, "tail class 3 is ignore_index"),
        (TAIL, {"capacity": 0}, "capacity must be at least 1, got 0"),
        (TAIL, {"capacity": -1}, "capacity must be at least 1, got -1"),
        (TAIL, {"min_pixels": 0}, "min_pixels must be at least 1"),
        (TAIL, {"max_components": 0}, "max_components must be at least 1"),
        (TAIL, {"max_bytes": 0}, "max_bytes must be at least 1"),
        (TAIL, {"sample_ratio": 1.1}, r"sample_ratio must be in 0..1, got 1.1"),
        (TAIL, {"sample_ratio": -0.1}, r"sample_ratio must be in 0..1"),
        (TAIL, {"sample_ratio": math.nan}, r"sample_ratio must be in 0..1"),
        (TAIL, {"resize_ratio": 0.0}, "resize_ratio must be above 0"),
        (TAIL, {"resize_ratio": math.inf}, "resize_ratio must be above 0"),
        (TAIL, {"scope": "dataset"}, "scope must be 'batch' or 'image'"),
        (TAIL, {"placement": "corner"}, "placement must be 'canvas' or 'uniform'"),
        (TAIL, {"protect_classes": [1, 6]}, r"protect_classes holds 6, which is outside 0..5"),
        (TAIL, {"presence_target": 1.5}, r"presence_target must be in 0..1"),
        (TAIL, {"presence": [0.5] * 6}, "presence has no effect without presence_target"),
        (TAIL, {"presence_target": 0.5, "presence": [0.5] * 5}, r"one share per class \(6\), got 5"),
        (
            TAIL,
            {"presence_target": 0.5, "presence": [0.5] * 5 + [1.2]},
            r"presence of class 5 must be in 0..1, got 1.2",
        ),
    ],
)
def test_wrong_arguments(tail_classes: list[int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TailMemoryBank(tail_classes, NUM_CLASSES, **options)


def test_repr_names_the_settings() -> None:
    assert "3 of 6 classes, capacity=5" in repr(make_bank())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("placement", ["canvas", "uniform"])
def test_cuda_pastes_what_the_cpu_pastes(placement: str) -> None:
    on_cpu, on_cuda = (make_bank(placement=placement, resize_ratio=0.6) for _ in range(2))
    generator = torch.Generator().manual_seed(5)
    for _ in range(5):
        masks = random_masks(generator, 3, 40, 50)
        expected = on_cpu(colours(masks), masks)
        got = on_cuda(colours(masks).cuda(), masks.cuda())
        assert got[0].is_cuda
        assert_same([t.cpu() for t in got], list(expected))
        assert on_cuda.last_pastes == on_cpu.last_pastes
