"""What is differentiated how, and gradients that keep their digits and their range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn

from aucseg.losses import AUCSegLoss, PairwiseAUCLoss, accumulate
from tests.oracles import auc_loss_oracle, surrogate_oracle, value_and_grad

LOSSES = {
    "auc": PairwiseAUCLoss(),
    "both": AUCSegLoss(),
    "cross-entropy": AUCSegLoss(auc_weight=0.0),
    "sorted": PairwiseAUCLoss("hinge", margin=0.5),
    "pair weights": PairwiseAUCLoss(pair_weight=torch.ones(3, 3)),
}


def sample() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 4, generator=generator), torch.randint(3, (2, 4, 4), generator=generator)


def by_dual_numbers(loss_fn: Callable[[Tensor], Tensor], logits: Tensor) -> None:
    with forward_ad.dual_level():
        loss_fn(forward_ad.make_dual(logits, torch.ones_like(logits)))


WAYS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "forward_ad": by_dual_numbers,
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    "linearize": lambda f, x: torch.func.linearize(f, x),
    "grad": lambda f, x: torch.func.grad(f)(x),
    "vjp": lambda f, x: torch.func.vjp(f, x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "hessian": lambda f, x: torch.func.hessian(f)(x),
    "grad of each": lambda f, x: torch.func.vmap(torch.func.grad(f))(x[None]),
    "forward-mode jacobian": lambda f, x: torch.autograd.functional.jacobian(
        f, x, strategy="forward-mode", vectorize=True
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # torch's own use of it
@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_that_the_loss_does_not_have_are_refused(name: str, way: str) -> None:
    loss_fn = LOSSES[name]
    logits, target = sample()
    with pytest.raises(NotImplementedError, match=r"backward pass alone.*use loss\.backward\(\)"):
        WAYS[way](lambda x: loss_fn(x, target), logits)


def test_forward_mode_derivatives_of_parts_and_of_a_model_are_refused() -> None:
    logits, target = sample()
    loss_fn, model = AUCSegLoss(), nn.Conv2d(3, 3, 1)
    sums = loss_fn.class_sums(logits, target)
    with pytest.raises(NotImplementedError, match="backward pass alone"):
        torch.func.grad(lambda x: loss_fn.given_sums(sums, x, target))(logits)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    with pytest.raises(NotImplementedError, match="backward pass alone"):
        torch.func.grad(lambda p: loss_fn(torch.func.functional_call(model, p, logits), target))(parameters)
    value = torch.func.functional_call(model, parameters, logits)
    loss_fn(value, target).backward()  # without a transform it is an ordinary call
    assert model.weight.grad is not None


def test_weights_without_a_gradient_are_refused_where_they_ask_for_one() -> None:
    logits, target = sample()
    with pytest.raises(ValueError, match=r"class_weight requires a gradient.*detach\(\)"):
        AUCSegLoss(class_weight=torch.ones(3, requires_grad=True))
    weight = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.5], [1.0, 0.2, 0.0]], requires_grad=True)
    with pytest.raises(ValueError, match=r"pair_weight requires a gradient.*detach\(\)"):
        PairwiseAUCLoss("hinge", margin=0.5, pair_weight=weight)
    # Sums have one, and it is right.
    (found,) = torch.autograd.grad(PairwiseAUCLoss(pair_weight=weight)(logits.double(), target), weight)
    moved = weight.detach().clone()
    for c, a in ((0, 1), (1, 2), (2, 0)):
        values = []
        for step in (1e-4, -1e-4):
            moved[c, a] += step
            values.append(auc_loss_oracle(logits, target, pair_weight=moved).item())
            moved[c, a] -= step
        assert found[c, a].item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-2, abs=1e-6)


def softmax_oracle(logits: Tensor, target: Tensor, surrogate: str) -> Tensor:
    """The definition for `(N, K)` logits and margin 1, with `1 - p` as the sum of the other channels, float64."""
    logits = logits.double()
    total = logits.logsumexp(1)
    terms = []
    for c in range(logits.shape[1]):
        score = (logits[:, c] - total).exp()
        lack = (torch.cat([logits[:, :c], logits[:, c + 1 :]], 1).logsumexp(1) - total).exp()
        for a in range(logits.shape[1]):
            if a != c:
                margin_minus_t = lack[target == c][:, None] + score[target == a][None, :]
                if surrogate == "exponential":
                    terms.append((margin_minus_t - 1).exp().mean())
                else:
                    terms.append(surrogate_oracle(-margin_minus_t, surrogate, margin=0.0).mean())
    return torch.stack(terms).mean()


@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("gap", [0.0, 5.0, 15.0, 30.0, 40.0])
@pytest.mark.parametrize(
    "options",
    [
        {"surrogate": "square"},
        {"surrogate": "hinge"},
        {"surrogate": "exponential"},
        {"surrogate": "hinge", "max_fpr": 1.0},
        {"surrogate": "squared_hinge", "max_fpr": 1.0},
        {"surrogate": "square", "pair_weight": torch.ones(4, 4)},
    ],
    ids=str,
)
def test_softmax_scores_keep_their_digits(options: dict[str, Any], gap: float) -> None:
    check_digits(options, gap, torch.arange(40) % 4)


@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("options", [{"surrogate": "hinge"}, {"surrogate": "hinge", "max_fpr": 1.0}], ids=str)
def test_softmax_scores_keep_their_digits_at_a_gap_of_80(options: dict[str, Any]) -> None:
    check_digits(options, 80.0, torch.arange(40) % 4)  # the squares of 1e-35 leave float32


@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("surrogate", ["square", "hinge", "exponential"])
def test_softmax_scores_keep_their_digits_where_another_class_is_sure(surrogate: str) -> None:
    top = torch.arange(40) % 4
    top[::5] = (top[::5] + 1) % 4
    check_digits({"surrogate": surrogate}, 15.0, top)


@pytest.mark.usefixtures("kernels_in_place")
@pytest.mark.parametrize("surrogate", ["square", "hinge", "exponential", "logistic"])
def test_ignored_pixels_read_nothing_that_was_not_written(surrogate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from aucseg.losses.auc.triton_launches import Passes  # where triton is installed

    target = torch.arange(40) % 4
    target[::3] = 255
    logits = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss_fn = PairwiseAUCLoss(surrogate, scores="softmax")
    _, (expected,) = value_and_grad(loss_fn(logits, target), logits)
    made = Passes.empty_tables
    monkeypatch.setattr(Passes, "empty_tables", lambda self: made(self).fill_(3e38))
    _, (found,) = value_and_grad(loss_fn(logits, target), logits)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def check_digits(options: dict[str, Any], gap: float, top: Tensor) -> None:
    """Value and gradient to five digits, entry by entry; channel `top` of each pixel leads by `gap`."""
    target = torch.arange(40) % 4
    logits = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(40), top] = logits.amax(1) + gap
    loss_fn = PairwiseAUCLoss(scores="softmax", **options)
    value, (gradient,) = value_and_grad(loss_fn(logits.requires_grad_(), target), logits)
    wide = logits.detach().double().requires_grad_()
    expected, (slope,) = value_and_grad(softmax_oracle(wide, target, options["surrogate"]), wide)
    torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=0)
    torch.testing.assert_close(gradient.double(), slope, rtol=5e-5, atol=1e-36)


@pytest.mark.parametrize("smaller", [(4, 4), (2, 4), (4,), (2, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.usefixtures("either_path")
def test_a_steep_exponential_has_a_finite_gradient(dtype: torch.dtype, smaller: tuple[int, ...]) -> None:
    labels = torch.randint(2, (1, *smaller), generator=torch.Generator().manual_seed(0))
    target = labels
    for dim in range(1, target.dim()):
        target = target.repeat_interleave(4, dim)
    for margin in (20.0, 300.0):
        # Wrong everywhere, so that gradients are of the order of exp(margin).
        logits = torch.stack([8.0 * labels - 4.0, 4.0 - 8.0 * labels], 1).to(dtype).requires_grad_()
        loss_fn = AUCSegLoss(surrogate="exponential", margin=margin)
        value, (gradient,) = value_and_grad(loss_fn(logits, target), logits)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert gradient.abs().amax() > 1e4
        if dtype == torch.float16:
            assert gradient.abs().amax() == torch.finfo(dtype).max


@pytest.mark.usefixtures("either_path")
def test_half_precision_gradients_of_small_logits_are_added_up_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 3, 4, generator=generator).half()
    target = torch.randint(3, (1, 96, 64), generator=generator)
    gradients = []
    for dtype in (torch.float16, torch.float32):
        cast = logits.to(dtype).requires_grad_()
        gradients.append(value_and_grad(1000 * AUCSegLoss()(cast, target), cast)[1][0])
    torch.testing.assert_close(gradients[0], gradients[1].half(), rtol=1.5e-3, atol=1e-6)


def test_more_than_three_dimensions_of_smaller_logits_are_refused() -> None:
    logits, target = torch.zeros(1, 3, 2, 2, 2, 2, requires_grad=True), torch.zeros(1, 2, 2, 2, 2).long()
    AUCSegLoss()(logits, target).backward()
    AUCSegLoss()(torch.zeros(1, 3, 2, 2, 2), torch.zeros(1, 4, 4, 4).long())
    for call in (AUCSegLoss(), AUCSegLoss(surrogate="hinge", margin=0.5), AUCSegLoss().class_sums):
        with pytest.raises(ValueError, match=r"shape \(1, 3, 2, 2, 2, 2\) are smaller .* one to three spatial dim"):
            call(logits, target.repeat_interleave(2, 1))


@pytest.mark.parametrize("surrogate", ["hinge", "squared_hinge"])
@pytest.mark.parametrize("options", [{}, {"max_fpr": 0.5}], ids=str)
@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
def test_infinite_scores_are_not_hidden_by_sorting(surrogate: str, options: dict[str, Any], bad: float) -> None:
    """With identity scores, of positives and of negatives; elsewhere they do not matter."""
    logits, target = sample()
    target = target % 2
    target[0, 0] = 255
    loss_fn = PairwiseAUCLoss(surrogate, margin=0.5, scores="identity", **options)
    expected, (slope,) = value_and_grad(loss_fn(logits.requires_grad_(), target), logits)
    logits = logits.detach()
    logits[:, 2], logits[0, :, 0] = bad, bad  # a class that is absent, and pixels that are ignored
    found, (gradient,) = value_and_grad(loss_fn(logits.requires_grad_(), target), logits)
    assert torch.equal(found, expected)
    assert torch.equal(gradient, slope)
    for channel in range(2):
        spoiled = logits.detach().clone()
        spoiled[1, channel, 2, 2] = bad
        assert loss_fn(spoiled, target).isnan()


def test_micro_batches_from_an_iterator() -> None:
    images, target = sample()
    parts = list(zip(images.split(1), target.split(1), strict=True))
    models = [nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)]
    models[1].load_state_dict(models[0].state_dict())
    expected = accumulate(AUCSegLoss(), models[0], parts)
    assert torch.equal(accumulate(AUCSegLoss(), models[1], iter(parts)), expected)
    assert models[0].weight.grad is not None
    assert models[1].weight.grad is not None
    assert torch.equal(models[1].weight.grad, models[0].weight.grad)
    with pytest.raises(ValueError, match="at least one micro-batch"):
        accumulate(AUCSegLoss(), models[0], iter(()))


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_trilinear_half_precision_equals_interpolating_first(scores: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 2, 3, 4, generator=generator).half().requires_grad_()
    target = torch.randint(3, (1, 4, 6, 8), generator=generator)
    loss_fn = PairwiseAUCLoss("exponential", scores=scores)
    value, (gradient,) = value_and_grad(
        AUCSegLoss(ce_weight=0.0, surrogate="exponential", scores=scores)(logits, target), logits
    )
    full = F.interpolate(logits.float(), scale_factor=2, mode="trilinear", align_corners=False)
    expected, (slope,) = value_and_grad(loss_fn(full, target), logits)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)
