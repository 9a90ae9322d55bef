"""AUCSegLoss against interpolate + cross_entropy + the definition of the AUC loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.losses import AUCSegLoss, PairwiseAUCLoss
from aucseg.statistics.class_statistics import ClassStatistics
from tests.oracles import auc_loss_oracle, value_and_grad


def reference(
    logits: Tensor,
    target: Tensor,
    auc_weight: float,
    ce_weight: float,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    **options: Any,
) -> Tensor:
    """The plain way: upsample, cross-entropy, double loop."""
    if logits.shape[2:] != target.shape[1:]:
        mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[logits.dim()]
        logits = F.interpolate(logits, size=target.shape[1:], mode=mode, align_corners=False)
    two = torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
    weight = None if class_weight is None else class_weight.to(two)
    ce = F.cross_entropy(two, target.long(), weight, ignore_index=255, label_smoothing=label_smoothing)
    auc = auc_loss_oracle(logits, target, **options) if auc_weight else 0.0
    return auc_weight * auc + ce_weight * ce


def labels(num_classes: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, num_classes, shape, generator=generator)
    target.flatten()[::7] = 255
    return target


@pytest.mark.parametrize("piece", [200, 1 << 18], ids=["many bands", "one band"])
@pytest.mark.parametrize(
    ("small", "large"),
    [((4, 5), (16, 20)), ((3, 4), (7, 11)), ((5, 3), (5, 9)), ((1, 1), (6, 5)), ((6, 7), (7, 8)), ((8, 8), (8, 8))],
)
def test_low_resolution(
    small: tuple[int, int], large: tuple[int, int], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aucseg.losses.auc.pieces.CPU_PIECE", (piece, piece))
    target = labels(4, 2, *large)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        logits = torch.randn(2, 4, *small, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
        other: dict[str, Any] = {"scores": "softmax", "surrogate": "exponential"}
        for options in ({}, other):
            loss = AUCSegLoss(0.7, 1.3, **options)(logits, target)
            value, (gradient,) = value_and_grad(loss, logits)
            expected, (slope,) = value_and_grad(reference(logits, target, 0.7, 1.3, **options), logits)
            assert abs(value - expected) < 1e-10 * expected
            assert (gradient - slope).abs().max() < 1e-10 * slope.abs().max()


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scores", ["sigmoid", "softmax", "identity"])
def test_cross_entropy_options(channels: int, label_smoothing: float, weighted: bool, scores: str) -> None:
    if channels == 1 and scores == "softmax":
        return
    logits = torch.randn(2, channels, 5, 6, dtype=torch.float64, requires_grad=True)
    target = labels(max(channels, 2), 2, 10, 9)
    class_weight = torch.rand(max(channels, 2)) if weighted else None
    for auc_weight, ce_weight in ((1.0, 1.0), (0.0, 1.0), (2.0, 0.0)):
        loss = AUCSegLoss(
            auc_weight, ce_weight, class_weight=class_weight, label_smoothing=label_smoothing, scores=scores
        )(logits, target)
        plain = reference(logits, target, auc_weight, ce_weight, class_weight, label_smoothing, scores=scores)
        value, (gradient,) = value_and_grad(loss, logits)
        expected, (slope,) = value_and_grad(plain, logits)
        assert abs(value - expected) < 1e-10 * expected
        assert (gradient - slope).abs().max() < 1e-10 * slope.abs().max()


@pytest.mark.parametrize("upstream", [-2.0, 0.0])
def test_upstream_gradient(upstream: float) -> None:
    logits = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    target = labels(4, 2, 10, 9)
    (gradient,) = torch.autograd.grad(upstream * AUCSegLoss()(logits, target), logits)
    (slope,) = torch.autograd.grad(upstream * reference(logits, target, 1, 1), logits)
    assert torch.allclose(gradient, slope, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("spatial", [((5,), (12,)), ((2, 3, 4), (4, 5, 8)), ((), ())])
def test_other_dimensions(spatial: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    logits = torch.randn(6, 3, *spatial[0], dtype=torch.float64, requires_grad=True)
    target = labels(3, 6, *spatial[1])
    value, (gradient,) = value_and_grad(AUCSegLoss()(logits, target), logits)
    expected, (slope,) = value_and_grad(reference(logits, target, 1, 1), logits)
    assert abs(value - expected) < 1e-10 * expected
    assert (gradient - slope).abs().max() < 1e-10 * slope.abs().max()


def test_sorted_surrogates_and_few_classes_of_many() -> None:
    logits = torch.randn(2, 12, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([2, 5, 11])[torch.randint(0, 3, (2, 9, 10))]
    for options in (
        {"surrogate": "hinge", "margin": 0.4},
        {"surrogate": "square", "pair_weight": torch.rand(12, 12)},
        {},
    ):
        value, (gradient,) = value_and_grad(AUCSegLoss(**options)(logits, target), logits)
        expected, (slope,) = value_and_grad(reference(logits, target, 1, 1, **options), logits)
        assert abs(value - expected) < 1e-10 * expected
        assert (gradient - slope).abs().max() < 1e-10 * slope.abs().max()


def test_no_valid_pixel_gives_zero() -> None:
    logits = torch.randn(2, 4, 5, 6, requires_grad=True)
    for loss_fn in (AUCSegLoss(label_smoothing=0.1), AUCSegLoss(class_weight=torch.ones(4))):
        value, (gradient,) = value_and_grad(loss_fn(logits, torch.full((2, 10, 12), 255)), logits)
        assert value == 0
        assert not gradient.any()
    # Only classes of weight 0: the cross-entropy is 0, not 0 / 0.
    loss = AUCSegLoss(class_weight=torch.tensor([1.0, 1.0, 1.0, 0.0]))(logits, torch.full((2, 10, 12), 3))
    assert loss.item() == 0


@pytest.mark.parametrize("size", [6, 12])
@pytest.mark.parametrize("margin", [0.5, 1.0])  # by sorting, and not
def test_nothing_asked_for_gives_zero(size: int, margin: float) -> None:
    logits = torch.randn(1, 3, size, size, requires_grad=True)
    dirt = torch.full_like(logits, 1e9)  # the gradient may get its memory
    loss = AUCSegLoss(0.0, 0.0, surrogate="hinge", margin=margin)(logits, labels(3, 1, 12, 12))
    del dirt
    assert value_and_grad(loss, logits)[1][0].abs().sum() == loss == 0


def test_mixed_precision_training_step() -> None:
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 5, 3, padding=1)
    images, target = torch.randn(2, 3, 16, 16), labels(5, 2, 32, 32)
    losses = {}
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits = model(images)
            loss = AUCSegLoss()(logits, target)
        model.zero_grad()
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        losses[enabled] = loss.item()
    assert losses[True] == pytest.approx(losses[False], rel=0.02)


def test_training_lowers_both_terms() -> None:
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 4, 1)
    coarse = torch.randint(0, 4, (4, 8, 8))
    target = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    images = F.one_hot(coarse, 4)[..., :3].permute(0, 3, 1, 2).float()
    loss_fn, optimizer = AUCSegLoss(), torch.optim.Adam(model.parameters(), 0.1)
    auc = PairwiseAUCLoss()
    before = [loss_fn(model(images), target).item(), auc(model(images), target[:, ::2, ::2]).item()]
    for _ in range(30):
        optimizer.zero_grad()
        loss_fn(model(images), target).backward()
        optimizer.step()
    after = [loss_fn(model(images), target).item(), auc(model(images), target[:, ::2, ::2]).item()]
    assert after[0] < 0.8 * before[0]
    assert after[1] < 0.8 * before[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auc_weight": -1.0}, "auc_weight must lie in 0..1e"),
        ({"ce_weight": float("inf")}, "ce_weight"),
        ({"label_smoothing": 1.5}, r"label_smoothing must lie in \[0, 1\]"),
        ({"class_weight": torch.tensor([1.0, -1.0])}, "class_weight must be"),
        ({"class_weight": torch.tensor([1j, 1.0])}, r"class_weight must be real numbers, got torch\.complex64"),
        ({"pair_weight": torch.ones(2, 2) * 1j}, r"pair_weight must be real numbers, got torch\.complex64"),
        ({"surrogate": "cubic"}, "surrogate must be 'square', "),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AUCSegLoss(**options)
    rules: list[Any] = [{"rule": "inverse"}, "inverse", ClassStatistics(3)]
    for rule in rules:
        with pytest.raises(TypeError, match=r"class_weight must be numbers, one for each class.* by build_loss"):
            AUCSegLoss(class_weight=rule)


@pytest.mark.parametrize("name", ["auc_weight", "ce_weight", "label_smoothing", "margin", "max_fpr"])
def test_the_text_of_a_number_is_none(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a number, got '1'"):
        AUCSegLoss(**{name: "1"})  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_narrower_module_does_not_round_its_weights(dtype: torch.dtype) -> None:
    """1e5 is infinite in float16, and the loss would be NaN."""
    class_weight, pair_weight = torch.tensor([1.0, 1e5, 1.001]), torch.rand(3, 3)
    loss_fn = AUCSegLoss(class_weight=class_weight, pair_weight=pair_weight)
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    expected = loss_fn(logits, target)
    assert torch.equal(loss_fn.to(dtype)(logits, target), expected)
    torch.testing.assert_close(loss_fn.double().auc.pair_weight, pair_weight.double(), rtol=0, atol=0)


def test_bad_inputs() -> None:
    logits, target = torch.zeros(2, 3, 4, 5), torch.zeros(2, 8, 10).long()
    with pytest.raises(ValueError, match="target must have shape"):
        AUCSegLoss(upsample=False)(logits, target)
    with pytest.raises(ValueError, match="larger than the target"):
        AUCSegLoss()(logits, target[:, :3])
    with pytest.raises(ValueError, match="does not fit"):
        AUCSegLoss()(logits, target[:1])
    with pytest.raises(ValueError, match="class_weight has 4 entries but logits have 3"):
        AUCSegLoss(class_weight=torch.ones(4))(logits, target)


def test_compiles_without_a_graph_break() -> None:
    logits, target = torch.randn(2, 4, 6, 6, requires_grad=True), labels(4, 2, 12, 12)
    module = AUCSegLoss(class_weight=torch.rand(4))
    expected, (slope,) = value_and_grad(module(logits, target), logits)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    value, (gradient,) = value_and_grad(compiled(logits, target), logits)
    assert torch.allclose(value, expected, rtol=1e-6)
    assert torch.allclose(gradient, slope, rtol=1e-5, atol=1e-9)
    torch._dynamo.reset()


def test_masks_and_weights_of_one_logit_say_what_fits() -> None:
    logits, target = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expected \(B, \*spatial\): pass target\.squeeze\(1\)"):
        AUCSegLoss()(logits, target)
    with pytest.raises(ValueError, match="class_weight has 1 entries but logits have one channel, which"):
        AUCSegLoss(class_weight=[2.0])(logits, target.squeeze(1))


def test_targets_of_torchvision_are_compiled() -> None:
    mask = pytest.importorskip("torchvision.tv_tensors").Mask
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))
    compiled = torch.compile(AUCSegLoss(), backend="aot_eager")
    value = compiled(logits, mask(target))
    assert type(value) is torch.Tensor
    torch.testing.assert_close(value, AUCSegLoss()(logits, target))
