"""Checks of what users give to the memory bank: each message names the value and the way out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aucseg.hints import check_choice, check_number
from aucseg.memory_bank.pixels import send
from aucseg.tensors.dtypes import check_label_dtype, check_tensor
from aucseg.tensors.labels import check_ignore_index, class_ids

if TYPE_CHECKING:
    from aucseg.memory_bank.plan import BankPlanner, BatchPlan

# Masks of these dtypes are worked on as they are, those of others as int64.
MASK_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)
_OTHER_MASKS = "the masks are not those of the plan: plan after the last change to the masks, such as a crop or a flip"


def checked_tail_classes(tail_classes: Iterable[int], num_classes: int, ignore_index: int) -> tuple[int, ...]:
    """The tail classes in ascending order; ValueError for one that cannot be a tail class."""
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    check_ignore_index(ignore_index)
    tail = sorted(class_ids(tail_classes, "tail_classes", num_classes))
    if not tail:
        raise ValueError("tail_classes is empty: a data set without tail classes needs no bank")
    for class_id, following in zip(tail, [*tail[1:], None], strict=True):
        if class_id == following:
            raise ValueError(f"tail class {class_id} is given twice")
        if class_id == ignore_index:
            raise ValueError(f"tail class {class_id} is ignore_index: ignored pixels are never stored")
    return tuple(tail)


def check_settings(
    counts: Mapping[str, Any],
    shares: Mapping[str, float | None],
    resize_ratio: float,
    max_bytes: int | None,
    choices: Mapping[str, tuple[str, Sequence[str]]],
    generator: torch.Generator | None,
) -> None:
    """ValueError for the first setting out of its range, TypeError for one of another kind.

    Args:
        counts: Settings that are whole numbers, at least 1.
        shares: Settings in 0..1, or None where they are not used.
        resize_ratio: Above 0 and finite.
        max_bytes: At least 1, or None.
        choices: Settings with the values that they may have.
        generator: On the CPU, or None.
    """
    numbers: dict[str, Any] = {**shares, "resize_ratio": resize_ratio, "max_bytes": max_bytes}
    for name, number in numbers.items():
        if number is not None:
            check_number(name, number)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {generator!r}: torch.Generator().manual_seed(0)")
    for name, count in counts.items():
        # A number such as 5.0 would fail when the bank is full.
        if isinstance(count, bool) or not isinstance(count, Integral):
            raise ValueError(f"{name} must be a whole number, got {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, or None for no bound, got {max_bytes}")
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"{name} must be in 0..1, got {share}")
    if not (resize_ratio > 0 and math.isfinite(resize_ratio)):
        raise ValueError(f"resize_ratio must be above 0 and finite, got {resize_ratio}")
    for name, (value, known) in choices.items():
        check_choice(name, value, known)
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"generator must be a CPU generator (choices are made on the host), got one on {generator.device}"
        )


def check_policy(sample_ratio: float | None, presence_target: float | None, max_factor: float | None) -> None:
    """ValueError where two policies are asked for, or a bound that neither knows."""
    if sample_ratio is not None and presence_target is not None:
        raise ValueError(
            f"sample_ratio {sample_ratio} and presence_target {presence_target} are two policies, and only one can "
            "choose what is pasted: leave sample_ratio out (None) to go by presence, presence_target for the paper's "
            "share of the missing classes"
        )
    if max_factor is None:
        return
    if presence_target is None:
        raise ValueError(
            f"max_factor {max_factor} bounds a presence target, which sample_ratio {sample_ratio} takes the place of: "
            "leave one of them out"
        )
    if not (math.isfinite(max_factor) and max_factor >= 1):
        raise ValueError(
            f"max_factor must be a number from 1 on, got {max_factor}: 1 pastes nothing; beside a "
            "presence_target of your own leave it out for no bound"
        )


def checked_classes(classes: Iterable[int], num_classes: int, name: str) -> tuple[int, ...]:
    """The classes in ascending order, each once; ValueError for an id outside 0..num_classes-1."""
    return tuple(sorted(set(class_ids(classes, name, num_classes))))


def checked_presence(
    presence: Sequence[float] | Tensor | None,
    sample_ratio: float | None,
    tail_classes: Sequence[int],
    num_classes: int,
) -> list[float] | None:
    """Share of images that hold each tail class, from the shares of all classes; ValueError for what is not a share."""
    if presence is None:
        return None
    if sample_ratio is not None:
        raise ValueError(f"presence has no effect beside sample_ratio {sample_ratio}: leave one of them out")
    if isinstance(presence, Mapping):  # such as that of another bank, which knows the tail classes alone
        raise TypeError(
            f"presence must hold one share for each of the {num_classes} classes, in their order, not a mapping: give "
            "the presence of ClassStatistics"
        )
    shares = [float(share) for share in presence]
    if len(shares) != num_classes:
        raise ValueError(f"presence must hold one share per class ({num_classes}), got {len(shares)}")
    for class_id in tail_classes:
        if not 0 <= shares[class_id] <= 1:
            raise ValueError(f"presence of class {class_id} must be in 0..1, got {shares[class_id]}")
    return [shares[class_id] for class_id in tail_classes]


def check_masks(masks: Tensor, tail_classes: Sequence[int]) -> None:
    """TypeError or ValueError for masks that the bank cannot take."""
    check_label_dtype(masks, "masks")
    if masks.ndim not in (3, 4):
        raise ValueError(f"masks must be (B, H, W) or, of volumes, (B, D, H, W), got {tuple(masks.shape)}")
    if masks[0:1].numel() >= 2**31:
        raise ValueError(f"an image may have up to 2**31 - 1 pixels, got {tuple(masks.shape[1:])}")
    if tail_classes[-1] > (1 if masks.dtype == torch.bool else torch.iinfo(masks.dtype).max):
        raise ValueError(f"tail class {tail_classes[-1]} does not fit into masks of {masks.dtype}: use int64")


def check_batch(images: Tensor, masks: Tensor, tail_classes: Sequence[int]) -> None:
    """TypeError or ValueError for images or masks that the bank cannot take."""
    check_tensor(images, "images")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images must be uint8 or floating, got {images.dtype}")
    check_masks(masks, tail_classes)
    if images.ndim != masks.ndim + 1 or (images.shape[0], *images.shape[2:]) != tuple(masks.shape):
        raise ValueError(
            "images must be (B, C, H, W) and masks (B, H, W) with the same B, H and W, or volumes (B, C, D, H, W) and "
            f"(B, D, H, W), got {tuple(images.shape)} and {tuple(masks.shape)}"
        )
    if images.shape[1] == 0:
        raise ValueError(f"images of shape {tuple(images.shape)} have no channel")
    if images.device != masks.device:
        raise ValueError(f"images and masks must be on one device, got {images.device} and {masks.device}")


def workable(masks: Tensor) -> Tensor:
    """The masks in a dtype for which torch has all operations."""
    return masks if masks.dtype in MASK_DTYPES else masks.to(torch.int64)


def check_plan(plan: BatchPlan, planner: BankPlanner, masks: Tensor) -> None:
    """ValueError for a plan that is not of these masks, as far as can be checked without waiting for a device."""
    if plan.planner != planner:
        raise ValueError("the plan was made with the settings of another bank: make it with this one's plan or planner")
    if plan.shape != tuple(masks.shape):
        raise ValueError(f"the plan is of masks {plan.shape}, the masks are {tuple(masks.shape)}: plan each batch")
    if masks.device.type == "cpu" and len(plan.spared_begin):
        flat = workable(masks).flatten().numpy()
        tail, protected = planner.look_up(flat[np.stack([plan.spared_begin, plan.spared_end - 1])])
        if (tail != plan.spared_tail).any() or (protected != plan.spared_protected).any():
            raise ValueError(_OTHER_MASKS)
    elif masks.device.type == "cuda":
        assert_planned(plan, masks)


def assert_planned(plan: BatchPlan, masks: Tensor) -> None:
    """Has the device compare some labels with those that were planned; an error of the device where they differ."""
    if len(plan.probes):
        places, labels = send([plan.probes, plan.probed], masks.device)
        same = (workable(masks).flatten().index_select(0, places) == labels).all()
        torch._assert_async(same, _OTHER_MASKS)


def check_labels(
    label: npt.NDArray[Any], start: npt.NDArray[Any], shape: Sequence[int], num_classes: int, ignore_index: int
) -> None:
    """ValueError for the first label that is neither a class nor ignored.

    Args:
        label: (R,) labels of runs.
        start: (R,) where each run begins in the flattened batch.
        shape: (B, H, W) or (B, D, H, W) of the batch.
        num_classes: Number of classes.
        ignore_index: Label of pixels without a class.
    """
    label = label.astype(np.int64)
    bad = ((label < 0) | (label >= num_classes)) & (label != ignore_index)
    if bad.any():
        names = ("image", "row", "column") if len(shape) == 3 else ("image", "slice", "row", "column")
        where = zip(names, np.unravel_index(start[bad][0], shape), strict=True)
        raise ValueError(
            f"label {label[bad][0]} at {', '.join(f'{name} {index}' for name, index in where)} is neither a class "
            f"0..{num_classes - 1} nor ignore_index {ignore_index}"
        )


def check_state(state: Any, num_classes: int, tail_classes: Sequence[int]) -> None:
    """ValueError for a saved state that is not one of a bank of these classes: it may be damaged, or a stranger's."""
    names = ("num_classes", "tail_classes", "generator", "images_seen", "images_with", "samples")
    if not isinstance(state, Mapping) or not set(names) <= state.keys():
        raise ValueError(f"the saved bank is damaged: it must be a mapping with {', '.join(names)}")
    for name, own in (("num_classes", num_classes), ("tail_classes", list(tail_classes))):
        if state[name] != own:
            raise ValueError(
                f"the saved bank has {name} = {state[name]}, this one {own}: build it as it was when saved"
            )
    seen, seen_with = state["images_seen"], state["images_with"]
    if type(seen) is not int or not isinstance(seen_with, list) or len(seen_with) != len(tail_classes):
        raise ValueError("the saved bank is damaged: its counts of images do not fit")
    if any(type(count) is not int or not 0 <= count <= seen for count in seen_with):
        raise ValueError("the saved bank is damaged: its counts of images do not fit")
    check_samples(state["samples"], tail_classes)


