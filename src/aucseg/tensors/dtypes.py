"""Which dtypes numbers, labels and images have, on every device: one rule each, for all that computes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor

# Not uint64, half of which int64 does not have.
LABEL_DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.int64
)  # fmt: skip
# Apple's MPS and Intel's Gaudi have no float64 at all; of Intel's GPUs (xpu) each model says whether it has.
_WITHOUT_FLOAT64 = ("mps", "hpu")
# Values that `wide_sum` adds up in float32 at a time.
_FLOAT32_RUN = 256


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest floating dtype of a device: float64, or float32 where there is no float64.

    What lives on the device and is computed there has at most this dtype. Where float32 is too narrow (counts and sums
    over a data set), results are kept in integers or computed on the CPU, see `float64_of`.

    Args:
        device: The device.

    Example:
        >>> wide_dtype(torch.device("cpu")), wide_dtype(torch.device("mps"))
        (torch.float64, torch.float32)
    """
    if device.type in _WITHOUT_FLOAT64 or (device.type == "xpu" and not _has_float64(device)):
        return torch.float32
    return torch.float64


@lru_cache(maxsize=16)
def _has_float64(device: torch.device) -> bool:
    return bool(getattr(torch.xpu.get_device_properties(device), "has_fp64", False))


def wide_sum(values: Tensor) -> Tensor:
    """Sum of all values, exact to the digits of a float32 result, in `wide_dtype`; differentiable.

    Without float64 the sum is taken in a tree, so that its relative error for N values of one sign is that of a few
    hundred additions and not of N.

    Args:
        values: Any shape; floating point or bool.

    Returns:
        Scalar in the wide dtype of the device.

    Example:
        >>> wide_sum(torch.ones(2, 3))
        tensor(6., dtype=torch.float64)
    """
    wide = wide_dtype(values.device)
    if wide == torch.float64:
        return values.sum(dtype=wide)
    if not values.is_floating_point():
        return values.sum().to(wide)  # in int64
    values = values.to(wide).flatten()
    while values.numel() > 1:
        values = F.pad(values, (0, -values.numel() % _FLOAT32_RUN)).view(-1, _FLOAT32_RUN).sum(1)
    return values.sum()


def float64_of(values: Tensor) -> Tensor:
    """The values in float64, without gradient: where they are, or on the CPU if their device has no float64.

    Waits for such a device, so that it is for results at the end, not for what runs in every step.

    Args:
        values: Any shape; float32, float64 or integers.

    Example:
        >>> float64_of(torch.tensor([1, 2]))
        tensor([1., 2.], dtype=torch.float64)
    """
    if wide_dtype(values.device) == torch.float64:
        return values.detach().double()
    return torch.from_numpy(values.detach().cpu().numpy()).double()


def check_tensor(value: object, name: str) -> None:
    """Refuses what is not a tensor, such as the mapping that models of torchvision return.

    Raises:
        TypeError: It is not one; the message says what it is.

    Example:
        >>> check_tensor({"out": torch.zeros(1, 2, 4, 4)}, "logits")
        Traceback (most recent call last):
        TypeError: logits must be a torch.Tensor, got dict: pass the entry that holds it ('out')
    """
    if not isinstance(value, Tensor):
        keys = ", ".join(map(repr, value)) if isinstance(value, Mapping) else ""
        hint = f": pass the entry that holds it ({keys})" if keys else ""
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}{hint}")


def check_floating_point(values: Tensor, name: str) -> None:
    """Refuses what is not a tensor of floating point numbers.

    Raises:
        TypeError: No tensor, or one of integers.

    Example:
        >>> check_floating_point(torch.zeros(2, dtype=torch.int64), "logits")
        Traceback (most recent call last):
        TypeError: logits must be floating point, got torch.int64
    """
    check_tensor(values, name)
    if not values.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {values.dtype}")


def is_mapped(*tensors: Tensor) -> bool:
    """Whether `torch.vmap` maps over one of them."""
    return any(torch._C._functorch.is_batchedtensor(tensor) for tensor in tensors)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Computes in the dtypes that are written; shapes alone (`device="meta"`) know no autocast.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), without_autocast(torch.device("cpu")):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor is more than a shape, which is all that the device `meta` and torch's fake tensors know.

    Example:
        >>> has_values(torch.zeros(2)), has_values(torch.zeros(2, device="meta"))
        (True, False)
    """
    return tensor.device.type != "meta" and not isinstance(tensor, FakeTensor)


def can_be_asked(*tensors: Tensor) -> bool:
    """Whether values may decide what is done: on a CPU, where nobody waits for them, unless compiled, mapped or fake.

    Example:
        >>> can_be_asked(torch.zeros(2)), can_be_asked(torch.zeros(2, device="meta"))
        (True, False)
    """
    is_cpu = all(tensor.device.type == "cpu" and has_values(tensor) for tensor in tensors)
    return is_cpu and not torch.compiler.is_compiling() and not is_mapped(*tensors)


def plain_tensor(values: Tensor) -> Tensor:
    """The values as a plain tensor where a library has a subclass of its own, such as MONAI's `MetaTensor`.

    What these add to slices, shapes and new tensors is meant for images. Tensors of torch itself that trace or
    distribute (with a `__torch_dispatch__`) stay what they are.

    Example:
        >>> class Tagged(torch.Tensor):
        ...     pass
        >>> type(plain_tensor(torch.ones(2).as_subclass(Tagged))) is torch.Tensor
        True
    """
    is_plain = type(values) is Tensor or type(values).__torch_dispatch__ is not Tensor.__torch_dispatch__
    return values if is_plain else values.as_subclass(Tensor)


def check_label_dtype(labels: Tensor, name: str) -> None:
    """Refuses labels of a dtype that int64 does not hold.

    Args:
        labels: Any shape.
        name: What to call them in messages.

    Raises:
        TypeError: No tensor, or labels that are neither bool nor integers of up to 64 bits; uint64 is refused as well.

    Example:
        >>> check_label_dtype(torch.zeros(2), "target")
        Traceback (most recent call last):
        ...
        TypeError: target must hold integer class ids (bool, uint8 to uint32, int8 to int64), got torch.float32: \
convert labels with target.long(); predictions of a model are turned into labels by argmax
    """
    check_tensor(labels, name)
    if labels.dtype not in LABEL_DTYPES:
        raise TypeError(
            f"{name} must hold integer class ids (bool, uint8 to uint32, int8 to int64), got {labels.dtype}: convert "
            f"labels with {name}.long(); predictions of a model are turned into labels by argmax"
        )


def int64_labels(labels: Tensor, name: str = "target") -> Tensor:
    """Labels as int64, the dtype in which they are compared: in a narrow one a number such as -100 would wrap around.

    Args:
        labels: Any shape; integers of up to 64 bits (uint8 to uint32, int8 to int64) or bool.
        name: What to call them in messages.

    Raises:
        TypeError: See `check_label_dtype`.

    Example:
        >>> int64_labels(torch.tensor([3, 255], dtype=torch.uint8))
        tensor([  3, 255])
    """
    check_label_dtype(labels, name)
    return labels.long()


def in_model_dtype(images: Tensor, model: nn.Module) -> Tensor:
    """Normalized images in the dtype of the model's parameters; unchanged if it has none.

    Example:
        >>> in_model_dtype(torch.zeros(1, 3, 2, 2), nn.Conv2d(3, 5, 1).bfloat16()).dtype
        torch.bfloat16
    """
    dtype = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), images.dtype)
    return images.to(dtype)
