"""What a loss step allocates beyond the logits and their gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from benchmarks.label_maps import IGNORE, realistic, worst_case
from benchmarks.peak_memory import peak_bytes
from torch import Tensor

from aucseg.losses import AUCSegLoss, PairwiseAUCLoss


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


def test_the_count_knows_what_cross_entropy_keeps() -> None:
    # Log-softmax, its gradient, and the gradient of the logits.
    logits, target = torch.randn(1, 8, 64, 64, requires_grad=True), torch.zeros(1, 64, 64).long()
    peak = peak_bytes(lambda: gradient(F.cross_entropy(logits, target), logits))
    assert peak == pytest.approx(3 * logits.nbytes, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [realistic, worst_case])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_tenth_of_the_logits(labels: object, memory_format: torch.memory_format) -> None:
    assert callable(labels)
    target = labels(60, 1, 512, torch.Generator().manual_seed(0))
    logits = torch.randn(1, 60, 512, 512).contiguous(memory_format=memory_format).requires_grad_()
    loss = PairwiseAUCLoss(ignore_index=IGNORE)
    assert peak_bytes(lambda: gradient(loss(logits, target), logits)) - logits.nbytes < 0.1 * logits.nbytes


@pytest.mark.slow
def test_no_full_resolution_logits() -> None:
    target = realistic(60, 2, 512, torch.Generator().manual_seed(0))
    logits = torch.randn(2, 60, 128, 128, requires_grad=True)
    auc, both = PairwiseAUCLoss(ignore_index=IGNORE), AUCSegLoss(ignore_index=IGNORE)

    def plain() -> Tensor:
        full = F.interpolate(logits, size=(512, 512), mode="bilinear", align_corners=False)
        return gradient(F.cross_entropy(full, target, ignore_index=IGNORE) + auc(full, target), logits)

    assert peak_bytes(plain) > 8 * peak_bytes(lambda: gradient(both(logits, target), logits))
