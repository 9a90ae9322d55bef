"""Class ids and the ignore label: what they may be, and labels that are neither."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

DEFAULT_IGNORE_INDEX = 255
_CLASS_IDS = "give class ids, a list of integers (DatasetCard.ids_of finds them)"


def class_ids(classes: Any, name: str, num_classes: int) -> list[int]:
    """The ids in a list of classes, as plain integers.

    Args:
        classes: Integers of any kind, in whatever can be iterated.
        name: What to call the setting in messages.
        num_classes: K.

    Raises:
        TypeError: Something else, such as names, or a mask that says of each class whether it is meant.
        ValueError: An id outside 0..K-1.

    Example:
        >>> class_ids([False, True], "tail_classes", 2)
        Traceback (most recent call last):
        ...
        TypeError: tail_classes holds False: give class ids, a list of integers (DatasetCard.ids_of finds them)
    """
    if not isinstance(classes, Iterable):
        raise TypeError(f"{name} is {classes!r}: {_CLASS_IDS}")
    ids = [_class_id(entry, name) for entry in classes]
    for class_id in ids:
        if not 0 <= class_id < num_classes:
            raise ValueError(f"{name} holds {class_id}, which is outside 0..{num_classes - 1}")
    return ids


def _class_id(entry: Any, name: str) -> int:
    # Python and torch take a truth for 0 or 1.
    is_truth = isinstance(entry, bool) or str(getattr(entry, "dtype", "")).endswith("bool")
    number: Any = None if is_truth else entry
    try:
        return operator.index(number)
    except TypeError as error:
        raise TypeError(f"{name} holds {entry!r}: {_CLASS_IDS}") from error


def refuse_default_ignore_label(ignore_index: int, num_classes: int) -> None:
    """Refuses the default ignore label where it is one of the classes, as their pixels would not count.

    Raises:
        ValueError: It is 255, and there are more classes than 255.

    Example:
        >>> refuse_default_ignore_label(255, 300)
        Traceback (most recent call last):
        ...
        ValueError: ignore_index=255 (the default) is one of the 300 classes: choose another ignore label, such as -100
    """
    if ignore_index == DEFAULT_IGNORE_INDEX < num_classes:
        raise ValueError(
            f"ignore_index={DEFAULT_IGNORE_INDEX} (the default) is one of the {num_classes} classes: choose another "
            "ignore label, such as -100"
        )


def is_integer(value: object) -> bool:
    """Whether a value is a whole number of any kind, NumPy's included, and no truth value.

    Example:
        >>> is_integer(3), is_integer(True), is_integer(3.0)
        (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_ignore_index(ignore_index: Any) -> None:
    """Refuses an ignore label that no mask can hold.

    Raises:
        TypeError: It is not an integer.
        ValueError: It does not fit into 64 bits.

    Example:
        >>> check_ignore_index("255")
        Traceback (most recent call last):
        ...
        TypeError: ignore_index must be an integer, got '255'
    """
    if not is_integer(ignore_index):
        raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index must fit into 64 bits, got {ignore_index}")


def refuse_other_labels(labels: Tensor, num_classes: int, name: str) -> None:
    """Refuses labels outside 0..K-1 where all pixels count; waits for the device.

    Args:
        labels: int64 labels of the pixels that count, of any shape.
        num_classes: K.
        name: What to call them in messages.

    Raises:
        ValueError: There is such a label.

    Example:
        >>> refuse_other_labels(torch.tensor([0, 7]), 5, "predicted")
        Traceback (most recent call last):
        ...
        ValueError: predicted holds label 7: expected 0..4 wherever the target is not ignored
    """
    outside = (labels < 0) | (labels >= num_classes)
    if bool(outside.any()):
        raise ValueError(
            f"{name} holds label {int(labels[outside][0])}: expected 0..{num_classes - 1} wherever the target is not "
            "ignored"
        )


def assert_labels(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Like `check_labels`, without waiting: the device reports a wrong label later, as a RuntimeError.

    Devices other than CPUs and CUDA, which have no such assertion, report nothing.
    """
    if target.device.type in ("cpu", "cuda"):
        fine = ((target >= 0) & (target < num_classes)) | (target == ignore_index)
        torch._assert_async(fine.all(), other_label_message(num_classes, ignore_index))


def other_label_message(num_classes: int, ignore_index: int) -> str:
    """What a device says of a label that is neither a class nor the ignore label."""
    return f"a label is neither in 0..{num_classes - 1} nor the ignore label {ignore_index}"


def check_labels(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Refuses labels that are neither a class nor the ignore label; waits for the device.

    Args:
        target: Labels of any shape, integers or bool.
        num_classes: K.
        ignore_index: The ignore label.

    Raises:
        ValueError: There is such a label; the message says which and where.

    Example:
        >>> check_labels(torch.tensor([[0, 7]]), 5, 255)
        Traceback (most recent call last):
        ...
        ValueError: target[0, 1] is 7: labels must lie in 0..4 or be the ignore label 255
    """
    if target.dtype == torch.bool:
        return
    if target.dtype in (torch.uint16, torch.uint32):  # torch has few operations for these
        target = target.to(torch.int64)
    low, high = (int(value) for value in torch.aminmax(target))
    if low >= 0 and high < num_classes:
        return
    target = target.to(torch.int64)  # numbers are compared in the dtype of the tensor, where they may wrap around
    bad = ((target < 0) | (target >= num_classes)) & (target != ignore_index)
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"target[{', '.join(map(str, where))}] is {int(target[where])}: labels must lie in "
            f"0..{num_classes - 1} or be the ignore label {ignore_index}"
        )
