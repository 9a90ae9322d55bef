import math

import pytest
import torch
from torch.nn import functional as F

from tests.memory_bank.small_banks import IGNORE, TAIL, assert_same, colours, empty, make_bank, one_object, random_masks


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("placement", ["canvas", "uniform"])
def test_pastes_are_the_same_under_any_default_dtype(placement: str, kind: torch.dtype, dtype: torch.dtype) -> None:
    """Lightning sets it around each step; in bfloat16 places above 256 are not told apart."""
    masks = torch.cat([one_object(3, slice(300, 560), slice(310, 570), 600, 620), empty(600, 620)])
    images = torch.arange(620).expand(2, 3, 600, 620).mul(255 / 619).to(kind).contiguous()
    results = []
    for default in (torch.float32, dtype):
        torch.set_default_dtype(default)
        try:
            results.append(make_bank(resize_ratio=0.7, placement=placement)(images, masks))
        finally:
            torch.set_default_dtype(torch.float32)
    assert (results[0][1][1] == 3).sum() > 1000
    assert_same(results[0], results[1])


def test_a_value_that_is_no_number_stays_with_its_own_sample() -> None:
    """The first stored pixel is looked up, with no weight, for neighbours that lie outside of an object."""
    bank = make_bank(resize_ratio=0.7)
    masks = one_object(TAIL[0], slice(0, 3), slice(0, 3))
    images = colours(masks, torch.float32)
    images[0, :, 0, 0] = math.nan
    bank(images, masks)
    masks = one_object(TAIL[1], slice(6, 13), slice(6, 13))
    bank(colours(masks, torch.float32), masks)
    pasted = 0
    for _ in range(20):
        images, masks = bank(colours(empty(20, 30), torch.float32), empty(20, 30))
        of_second = images.movedim(1, -1)[masks == TAIL[1]]
        pasted += len(of_second)
        assert not of_second.isnan().any()
    assert pasted
