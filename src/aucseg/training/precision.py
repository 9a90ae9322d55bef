"""What half and double precision ask of a training: modules that keep their digits, clipping with a gradient scaler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def keeping_digits(convert: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The conversion of a module's tensors without any loss of precision: devices change, dtypes get wider at most.

    Example:
        >>> [keeping_digits(convert)(torch.ones(2)).dtype for convert in (torch.Tensor.half, torch.Tensor.double)]
        [torch.float32, torch.float64]
    """

    def converted(value: Tensor) -> Tensor:
        new = convert(value)
        is_narrower = value.is_floating_point() and new.element_size() < value.element_size()
        return value.to(new.device) if is_narrower else new

    return converted


def unscales(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer divides by the scale of a gradient scaler within its step, as torch's fused ones do.

    Lightning has the scaler do it for the others, before its hooks that come before a step.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def clip_gradients(plugin: Any, optimizer: torch.optim.Optimizer, value: float, algorithm: str | None) -> None:
    """Clips the gradients of an optimizer that `unscales`, in mixed precision too, where Lightning refuses to.

    Args:
        plugin: Lightning's precision plugin.
        optimizer: A scaler, if the plugin has one, divides its gradients now and remembers that it has.
        value: As Lightning's `gradient_clip_val`.
        algorithm: As Lightning's `gradient_clip_algorithm`.
    """
    from lightning.pytorch.plugins.precision import Precision

    scaler = getattr(plugin, "scaler", None)
    if scaler is not None:
        scaler.unscale_(optimizer)
    Precision.clip_gradients(plugin, optimizer, value, algorithm or "norm")  # type: ignore[arg-type]
