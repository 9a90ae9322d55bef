"""Smooth surrogates by Chebyshev expansion."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.losses import SmoothSurrogate, pairwise_auc_loss
from aucseg.losses.auc.separable import Smooth
from aucseg.losses.auc.surrogates import SURROGATES
from tests.losses.surrogate_cases import SMOOTH
from tests.oracles import auc_loss_oracle, value_and_grad


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_stated_error_holds_for_pixels(name: str, margin: float) -> None:
    known = SURROGATES[name]
    assert issubclass(known, Smooth)
    surrogate = known.expansion(margin)
    assert surrogate.gradient_error <= 1e-6 * margin
    # Sigmoid scores of wide logits reach the corners of the unit square.
    logits = torch.randn(2, 3, 6, 6, dtype=torch.float64).mul(6).requires_grad_()
    target = torch.randint(0, 3, (2, 6, 6))
    value, (gradient,) = value_and_grad(pairwise_auc_loss(logits, target, name, margin=margin), logits)
    expected, (slope,) = value_and_grad(auc_loss_oracle(logits, target, name, margin=margin), logits)
    assert abs(value - expected) <= 2 * surrogate.value_error
    weight = 3 / target.numel()  # no pixel's slope weighs more than about one over its class
    assert (gradient - slope).abs().max() <= 3 * surrogate.gradient_error * weight


def test_a_user_function() -> None:
    def function(t: Tensor) -> Tensor:
        return torch.exp(-1.5 * t) + F.softplus(-t) ** 2

    logits = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 5, 5))
    values = logits.movedim(1, -1).reshape(-1, 3).sigmoid()
    labels = target.flatten()
    terms = [
        function(values[labels == c, c][:, None] - values[labels == a, c]).mean()
        for c in range(3)
        for a in range(3)
        if a != c
    ]
    expected, (slope,) = value_and_grad(torch.stack(terms).mean(), logits)
    for surrogate in (function, SmoothSurrogate(function, tolerance=1e-9)):
        value, (gradient,) = value_and_grad(pairwise_auc_loss(logits, target, surrogate), logits)
        assert torch.allclose(value, expected, rtol=2e-6)
        assert torch.allclose(gradient, slope, rtol=1e-4, atol=1e-8)


def test_a_polynomial_needs_its_own_degree() -> None:
    square = SmoothSurrogate(lambda t: 0.5 * (1 - t) ** 2)
    assert square.degree == 2
    logits, target = torch.randn(2, 3, 5, 5, dtype=torch.float64), torch.randint(0, 3, (2, 5, 5))
    assert torch.allclose(pairwise_auc_loss(logits, target, square), pairwise_auc_loss(logits, target), rtol=1e-12)


def test_tolerance_buys_degree() -> None:
    degrees = [SmoothSurrogate(lambda t: F.softplus(-4 * t), tolerance).degree for tolerance in (1e-2, 1e-5, 1e-8)]
    assert degrees == sorted(set(degrees))


def test_errors() -> None:
    with pytest.raises(TypeError, match="callable"):
        SmoothSurrogate("square")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance"):
        SmoothSurrogate(torch.exp, tolerance=0)
    with pytest.raises(ValueError, match=r"hinge.*sorting"):
        SmoothSurrogate(lambda t: (0.5 - t).clamp(min=0))
