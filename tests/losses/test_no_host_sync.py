"""On an accelerator nothing waits for the device: tensors without data go through every pass.

A fake tensor on "cuda" has a shape but no values: whatever asks for one (`item`, `nonzero`, a shape that depends on
data) raises, and so does arithmetic between devices.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aucseg.losses.auc import torch_passes
from aucseg.losses.auc.by_sorting import sorted_risk
from aucseg.losses.auc.options import AUCOptions, LossOptions

CASES: list[dict[str, Any]] = [
    {},
    {"scores": "softmax"},
    {"scores": "identity"},
    {"surrogate": "exponential"},
    {"surrogate": "logistic"},
    {"surrogate": "hinge", "margin": 1.5},
]


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("cross_entropy", [False, True])
@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("by_pair", [False, True])
def test_passes_ask_for_no_value(options: dict[str, Any], cross_entropy: bool, scale: int, by_pair: bool) -> None:
    passes = LossOptions(AUCOptions(**options), ce_weight=float(cross_entropy), label_smoothing=0.1).passes()
    with FakeTensorMode():
        logits = torch.empty(2, 5, 8, 8, device="cuda")
        target = torch.empty(2, 8 * scale, 8 * scale, dtype=torch.int64, device="cuda")
        scored = torch.empty(5, dtype=torch.bool, device="cuda")
        weight = None if by_pair else torch.empty(6, dtype=torch.float64, device="cuda")
        class_weight = torch.empty(5, device="cuda")
        sums = torch_passes.sums(logits, target, scored, weight, class_weight, passes)
        gradient = torch_passes.gradient(*sums, logits, target, scored, weight, class_weight, passes)
    assert gradient.shape == logits.shape
    assert gradient.device.type == "cuda"


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("scores", ["sigmoid", "softmax", "identity"])
def test_sorting_asks_for_no_value(scores: str, share: float) -> None:
    with FakeTensorMode():
        logits, target = torch.empty(3, 50, device="cuda"), torch.empty(50, dtype=torch.int64, device="cuda")
        weights = torch.empty(3, 3, dtype=torch.float64, device="cuda")
        compute = sorted_risk._init_fn
        value, gradient = compute(logits, target, weights, scores, 255, 0.5, True, share, False)
    assert value.shape == ()
    assert gradient.shape == logits.shape


def test_the_check_itself_notices() -> None:
    with FakeTensorMode(), pytest.raises(Exception, match="_local_scalar_dense"):
        torch.empty(3, device="cuda").sum().item()
