"""Which logits and labels fit together: one rule for losses and metrics."""

from __future__ import annotations

from torch import Tensor

from aucseg.tensors.dtypes import check_floating_point, check_label_dtype

_MAX_UPSAMPLED_DIMENSIONS = 3


def check_logits_and_target(logits: Tensor, target: Tensor, *, upsample: bool = True) -> None:
    """Refuses logits and labels that do not fit together; no value is looked at.

    Args:
        logits: (B, K, *spatial), floating point; (N, K) goes with (N,) labels.
        target: Labels (B, *spatial), integers or bool, on the device of the logits.
        upsample: Whether logits may be smaller than the target, in one to three spatial dimensions.

    Raises:
        TypeError: No tensors, logits that are not floating point, or labels that are not integers.
        ValueError: Shapes or devices that do not fit.

    Example:
        >>> import torch
        >>> check_logits_and_target(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 8, 8).long())
        Traceback (most recent call last):
        ...
        ValueError: target of shape (2, 1, 8, 8) does not fit logits of shape (2, 3, 4, 4): expected (B, *spatial): \
pass target.squeeze(1)
    """
    check_floating_point(logits, "logits")
    check_label_dtype(target, "target")
    shape, labels = tuple(logits.shape), tuple(target.shape)
    if len(shape) < 2 or shape[1] < 1:
        raise ValueError(f"logits must be (N, K) or (B, K, *spatial) with K >= 1, got shape {shape}")
    if not upsample and labels != (shape[0], *shape[2:]):
        raise ValueError(f"target must have shape {(shape[0], *shape[2:])} for logits of shape {shape}, got {labels}")
    if len(labels) != len(shape) - 1 or labels[0] != shape[0]:
        way_out = ": pass target.squeeze(1)" if labels[1:2] == (1,) and len(labels) == len(shape) else ""
        raise ValueError(
            f"target of shape {labels} does not fit logits of shape {shape}: expected (B, *spatial){way_out}"
        )
    if shape[2:] != labels[1:] and len(shape) > 2 + _MAX_UPSAMPLED_DIMENSIONS:
        raise ValueError(
            f"logits of shape {shape} are smaller than the target of shape {labels}, and upsampling is offered for one "
            "to three spatial dimensions: bring one of them to the size of the other first"
        )
    if any(size > full for size, full in zip(shape[2:], labels[1:], strict=True)):
        raise ValueError(
            f"logits of shape {shape} are larger than the target of shape {labels}: resize one of them first"
        )
    if target.numel() and not logits.numel():
        raise ValueError(f"logits of shape {shape} hold no value for the target of shape {labels}")
    if logits.device != target.device:
        raise ValueError(f"logits are on {logits.device} but target is on {target.device}")
