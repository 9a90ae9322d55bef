"""Whether pastes reach the presence that is asked for, against simulations in plain numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.memory_bank.small_banks import TAIL, colours, empty, make_bank, one_object, random_masks

HEIGHT, WIDTH = 12, 18
PROTECTED = 1


def fits_somewhere(free: NDArray[np.bool_], shape: NDArray[np.bool_]) -> bool:
    """Whether at some place inside the image a pixel of the object lies on a free pixel: every place is tried."""
    height, width = shape.shape
    return any(
        bool((free[top : top + height, left : left + width] & shape).any())
        for top in range(free.shape[0] - height + 1)
        for left in range(free.shape[1] - width + 1)
    )


def protected_masks(kind: str, rng: np.random.Generator, number: int) -> NDArray[np.uint8]:
    masks = np.zeros((number, HEIGHT, WIDTH), dtype=np.uint8)
    if kind == "two thirds":
        masks[:, :, : WIDTH * 2 // 3] = PROTECTED
    elif kind == "scattered":
        masks[rng.random(masks.shape) < 0.97] = PROTECTED
    elif kind == "a third of the images wholly":
        masks[rng.random(number) < 1 / 3] = PROTECTED
    elif kind == "all but the corner":
        masks[:] = PROTECTED
        masks[:, 0, 0] = 0
    return masks


@pytest.mark.parametrize(
    "kind", ["nothing", "two thirds", "scattered", "a third of the images wholly", "all but the corner"]
)
@pytest.mark.parametrize("object_size", [(1, 1), (4, 5)])
@pytest.mark.parametrize("protect_tail", [True, False])
def test_the_target_is_reached_wherever_there_is_a_free_place(
    kind: str, object_size: tuple[int, int], protect_tail: bool
) -> None:
    target, share, rng = 0.5, 0.1, np.random.default_rng(0)
    bank = make_bank(
        presence_target=target,
        presence=[0.0, 0.0, 0.0, share, 1.0, 1.0],
        placement="uniform",
        protect_classes=[PROTECTED],
        protect_tail=protect_tail,
    )
    masks = one_object(3, slice(0, object_size[0]), slice(0, object_size[1]), HEIGHT, WIDTH)
    bank(colours(masks), masks)
    number, batch_size, simulated, held = 1200, 60, 0.0, 0
    for _ in range(number // batch_size):
        batch = protected_masks(kind, rng, batch_size)
        batch[rng.random(batch_size) < share, HEIGHT - 1, WIDTH - 1] = 3
        for mask in batch:  # how likely the class is in the image afterwards
            fits = fits_somewhere(~np.isin(mask, [PROTECTED, 3]), np.ones(object_size, dtype=bool))
            simulated += 1.0 if (mask == 3).any() else fits * (target - share) / (1 - share)
        _, after = bank(colours(torch.from_numpy(batch)), torch.from_numpy(batch))
        held += int((after == 3).flatten(1).any(1).sum())
    assert held / number == pytest.approx(simulated / number, abs=4 * 0.5 / math.sqrt(number))
    if kind != "a third of the images wholly":
        assert held / number == pytest.approx(target, abs=4 * 0.5 / math.sqrt(number))
    else:
        assert held / number < 0.42
    assert bank.presence_reached[3] == pytest.approx((held + 1) / (number + 1))  # the first image held it


@given(
    seed=st.integers(0, 2**32 - 1),
    scope=st.sampled_from(["image", "batch"]),
    protect_tail=st.booleans(),
    target=st.sampled_from([None, 0.3, 1.0]),
)
@settings(deadline=None, max_examples=40)
def test_what_is_reported_is_what_the_masks_hold(
    seed: int, scope: str, protect_tail: bool, target: float | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank = make_bank(seed, scope=scope, protect_tail=protect_tail, presence_target=target, protect_classes=[0])
    assert bank.presence_reached == dict.fromkeys(TAIL, 0.0)
    held, number = dict.fromkeys(TAIL, 0), 0
    for _ in range(5):
        masks = random_masks(generator, 3, 12, 16)
        _, after = bank(colours(masks), masks)
        units = list(after) if scope == "image" else [after]
        number += len(units)
        for class_id in TAIL:
            held[class_id] += sum(bool((unit == class_id).any()) for unit in units)
    assert bank.presence_reached == pytest.approx({class_id: count / number for class_id, count in held.items()})
    bank.clear()
    assert bank.presence_reached == dict.fromkeys(TAIL, 0.0)


def test_many_pastes_find_room_beside_each_other() -> None:
    """Three classes, two free pixels beside each other: each gets a place, or none is left for it."""
    bank = make_bank(placement="uniform", protect_classes=[PROTECTED])
    for class_id in TAIL:
        masks = one_object(class_id, slice(0, 1), slice(0, 1), HEIGHT, WIDTH)
        bank(colours(masks), masks)
    masks = torch.full((1, HEIGHT, WIDTH), PROTECTED, dtype=torch.uint8)
    masks[0, 5, 5:7] = 0
    for _ in range(20):
        _, after = bank(colours(masks), masks)
        assert len(bank.last_pastes) == 2
        assert set(after[0, 5, 5:7].tolist()) <= set(TAIL)
        assert len(set(after[0, 5, 5:7].tolist())) == 2


def test_an_object_of_fixed_place_is_tried_and_reported() -> None:
    bank = make_bank(placement="canvas", presence_target=1.0, presence=[0.0] * 6, protect_classes=[PROTECTED])
    masks = one_object(3, slice(2, 4), slice(2, 4), HEIGHT, WIDTH)
    bank(colours(masks), masks)
    masks = empty(HEIGHT, WIDTH)
    masks[0, :6, :6] = PROTECTED
    for _ in range(3):
        bank(colours(masks), masks)
        assert bank.last_pastes == []
    assert bank.presence_reached == {3: 0.25, 4: 0.0, 5: 0.0}


def test_what_shrinks_to_nothing_is_not_tried_again() -> None:
    bank = make_bank(placement="canvas", resize_ratio=0.1)
    masks = one_object(3, slice(2, 3), slice(2, 3), HEIGHT, WIDTH)
    bank(colours(masks), masks)
    twin = torch.Generator()
    twin.set_state(bank.get_extra_state()["generator"])
    bank(colours(empty(HEIGHT, WIDTH)), empty(HEIGHT, WIDTH))
    assert bank.last_pastes == []
    torch.rand(1, 3, generator=twin, dtype=torch.float64)  # the class, the sample, one place
    torch.randint(2**31, (1,), generator=twin)
    torch.randint(2**31, (3, 1), generator=twin)
    assert torch.equal(twin.get_state(), bank.get_extra_state()["generator"])
