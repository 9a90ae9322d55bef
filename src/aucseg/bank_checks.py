"""Checks of what users give to the memory bank: each message names the value and the way out."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_MASK_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def checked_tail_classes(tail_classes: Iterable[int], num_classes: int, ignore_index: int) -> tuple[int, ...]:
    """The tail classes in ascending order; ValueError for one that cannot be a tail class."""
    tail = sorted(int(class_id) for class_id in tail_classes)
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if not tail:
        raise ValueError("tail_classes is empty: a data set without tail classes needs no bank")
    for class_id, following in zip(tail, [*tail[1:], None], strict=True):
        if not 0 <= class_id < num_classes:
            raise ValueError(f"tail class {class_id} is outside 0..{num_classes - 1}")
        if class_id == following:
            raise ValueError(f"tail class {class_id} is given twice")
        if class_id == ignore_index:
            raise ValueError(f"tail class {class_id} is ignore_index: ignored pixels are never stored")
    return tuple(tail)


def checked_presence(
    presence: Sequence[float] | Tensor | None,
    presence_target: float | None,
    tail_classes: Sequence[int],
    num_classes: int,
) -> list[float] | None:
    """Share of images that hold each tail class, from the shares of all classes; ValueError for what is no share."""
    if presence is None:
        return None
    if presence_target is None:
        raise ValueError("presence has no effect without presence_target: give both or neither")
    shares = [float(share) for share in presence]
    if len(shares) != num_classes:
        raise ValueError(f"presence must hold one share per class ({num_classes}), got {len(shares)}")
    for class_id in tail_classes:
        if not 0 <= shares[class_id] <= 1:
            raise ValueError(f"presence of class {class_id} must be in 0..1, got {shares[class_id]}")
    return [shares[class_id] for class_id in tail_classes]


def check_batch(images: Tensor, masks: Tensor, tail_classes: Sequence[int]) -> None:
    """TypeError or ValueError for images or masks that the bank cannot take."""
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images must be uint8 or floating, got {images.dtype}")
    if masks.dtype not in _MASK_DTYPES:
        raise TypeError(f"masks must be uint8, int16, int32 or int64, got {masks.dtype}")
    if images.ndim != 4 or masks.ndim != 3 or images.shape[0] != masks.shape[0] or images.shape[2:] != masks.shape[1:]:
        raise ValueError(
            "images must be (B, C, H, W) and masks (B, H, W) with the same B, H and W, "
            f"got {tuple(images.shape)} and {tuple(masks.shape)}"
        )
    if images.device != masks.device:
        raise ValueError(f"images and masks must be on one device, got {images.device} and {masks.device}")
    if masks[0:1].numel() >= 2**31:
        raise ValueError(f"an image may have up to 2**31 - 1 pixels, got {tuple(masks.shape[1:])}")
    if tail_classes[-1] > torch.iinfo(masks.dtype).max:
        raise ValueError(f"tail class {tail_classes[-1]} does not fit into masks of {masks.dtype}: use int64")


def check_labels(label: Tensor, start: Tensor, shape: Sequence[int], num_classes: int, ignore_index: int) -> None:
    """ValueError for the first label that is neither a class nor ignored.

    Args:
        label: (R,) labels of runs.
        start: (R,) where each run begins in the flattened batch.
        shape: (B, H, W) of the batch.
        num_classes: number of classes.
        ignore_index: label of pixels without a class.
    """
    bad = ((label < 0) | (label.long() >= num_classes)) & (label.long() != ignore_index)
    if bad.any():
        place = int(start[bad][0])
        image, row, column = place // (shape[1] * shape[2]), place // shape[2] % shape[1], place % shape[2]
        raise ValueError(
            f"label {int(label[bad][0])} at image {image}, row {row}, column {column} is neither a class "
            f"0..{num_classes - 1} nor ignore_index {ignore_index}"
        )
