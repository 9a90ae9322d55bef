"""Losses of volumes: value and gradient are those of the voxels laid out as one image."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.losses import AUCSegLoss, PairwiseAUCLoss

OPTIONS: list[dict[str, Any]] = [
    {},
    {"auc_weight": 4.0, "class_weight": [1.0, 2.0, 0.5], "label_smoothing": 0.1},
    {"strategy": "ova", "surrogate": "exponential"},
    {"surrogate": "hinge", "margin": 0.4},  # by sorting
    {"max_fpr": 0.3, "surrogate": "squared_hinge"},
]


def volumes(num_channels: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, num_channels, 3, 4, 5, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randint(max(num_channels, 2), (2, 3, 4, 5), generator=generator)
    return logits, target.where(torch.rand(target.shape, generator=generator) > 0.1, 255)


def value_and_gradient(loss_fn: torch.nn.Module, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    loss = loss_fn(logits, target)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_image_of_all_planes(options: dict[str, Any], num_channels: int) -> None:
    if num_channels == 1 and "class_weight" in options:
        options = options | {"class_weight": [1.0, 2.0]}
    loss_fn = AUCSegLoss(**options)
    logits, target = volumes(num_channels)
    value, gradient = value_and_gradient(loss_fn, logits, target)
    expected, slope = value_and_gradient(loss_fn, logits.flatten(2, 3), target.flatten(1, 2))
    assert value > 0
    torch.testing.assert_close((value, gradient.flatten(2, 3)), (expected, slope))
    last = logits.contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(value_and_gradient(loss_fn, last, target), (value, gradient))


@pytest.mark.parametrize("options", OPTIONS)
def test_small_logits_are_upsampled(options: dict[str, Any]) -> None:
    loss_fn = AUCSegLoss(**options)
    logits, _ = volumes()
    target = torch.randint(3, (2, 7, 4, 11), generator=torch.Generator().manual_seed(1))
    value, gradient = value_and_gradient(loss_fn, logits, target)
    logits = logits.clone().requires_grad_()
    upsampled = F.interpolate(logits, size=(7, 4, 11), mode="trilinear", align_corners=False)
    expected = loss_fn(upsampled.flatten(2, 3), target.flatten(1, 2))
    torch.testing.assert_close((value, gradient), (expected.detach(), torch.autograd.grad(expected, logits)[0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, _ = volumes(dtype=dtype)
    target = torch.randint(3, (2, 6, 8, 10), generator=torch.Generator().manual_seed(1))
    value, gradient = value_and_gradient(AUCSegLoss(), logits, target)
    expected, slope = value_and_gradient(AUCSegLoss(), logits.float(), target)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close((value, gradient.float()), (expected, slope), rtol=1e-2, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    logits, target = volumes()
    for wrong, message in ((target[:, 0], "does not fit"), (target[..., :4], "larger than the target")):
        with pytest.raises(ValueError, match=message):
            AUCSegLoss()(logits, wrong)
    with pytest.raises(ValueError, match="target must have shape"):
        PairwiseAUCLoss()(logits, target[..., :4])
    with pytest.raises(ValueError, match="one to three spatial dimensions"):
        AUCSegLoss()(logits[..., None], target[..., None].expand(-1, -1, -1, -1, 2))