def check_samples(samples: Any, tail_classes: Sequence[int]) -> None:
    """ValueError for what is not a list of whole samples, all of one format, for each tail class."""
    if not isinstance(samples, list) or len(samples) != len(tail_classes):
        raise ValueError("the saved bank is damaged: it must hold a list of samples for each tail class")
    formats = set()
    for class_id, of_class in zip(tail_classes, samples, strict=True):
        if not isinstance(of_class, list) or not all(map(_is_sample, of_class)):
            raise ValueError(f"the saved bank is damaged: a sample of class {class_id} is not whole")
        formats |= {(s["values"].dtype, s["values"].shape[1], "depth" in s) for s in of_class}
    if len(formats) > 1:
        raise ValueError(f"the saved bank is damaged: its samples have several formats, {formats}")


def _is_sample(sample: Any) -> bool:
    """Whether the runs lie within the canvas, apart from each other and in order, with as many pixels as values."""
    if not isinstance(sample, Mapping) or sample.keys() - {"depth"} != {"runs", "values", "height", "width"}:
        return False
    runs, values, width = sample["runs"], sample["values"], sample["width"]
    sides = [sample[name] for name in ("depth", "height", "width") if name in sample]
    if any(type(side) is not int or side < 1 for side in sides) or math.prod(sides) >= 2**31:
        return False
    if (
        not isinstance(runs, Tensor)
        or runs.dtype != torch.int32
        or runs.ndim != 2
        or len(runs) != 3
        or not runs.numel()
    ):
        return False
    if not isinstance(values, Tensor) or values.ndim != 2 or not values.shape[1]:
        return False
    if values.dtype != torch.uint8 and not values.is_floating_point():
        return False
    start, length, component = runs.long()
    end = start + length
    ordered = (start[1:] >= end[:-1]).all() & (start[0] >= 0) & (end[-1] <= math.prod(sides))
    inside = (length > 0).all() & (start % width + length <= width).all() & (component >= 0).all()
    return bool(ordered & inside) and int(length.sum()) == len(values)
