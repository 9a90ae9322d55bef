import math
import re

import pytest
import torch

from aucseg.memory_bank import TailMemoryBank
from tests.memory_bank.small_banks import IGNORE, colours, empty, make_bank, one_object, random_masks, stored


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


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        (
            {"min_pixels": 9},
            r"no component has min_pixels=9 pixels\. .* a smaller min_pixels \(1 stores every component\)$",
        ),
        (
            {"max_bytes": 20},
            r"min_pixels=1 pixels, or a sample is larger than max_bytes=20\. .* or a larger max_bytes$",
        ),
    ],
)
def test_a_class_that_is_seen_and_never_stored_is_said_once(options: dict[str, int], way_out: str) -> None:
    bank = make_bank(**options)
    small, other = one_object(3, slice(0, 2), slice(0, 4)), one_object(5, slice(0, 1), slice(0, 2))
    masks = torch.cat([small, torch.maximum(small, other.roll(9, 1)), empty(20, 30)])
    for _ in range(9):
        bank(colours(masks), masks)
    with pytest.warns(
        UserWarning, match="stored nothing of tail class 3, though 20 images or more held each: "
    ) as said:
        bank(colours(masks), masks)
    assert len(said) == 1
    assert re.search(way_out, str(said[0].message))
    for _ in range(9):  # here a warning is an error
        bank(colours(masks), masks)


def test_a_class_of_which_something_is_stored_now_and_then_is_not_spoken_of() -> None:
    bank = make_bank(min_pixels=9)
    small, large = one_object(3, slice(0, 2), slice(0, 4)), one_object(3, slice(0, 3), slice(0, 3))
    for masks in (*[small] * 19, large, *[small] * 40):
        bank(colours(masks), masks)
    assert bank.num_samples[3] == 1
    loaded = make_bank(min_pixels=9)
    loaded.load_state_dict(bank.state_dict())
    for _ in range(40):
        loaded(colours(small), small)


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
