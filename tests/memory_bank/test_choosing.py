import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aucseg.memory_bank import TailMemoryBank
from tests.memory_bank.small_banks import NUM_CLASSES, TAIL, colours, empty, make_bank, one_object


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (0.05, 5), (0.07, 7), (0.5, 50), (1.0, 100)])
def test_sample_ratio_is_a_share_of_the_missing_classes(ratio: float, expected: int) -> None:
    tail = list(range(1, 101))
    bank = TailMemoryBank(tail, 101, sample_ratio=ratio, resize_ratio=1.0, scope="image", min_pixels=1)
    masks = torch.arange(1, 101, dtype=torch.uint8).view(1, 10, 10)
    bank(colours(masks), masks)
    assert bank.last_pastes == []
    masks = empty(10, 10)
    bank(colours(masks), masks)
    pasted = [class_id for _, class_id, _ in bank.last_pastes]
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


def test_presence_rises_by_a_bounded_factor() -> None:
    presence = [1.0, 0.9, 0.0, 0.05, 0.2, 0.45]
    bank = make_bank(presence_target=0.5, max_factor=2.0, presence=presence, placement="uniform")
    for class_id in TAIL:
        masks = one_object(class_id, slice(0, 1), slice(0, 1), height=16, width=16)
        bank(colours(masks), masks)
    pasted = dict.fromkeys(TAIL, 0)
    for _ in range(20):
        bank(colours(empty(16, 16, 200)), empty(16, 16, 200))
        for _, class_id, _ in bank.last_pastes:
            pasted[class_id] += 1
    # (min(0.5, 2 p) - p) / (1 - p) of 4,000 images, and four standard deviations.
    for class_id, share in ((3, 0.05 / 0.95), (4, 0.2 / 0.8), (5, 0.05 / 0.55)):
        assert abs(pasted[class_id] - 4000 * share) < 4 * math.sqrt(4000 * share * (1 - share))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_factor": 5.0, "sample_ratio": 0.1}, r"max_factor 5\.0 bounds a presence target"),
        ({"max_factor": 0.5, "presence_target": 0.1}, "max_factor must be a number from 1 on, got 0.5"),
        ({"max_factor": math.nan, "presence_target": 0.1}, "max_factor must be a number from 1 on, got nan"),
        ({"max_factor": math.inf, "presence_target": 0.1}, "max_factor must be a number from 1 on, got inf"),
    ],
)
def test_a_factor_that_bounds_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TailMemoryBank([1], 2, **options)


def test_without_a_policy_a_class_rises_to_a_tenth_of_the_images_or_fivefold() -> None:
    bank = TailMemoryBank([1], 2)
    assert (bank.presence_target, bank.max_factor, bank.sample_ratio) == (0.1, 5.0, None)
    assert (bank.scope, bank.resize_ratio, bank.placement) == ("image", 1.0, "canvas")
    bounded = TailMemoryBank([1], 2, max_factor=3.0)
    assert (bounded.presence_target, bounded.max_factor) == (0.1, 3.0)
    asked = TailMemoryBank([1], 2, presence_target=0.1)
    assert (asked.presence_target, asked.max_factor) == (0.1, None)
    share = TailMemoryBank([1], 2, sample_ratio=0.2)
    assert (share.presence_target, share.max_factor, share.sample_ratio) == (None, None, 0.2)


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


def test_processes_that_were_seeded_alike_draw_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for rank in ("0", "1", "1"):
        monkeypatch.setenv("RANK", rank)
        torch.manual_seed(0)
        states.append(TailMemoryBank([3], 4).get_extra_state()["generator"])
    assert not torch.equal(states[0], states[1])
    assert torch.equal(states[1], states[2])
