"""Hinge and squared hinge by sorting, and one-way partial AUC."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aucseg.losses import AUCSegLoss, PairwiseAUCLoss, pairwise_auc_loss
from tests.oracles import auc_loss_oracle, partial_auc_oracle, value_and_grad
from tests.pretended_device import MPS, NoWaiting, PretendedMPS


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    margin=st.floats(0.01, 8.0),
    scale=st.floats(0.1, 30.0),
    surrogate=st.sampled_from(["hinge", "squared_hinge"]),
    scores=st.sampled_from(["identity", "sigmoid", "softmax"]),
    strategy=st.sampled_from(["ovo", "ova"]),
)
def test_any_margin_any_scores(
    seed: int, margin: float, scale: float, surrogate: str, scores: str, strategy: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    target = torch.randint(0, 4, (2, 5, 4), generator=generator)
    target[target == 3] = 255
    loss = pairwise_auc_loss(logits, target, surrogate, margin=margin, scores=scores, strategy=strategy)
    plain = auc_loss_oracle(logits, target, surrogate, margin=margin, scores=scores, strategy=strategy)
    value, (gradient,) = value_and_grad(loss, logits)
    expected, (slope,) = value_and_grad(plain, logits)
    assert torch.allclose(value, expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(gradient, slope, rtol=1e-7, atol=1e-10)


def test_ties() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)[torch.randint(0, 3, (2, 3, 6, 6))].requires_grad_()
    target = torch.randint(0, 3, (2, 6, 6))
    for surrogate in ("hinge", "squared_hinge"):
        loss = pairwise_auc_loss(logits, target, surrogate, margin=0.5, scores="identity")
        plain = auc_loss_oracle(logits, target, surrogate, margin=0.5, scores="identity")
        value, (gradient,) = value_and_grad(loss, logits)
        expected, (slope,) = value_and_grad(plain, logits)
        assert torch.allclose(value, expected, rtol=1e-12)
        assert torch.allclose(gradient, slope, rtol=1e-10, atol=1e-14)


def test_linear_and_sorted_paths_agree() -> None:
    # max_fpr = 1 sorts, without it a margin of 1 is linear.
    logits, target = torch.randn(2, 4, 6, 6, dtype=torch.float64, requires_grad=True), torch.randint(0, 4, (2, 6, 6))
    for surrogate in ("hinge", "squared_hinge"):
        for scores in ("sigmoid", "softmax"):
            plain = pairwise_auc_loss(logits, target, surrogate, scores=scores)
            value, (gradient,) = value_and_grad(plain, logits)
            ranked = pairwise_auc_loss(logits, target, surrogate, scores=scores, max_fpr=1.0)
            other, (slope,) = value_and_grad(ranked, logits)
            assert torch.allclose(value, other, rtol=1e-10)
            assert torch.allclose(gradient, slope, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("max_fpr", [0.01, 0.1, 0.3, 0.99])
@pytest.mark.parametrize("strategy", ["ovo", "ova"])
@pytest.mark.parametrize("surrogate", ["hinge", "squared_hinge"])
def test_partial_auc(max_fpr: float, strategy: str, surrogate: str) -> None:
    logits = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 8, 8))
    target[0, 0] = 255
    for margin in (0.4, 1.0):
        loss = pairwise_auc_loss(logits, target, surrogate, margin=margin, strategy=strategy, max_fpr=max_fpr)
        plain = partial_auc_oracle(logits, target, surrogate, max_fpr, margin=margin, strategy=strategy)
        value, (gradient,) = value_and_grad(loss, logits)
        expected, (slope,) = value_and_grad(plain, logits)
        assert torch.allclose(value, expected, rtol=1e-10)
        assert torch.allclose(gradient, slope, rtol=1e-8, atol=1e-13)


def test_partial_auc_counts() -> None:
    # ceil(0.1 * 30) is 3 although 0.1 * 30 is not exactly 3; the easy 27 negatives get no gradient.
    logits = torch.cat([torch.zeros(1, 1), torch.arange(30.0)[:, None] / 10]).requires_grad_()
    target = torch.tensor([1] + [0] * 30)
    pairwise_auc_loss(logits, target, "hinge", max_fpr=0.1).backward()
    assert logits.grad is not None
    assert int((logits.grad[1:] != 0).sum()) == 3
    assert bool((logits.grad[28:] != 0).all())


def test_works_beside_cross_entropy_and_on_binary_masks() -> None:
    logits, target = torch.randn(2, 1, 6, 6, requires_grad=True), torch.randint(0, 2, (2, 12, 12))
    loss = AUCSegLoss(surrogate="squared_hinge", margin=0.3, max_fpr=0.5)(logits, target)
    loss.backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert bool(logits.grad.any())


def test_larger_than_a_toy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (4000,), generator=generator)
    loss = pairwise_auc_loss(logits, target, "hinge", margin=0.25)
    value, (gradient,) = value_and_grad(loss, logits)
    expected, (slope,) = value_and_grad(auc_loss_oracle(logits, target, "hinge", margin=0.25), logits)
    assert torch.allclose(value, expected, rtol=1e-11)
    assert torch.allclose(gradient, slope, rtol=1e-8, atol=1e-14)


def test_process_group_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"surrogate='hinge' with margin=0.5.*do not travel between processes"):
        PairwiseAUCLoss("hinge", margin=0.5, process_group=object())  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:the AUC loss runs as operations of torch:UserWarning")
@pytest.mark.parametrize("most", [pytest.param(1, marks=pytest.mark.slow), 150, 1 << 22])
@pytest.mark.parametrize(
    "options", [{"margin": 0.5, "scores": "softmax"}, {"max_fpr": 0.3}, {"max_fpr": 0.3, "strategy": "ova"}], ids=str
)
def test_an_accelerator_sorts_several_channels_at_a_time_without_a_wait(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], most: int
) -> None:
    monkeypatch.setattr("aucseg.losses.auc.by_sorting._MOST_SCORES", most)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 6, generator=generator, requires_grad=True)
    target = torch.randint(0, 3, (2, 6, 6), generator=generator)  # the last class is absent
    target[0, :2] = 255
    expected, (slope,) = value_and_grad(pairwise_auc_loss(logits, target, "squared_hinge", **options), logits)
    with NoWaiting():
        found: Any = pairwise_auc_loss(logits.to(MPS), target.to(MPS), "squared_hinge", **options)
    torch.testing.assert_close(found.held, expected, rtol=1e-5, atol=0)
    with PretendedMPS():
        moved: Any = logits.detach().to(MPS).requires_grad_()
        pairwise_auc_loss(moved, target.to(MPS), "squared_hinge", **options).backward()
    torch.testing.assert_close(moved.grad.held, slope, rtol=1e-4, atol=1e-8)
