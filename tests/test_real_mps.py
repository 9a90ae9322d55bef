"""On a Mac with MPS: the numbers of the CPU. `tests/test_mps.py` pretends such a device elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aucseg import AUCSegLoss, GroupedMeanIoU, PixelAUROC, PixelAveragePrecision, TailMemoryBank
from aucseg.losses import build_loss
from aucseg.losses.build import LOSSES

DEVICE = "mps"
pytestmark = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs a Mac with MPS")

COUNTS = [500.0, 300.0, 150.0, 40.0, 10.0]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"scores": "softmax"},
    {"scores": "identity"},
    {"surrogate": "exponential"},
    {"surrogate": "logistic"},
    {"surrogate": "hinge", "margin": 0.5},
    {"strategy": "ova"},
]


def batch(size: int, target_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(5, (2, target_size, target_size), generator=generator)
    target[:, 0] = 255
    return torch.randn(2, 5, size, size, generator=generator), target


def value_and_gradient(
    loss: torch.nn.Module, logits: torch.Tensor, target: torch.Tensor, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = logits.to(device).requires_grad_()
    value = loss.to(device)(leaf, target.to(device))
    value.backward()
    assert leaf.grad is not None
    return value.detach().cpu(), leaf.grad.cpu()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("size", "target_size"), [(24, 24), (8, 30)])
def test_aucseg_loss(options: dict[str, Any], size: int, target_size: int) -> None:
    logits, target = batch(size, target_size)
    loss = AUCSegLoss(**options)
    expected = value_and_gradient(loss, logits, target, "cpu")
    torch.testing.assert_close(value_and_gradient(loss, logits, target, DEVICE), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("aucseg", "blv")])  # blv draws noise
def test_losses_to_compare_with(name: str) -> None:
    logits, target = batch(8, 30)
    loss = build_loss(name, COUNTS)
    expected = value_and_gradient(loss, logits, target, "cpu")
    torch.testing.assert_close(value_and_gradient(loss, logits, target, DEVICE), expected, rtol=1e-4, atol=1e-6)


def test_metrics() -> None:
    logits, target = batch(8, 30)
    for metric in (GroupedMeanIoU(5), PixelAUROC(5), PixelAveragePrecision(5)):
        metric.update(logits, target)
        expected = metric.details()
        metric.reset()
        metric.to(DEVICE).update(logits.to(DEVICE), target.to(DEVICE))
        for name, value in metric.details().items():
            torch.testing.assert_close(value.cpu(), expected[name], rtol=1e-5, atol=1e-6, equal_nan=True)


def test_bank_pastes_on_the_device() -> None:
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, device=DEVICE)
    masks = torch.zeros(4, 32, 32, dtype=torch.uint8, device=DEVICE)
    masks[0, 4:12, 4:12] = 1
    bank = TailMemoryBank([1], 2, scope="image", placement="uniform", resize_ratio=1.0, presence_target=1.0)
    bank(images, masks)
    pasted_images, pasted_masks = bank(images, masks)
    assert pasted_masks.device.type == pasted_images.device.type == DEVICE
    assert pasted_masks.flatten(1).eq(1).any(1).all()
