"""Extreme logits, rare classes, many pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.losses import AUCSegLoss, pairwise_auc_loss
from aucseg.losses.auc.pieces import Buffers
from tests.losses.surrogate_cases import NAMES, SMOOTH, WITH_SCORES
from tests.oracles import value_and_grad


@pytest.mark.parametrize(("surrogate", "scores"), WITH_SCORES)
@pytest.mark.parametrize("margin", [0.5, 1.0, 50.0])
def test_huge_logits_are_finite(surrogate: str, scores: str, margin: float) -> None:
    if surrogate in SMOOTH and margin > 8:
        return
    target = torch.randint(0, 3, (2, 8, 8))
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([-1e4, 0.0, 1e4], dtype=dtype)[torch.randint(0, 3, (2, 3, 8, 8))].requires_grad_()
        for loss_fn in (pairwise_auc_loss, lambda x, y, s, **o: AUCSegLoss(surrogate=s, **o)(x, y)):
            value, (gradient,) = value_and_grad(
                loss_fn(logits, target, surrogate, scores=scores, margin=margin), logits
            )
            assert bool(value.isfinite())
            assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("surrogate", NAMES)
def test_infinite_logits_with_sigmoid_scores(surrogate: str) -> None:
    logits = torch.randn(2, 3, 8, 8)
    logits[0, :, 0, 0] = torch.tensor([float("inf"), -float("inf"), 0.0])
    logits[1, 1] = -float("inf")
    logits.requires_grad_()
    target = torch.randint(0, 3, (2, 8, 8))
    for margin in (0.5, 1.0):
        value, (gradient,) = value_and_grad(pairwise_auc_loss(logits, target, surrogate, margin=margin), logits)
        clipped = pairwise_auc_loss(logits.detach().clamp(-100, 100), target, surrogate, margin=margin)
        assert torch.allclose(value, clipped, rtol=1e-6)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("num_classes", [3, 9])
@pytest.mark.parametrize("scores", ["sigmoid", "softmax", "identity"])
@pytest.mark.parametrize(("surrogate", "margin"), [("square", 1.0), ("hinge", 0.5), ("squared_hinge", 0.5)])
def test_a_nan_is_in_the_loss_where_it_is_in_the_gradient(
    surrogate: str, margin: float, scores: str, num_classes: int
) -> None:
    logits = torch.randn(1, num_classes, 4, 4)
    logits[0, 2, 1, 1] = float("nan")  # of a class that does not occur
    logits.requires_grad_()
    loss = pairwise_auc_loss(logits, torch.arange(16).view(1, 4, 4) % 2, surrogate, margin=margin, scores=scores)
    loss.backward()
    assert logits.grad is not None
    assert bool(loss.isnan()) == bool(logits.grad.isnan().any())
    assert scores != "softmax" or loss.isnan()


def test_nan_logits_are_not_hidden_and_can_be_named() -> None:
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    logits[1, 2, 3, 4] = float("nan")
    assert pairwise_auc_loss(logits, target).isnan()
    assert AUCSegLoss()(logits, target).isnan()
    for bad in (float("nan"), float("inf")):
        logits[1, 2, 3, 4] = bad
        with pytest.raises(ValueError, match=r"logits\[1, 2, 3, 4\] is (nan|inf): image 1, class 2"):
            pairwise_auc_loss(logits, target, check_finite=True)
    # An infinite logit with softmax scores is a NaN loss, as for torch's own cross-entropy.
    assert pairwise_auc_loss(logits, target, scores="softmax").isnan()


@pytest.mark.parametrize("surrogate", ["square", "hinge", "exponential", "logistic"])
@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_ignored_pixels_never_count(surrogate: str, scores: str) -> None:
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    target[0, 2:5] = 255
    options: dict[str, Any] = {"scores": scores, "margin": 0.5}
    expected, (slope,) = value_and_grad(
        pairwise_auc_loss(logits.requires_grad_(), target, surrogate, **options), logits
    )
    both, (both_slope,) = value_and_grad(AUCSegLoss(surrogate=surrogate, **options)(logits, target), logits)
    spoiled = logits.detach().clone()
    spoiled[0, :, 2] = float("nan")
    spoiled[0, :, 3] = float("inf")
    spoiled.requires_grad_()
    value, (gradient,) = value_and_grad(pairwise_auc_loss(spoiled, target, surrogate, **options), spoiled)
    assert torch.allclose(value, expected, rtol=1e-6)
    assert torch.allclose(gradient, slope, rtol=1e-5, atol=1e-9)
    value, (gradient,) = value_and_grad(AUCSegLoss(surrogate=surrogate, **options)(spoiled, target), spoiled)
    assert torch.allclose(value, both, rtol=1e-6)
    assert torch.allclose(gradient, both_slope, rtol=1e-5, atol=1e-9)


def test_shifted_identity_scores_keep_their_digits() -> None:
    # The loss depends on differences only; an offset of 1e4 must not eat them.
    logits, target = torch.randn(2, 3, 16, 16), torch.randint(0, 3, (2, 16, 16))
    for surrogate, offset in (("square", 1e4), ("hinge", 1e4), ("exponential", 100.0)):
        shifted = (logits.double() + offset).float()
        centred = (shifted.double() - offset).float()
        expected = pairwise_auc_loss(centred, target, surrogate, scores="identity")
        assert torch.allclose(pairwise_auc_loss(shifted, target, surrogate, scores="identity"), expected, rtol=1e-5)


def test_a_nearly_perfect_model_keeps_its_digits() -> None:
    target = torch.randint(0, 3, (2, 16, 16))
    logits = torch.where(torch.arange(3)[None, :, None, None] == target[:, None], 8.0, -8.0)
    logits = (logits + torch.randn(2, 3, 16, 16)).requires_grad_()
    for surrogate in ("square", "hinge"):
        value, (gradient,) = value_and_grad(pairwise_auc_loss(logits, target, surrogate), logits)
        wide = logits.detach().double().requires_grad_()
        expected, (slope,) = value_and_grad(pairwise_auc_loss(wide, target, surrogate), wide)
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)
        assert (gradient - slope).abs().max() <= 1e-5 * slope.abs().max()


def rare_class(num_pixels: int, rare: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, num_pixels, generator=generator)
    target = torch.zeros(1, num_pixels, dtype=torch.uint8)
    target[0, torch.randperm(num_pixels, generator=generator)[:rare]] = 1
    return logits, target


@pytest.mark.parametrize("surrogate", ["square", "exponential", "logistic"])
def test_rare_class(surrogate: str) -> None:
    logits, target = rare_class(2_000_000, 2)
    assert pairwise_auc_loss(logits, target, surrogate).item() == pytest.approx(
        pairwise_auc_loss(logits.double(), target, surrogate).item(), rel=1e-6
    )


@pytest.mark.slow
def test_hundred_million_pixels() -> None:
    logits, target = rare_class(100_000_000, 10)
    value = pairwise_auc_loss(logits, target).item()
    assert value == pytest.approx(pairwise_auc_loss(logits.double(), target).item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("ce_weight", [0.0, 1.0])
@pytest.mark.parametrize("scores", ["sigmoid", "softmax", "identity"])
def test_no_uninitialized_memory_reaches_the_gradient(
    dtype: torch.dtype, factor: int, ce_weight: float, scores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Buffers.take

    def poisoned(self: Buffers, name: str, piece: Tensor) -> Tensor:
        return take(self, name, piece).fill_(float("nan"))

    target = torch.randint(1, 3, (2, 8, 8))  # classes 0 and 3 are absent
    logits = torch.randn(2, 4, 8 // factor, 8 // factor).to(dtype).requires_grad_()
    loss = AUCSegLoss(ce_weight=ce_weight, scores=scores)
    expected = value_and_grad(loss(logits, target), logits)
    monkeypatch.setattr(Buffers, "take", poisoned)
    value, (gradient,) = value_and_grad(loss(logits, target), logits)
    assert bool(gradient.isfinite().all())
    assert torch.equal(value, expected[0])
    assert torch.equal(gradient, expected[1][0])
    if ce_weight == 0 and scores != "softmax":
        assert not gradient[:, [0, 3]].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shift", [0.0, 30.0, 1000.0])
def test_cross_entropy_of_a_confident_model_keeps_its_digits(shift: float, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(5, (1, 32, 32), generator=generator)
    logits = torch.randn(1, 5, 32, 32, generator=generator)
    logits = logits.scatter_add(1, target[:, None], torch.full((1, 1, 32, 32), 12.0)) + shift
    exact = logits.double().requires_grad_()
    expected, (slope,) = value_and_grad(F.cross_entropy(exact, target, label_smoothing=smoothing), exact)
    loss = AUCSegLoss(auc_weight=0.0, label_smoothing=smoothing)
    value, (gradient,) = value_and_grad(loss(logits.requires_grad_(), target), logits)
    assert abs(value - expected) <= 1e-4 * expected
    own, own_slope = (grads.gather(1, target[:, None]) for grads in (gradient, slope))
    assert ((own - own_slope).abs() <= 1e-4 * own_slope.abs()).all()
