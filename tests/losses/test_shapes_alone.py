"""Losses of tensors without values, with which tools estimate memory and count operations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from aucseg import AUCSegLoss
from aucseg.losses.build import LOSSES, build_loss

OPTIONS: list[dict[str, Any]] = [
    {"surrogate": "logistic"},
    {"surrogate": "hinge", "scores": "identity"},
    {"surrogate": "squared_hinge", "max_fpr": 0.1},
    {"surrogate": "exponential", "strategy": "ova"},
    {"label_smoothing": 0.1, "class_weight": [1.0, 2.0, 3.0]},
    {"check_finite": True},
]
MAKERS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda name=name: build_loss(name, [100, 10, 1]) for name in LOSSES},  # type: ignore[misc]
    **{str(options): lambda options=options: AUCSegLoss(**options) for options in OPTIONS},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_shapes_alone(name: str, device: str) -> None:
    loss = MAKERS[name]().to(device)
    with nullcontext() if device == "meta" else FakeTensorMode(allow_non_fake_inputs=True):
        logits = torch.zeros(2, 3, 8, 8, device=device, dtype=torch.bfloat16, requires_grad=True)
        value = loss(logits, torch.zeros(2, 16, 16, dtype=torch.int64, device=device))
        value.backward()
    assert (value.shape, value.dtype) == ((), torch.float32)
    assert logits.grad is not None
    assert (logits.grad.shape, logits.grad.dtype) == (logits.shape, logits.dtype)


def test_operations_of_a_step_are_counted() -> None:
    model = nn.Conv2d(3, 4, 3, padding=1)
    counts = []
    for loss in (nn.CrossEntropyLoss(), AUCSegLoss()):
        with FlopCounterMode(display=False) as counter:
            loss(model.to("meta")(torch.zeros(2, 3, 8, 8, device="meta")), torch.zeros(2, 8, 8, device="meta").long())
        counts.append(counter.get_total_flops())
    assert counts[0] == 2 * 2 * 64 * 4 * 27
    assert counts[0] <= counts[1] < 1.01 * counts[0]
