import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aucseg.memory_bank import TailMemoryBank
from tests.memory_bank.small_banks import (
    IGNORE,
    NUM_CLASSES,
    TAIL,
    assert_same,
    colours,
    empty,
    make_bank,
    one_object,
    random_masks,
    stored,
)


@pytest.mark.parametrize("mask_dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype, mask_dtype: torch.dtype) -> None:
    bank = make_bank(resize_ratio=0.5)
    masks = one_object(5, slice(2, 10), slice(2, 10)).to(mask_dtype)
    masks.view(-1)[:1].fill_(IGNORE)
    bank(colours(masks.long(), dtype), masks)
    other = torch.full(masks.shape, IGNORE).to(mask_dtype)
    images, new_masks = bank(colours(other.long(), dtype), other)
    assert (images.dtype, new_masks.dtype) == (dtype, mask_dtype)
    new_masks = new_masks.long()
    assert (new_masks == 5).sum() == 16
    assert (images.float() - colours(new_masks, dtype).float()).abs().max() <= 0.5


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int8])
def test_masks_of_two_classes(mask_dtype: torch.dtype) -> None:
    bank = TailMemoryBank([1], 2, sample_ratio=1.0, resize_ratio=1.0, scope="image", min_pixels=1)
    masks = torch.zeros(2, 8, 8, dtype=mask_dtype)
    masks[0, 2:4, 2:4] = 1
    images, new_masks = bank(colours(masks.long()), masks)
    assert new_masks.dtype == mask_dtype
    assert torch.equal(new_masks[1], masks[0])
    assert torch.equal(images, colours(new_masks.long()))
    with pytest.raises(ValueError, match=f"300 does not fit into masks of {mask_dtype}"):
        TailMemoryBank([300], 301)(torch.zeros(1, 3, 8, 8), masks[:1])


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
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4), TypeError, r"masks must hold integer.*masks.long\(\)"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint64), TypeError, "masks must hold integer"),
        (torch.zeros(3, 4, 4), empty(4, 4), ValueError, r"\(3, 4, 4\) and \(1, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4), empty(4, 5), ValueError, r"\(1, 3, 4, 4\) and \(1, 4, 5\)"),
        (torch.zeros(2, 3, 4, 4), empty(4, 4), ValueError, r"\(2, 3, 4, 4\) and \(1, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4), empty(4, 4)[:, None], ValueError, r"\(1, 1, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4, device="meta"), empty(4, 4), ValueError, "on one device"),
        (torch.zeros(1, 0, 4, 4), empty(4, 4), ValueError, "have no channel"),
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
        ([1, 6], {}, r"tail_classes holds 6, which is outside 0..5"),
        ([-1, 2], {}, r"tail_classes holds -1, which is outside 0..5"),
        ([2, 3, 2], {}, "tail class 2 is given twice"),
        ([0, 3], {"ignore_index": 3}, "tail class 3 is ignore_index"),
        (TAIL, {"capacity": 0}, "capacity must be at least 1, got 0"),
        (TAIL, {"capacity": 5.0}, "capacity must be a whole number, got 5.0"),
        (TAIL, {"min_pixels": 1.5}, "min_pixels must be a whole number"),
        (TAIL, {"capacity": True}, "capacity must be a whole number, got True"),
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
        (TAIL, {"presence_target": 0.5, "sample_ratio": 0.2}, r"sample_ratio 0.2 and presence_target 0.5 are two"),
        (TAIL, {"sample_ratio": 0.2, "presence": [0.5] * 6}, r"presence has no effect beside sample_ratio 0\.2"),
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


@pytest.mark.parametrize("tail", ["12", [1.7], [False, True], torch.tensor([False, True]), ["imp"], 2])
def test_classes_are_given_by_their_ids(tail: Any) -> None:
    with pytest.raises(TypeError, match=r"tail_classes .*: give class ids"):
        TailMemoryBank(tail, NUM_CLASSES)


def test_ids_may_be_integers_of_any_kind() -> None:
    for tail in (torch.tensor([2, 1]), np.array([2, 1], dtype=np.uint8), {1, 2}):
        assert TailMemoryBank(tail, NUM_CLASSES).tail_classes == (1, 2)


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_sample_that_lies_elsewhere_than_its_neighbours_follows_the_images() -> None:
    """As after an exchange between processes: what has arrived lies on the CPU, behind the bank's own samples."""
    bank = make_bank()
    masks = torch.full((2, 8, 8), TAIL[0], dtype=torch.uint8)
    bank(colours(masks).cuda(), masks.cuda())
    state = bank.get_extra_state()
    last = state["samples"][0][-1]
    state["samples"][0][-1] = last | {"runs": last["runs"].cpu(), "values": last["values"].cpu()}
    bank.set_extra_state(state)
    _, after = bank(torch.zeros(8, 3, 8, 8, dtype=torch.uint8).cuda(), torch.zeros(8, 8, 8, dtype=torch.uint8).cuda())
    assert (after == TAIL[0]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"presence_target": 0.5, "presence": {3: 0.1}}, "one share for each of the 6 classes.* not a mapping"),
        ({"ignore_index": None}, "ignore_index must be an integer"),
        ({"ignore_index": "255"}, "ignore_index must be an integer"),
        ({"resize_ratio": "0.4"}, "resize_ratio must be a number"),
        ({"max_bytes": "1G"}, "max_bytes must be a number"),
        ({"generator": 3}, "generator must be a torch.Generator"),
    ],
)
def test_arguments_of_another_kind(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        TailMemoryBank(TAIL, NUM_CLASSES, **options)
