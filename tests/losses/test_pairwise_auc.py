"""PairwiseAUCLoss against the definition, the released code's values, and its invariances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aucseg.losses import AUCSegLoss, PairwiseAUCLoss, pairwise_auc_loss
from tests.losses.surrogate_cases import NAMES, SMOOTH, WITH_SCORES, tolerance
from tests.oracles import auc_loss_oracle, value_and_grad

GOLDEN = Path(__file__).parents[1] / "data" / "auc_loss.npz"
SHAPES = {
    "binary": (2, 1, 5, 4),
    "two": (2, 2, 5, 4),
    "image": (2, 5, 5, 4),
    "volume": (2, 3, 2, 3, 4),
    "signal": (3, 4, 9),
}


def example(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits that require grad, and labels of which one is ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=dtype).mul_(2)
    target = torch.randint(0, max(shape[1], 2), (shape[0], *shape[2:]), generator=generator)
    target.flatten()[3] = 255
    return logits.requires_grad_(), target


def assert_same(logits: Tensor, target: Tensor, tolerance: float, *args: Any, **options: Any) -> None:
    value, (gradient,) = value_and_grad(pairwise_auc_loss(logits, target, *args, **options), logits)
    expected, (slope,) = value_and_grad(auc_loss_oracle(logits, target, *args, **options), logits)
    assert abs(value - expected) <= tolerance * expected.abs()
    assert (gradient - slope).abs().max() <= tolerance * slope.abs().max()


@pytest.mark.parametrize("case", ["all_present", "absent_and_ignored", "long_tail"])
@pytest.mark.parametrize("strategy", ["ovo", "ova"])
@pytest.mark.parametrize(("name", "surrogate"), [("square", "square"), ("exp", "exponential")])
def test_released_code(case: str, strategy: str, name: str, surrogate: str) -> None:
    data = np.load(GOLDEN)
    target = torch.from_numpy(data[f"{case}/target"])
    num_present = len(set(target.unique().tolist()) - {255})
    for margin in (0.5, 1.0, 2.0):
        logits = torch.from_numpy(data[f"{case}/logits"]).requires_grad_()
        key = f"{case}/{name}/gamma{margin}/{strategy}"
        # The released code adds up the classes of "ova", we average.
        scale = num_present if strategy == "ova" else 1
        loss = scale * pairwise_auc_loss(logits, target, surrogate, margin=margin, strategy=strategy)
        value, (gradient,) = value_and_grad(loss, logits)
        expected = torch.from_numpy(data[f"{key}/grad"])
        assert value.item() == pytest.approx(float(data[f"{key}/value"]), rel=2e-6)
        assert (gradient - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("surrogate", NAMES)
@pytest.mark.parametrize("strategy", ["ovo", "ova"])
def test_definition(shape: tuple[int, ...], surrogate: str, strategy: str) -> None:
    logits, target = example(shape)
    for scores in [scores for name, scores in WITH_SCORES if name == surrogate]:
        if scores == "softmax" and shape[1] == 1:
            continue
        for margin in (0.3, 1.5):
            options: dict[str, Any] = {"margin": margin, "scores": scores, "strategy": strategy}
            assert_same(logits, target, tolerance(surrogate), surrogate, **options)


@pytest.mark.parametrize("surrogate", SMOOTH)
def test_smooth_surrogates_are_for_scores_in_0_to_1(surrogate: str) -> None:
    with pytest.raises(ValueError, match=r"scores='identity' is not offered.*take one of .*'exponential'"):
        PairwiseAUCLoss(surrogate, scores="identity")


def test_every_surrogate_is_in_the_tables() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "loss.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f'| `"{name}"`' in (PairwiseAUCLoss.__doc__ or "")
        assert f'| `"{name}"`' in guide


@pytest.mark.parametrize("surrogate", NAMES)
def test_pair_weight(surrogate: str) -> None:
    logits, target = example((2, 5, 5, 4))
    weight = torch.rand(5, 5, generator=torch.Generator().manual_seed(1))
    for margin in (0.5, 1.5):
        options: dict[str, Any] = {"margin": margin, "pair_weight": weight}
        assert_same(logits, target, tolerance(surrogate), surrogate, **options)
        assert_same(logits, target, tolerance(surrogate), surrogate, scores="softmax", **options)


def test_absent_classes_are_picked_out() -> None:
    # Few of many classes present: the channels of the others are not scored and get no gradient.
    logits = torch.randn(2, 40, 6, 6, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([3, 17, 38])[torch.randint(0, 3, (2, 6, 6))]
    for strategy in ("ovo", "ova"):
        assert_same(logits, target, 1e-11, "square", strategy=strategy)
        assert_same(logits, target, 1e-11, "exponential", strategy=strategy, scores="softmax")
    assert_same(logits, target, 1e-11, "square", pair_weight=torch.rand(40, 40))
    (gradient,) = torch.autograd.grad(pairwise_auc_loss(logits, target), logits)
    others = [c for c in range(40) if c not in (3, 17, 38)]
    assert not gradient[:, others].any()
    assert gradient[:, [3, 17, 38]].all()


@pytest.mark.parametrize("piece", [1, 7, 64, 10_000])
def test_pieces_do_not_matter(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aucseg.losses.auc.pieces.CPU_PIECE", (piece, piece))
    logits, target = example((5, 3, 7, 5))
    assert_same(logits, target, 1e-11)
    assert_same(logits.reshape(5, 3, 35).movedim(1, 2).reshape(175, 3), target.flatten(), 1e-11)


@pytest.mark.parametrize("surrogate", ["square", "hinge", "exponential", "logistic"])
@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_gradcheck(surrogate: str, scores: str) -> None:
    logits, target = example((2, 3, 3, 2))

    def function(x: Tensor) -> Tensor:
        return pairwise_auc_loss(x, target, surrogate, scores=scores, margin=0.9 if surrogate == "hinge" else 1.0)

    assert torch.autograd.gradcheck(function, (logits,), atol=1e-6)


def test_scaled_upstream_gradient() -> None:
    logits, target = example((2, 4, 5, 5))
    for scale in (-3.0, 0.0, 1e4):
        (plain,) = torch.autograd.grad(pairwise_auc_loss(logits, target), logits)
        (scaled,) = torch.autograd.grad(scale * pairwise_auc_loss(logits, target), logits)
        assert torch.allclose(scaled, scale * plain, rtol=1e-12, atol=0)


@pytest.mark.parametrize("surrogate", NAMES)
@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (2, 1, 5, 5), (2, 2, 5, 5)])
@pytest.mark.parametrize("margin", [0.5, 1.0])
def test_no_pairs(surrogate: str, shape: tuple[int, ...], margin: float) -> None:
    logits = torch.randn(shape, requires_grad=True)
    one_pixel = torch.full((2, 5, 5), 255)
    one_pixel[0, 0, 0] = 1
    for target in (one_pixel, torch.zeros(2, 5, 5).long(), torch.ones(2, 5, 5).long(), torch.full((2, 5, 5), 255)):
        for strategy in ("ovo", "ova"):
            loss = pairwise_auc_loss(logits, target, surrogate, strategy=strategy, margin=margin)
            value, (gradient,) = value_and_grad(loss, logits)
            assert value == 0
            assert not gradient.any()
    empty = torch.randn(0, *shape[1:], requires_grad=True)
    loss = pairwise_auc_loss(empty, torch.zeros(0, 5, 5).long(), surrogate, margin=margin)
    loss.backward()
    assert loss.item() == 0


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_classes=st.integers(2, 6),
    size=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    surrogate=st.sampled_from(NAMES),
    strategy=st.sampled_from(["ovo", "ova"]),
    margin=st.sampled_from([0.4, 1.0, 2.0]),
)
def test_invariances(
    seed: int, num_classes: int, size: tuple[int, int, int], surrogate: str, strategy: str, margin: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = size
    logits = torch.randn(batch, num_classes, height, width, generator=generator, dtype=torch.float64)
    target = torch.randint(0, num_classes + 1, size, generator=generator)
    target[target == num_classes] = 255

    def loss(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        value, (gradient,) = value_and_grad(pairwise_auc_loss(x, y, surrogate, strategy=strategy, margin=margin), x)
        return value, gradient

    value, gradient = loss(logits, target)
    flat, labels = logits.movedim(1, -1).reshape(-1, num_classes), target.flatten()
    flat_gradient = gradient.movedim(1, -1).reshape(-1, num_classes)

    order = torch.randperm(labels.numel(), generator=generator)
    permuted, permuted_gradient = loss(flat[order], labels[order])
    assert torch.allclose(permuted, value, rtol=1e-9)
    assert torch.allclose(permuted_gradient, flat_gradient[order], rtol=1e-7, atol=1e-12)

    padded, padded_gradient = loss(
        torch.cat([flat, 9 * torch.ones(3, num_classes)]), torch.cat([labels, torch.full((3,), 255)])
    )
    assert torch.allclose(padded, value, rtol=1e-9)
    assert torch.allclose(padded_gradient[:-3], flat_gradient, rtol=1e-7, atol=1e-12)
    assert not padded_gradient[-3:].any()

    renaming = torch.randperm(num_classes, generator=generator)
    renamed_logits = torch.empty_like(flat)
    renamed_logits[:, renaming] = flat
    renamed_labels = torch.where(labels == 255, 255, renaming[labels.clamp(max=num_classes - 1)])
    renamed, renamed_gradient = loss(renamed_logits, renamed_labels)
    assert torch.allclose(renamed, value, rtol=1e-9)
    assert torch.allclose(renamed_gradient[:, renaming], flat_gradient, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("surrogate", ["square", "exponential", "logistic", "hinge"])
def test_memory_format_and_strides(surrogate: str) -> None:
    logits = torch.randn(2, 5, 12, 10)
    target = torch.randint(0, 5, (2, 12, 10))

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        value, (gradient,) = value_and_grad(pairwise_auc_loss(x, y, surrogate, margin=0.7), x)
        return value, gradient

    value, gradient = run(logits, target)
    wide = torch.randn(2, 5, 12, 20)
    wide[..., ::2] = logits
    layouts = {
        "channels_last": (logits.contiguous(memory_format=torch.channels_last), target),
        "strided": (wide[..., ::2], target),
        "transposed logits": (logits.transpose(2, 3).contiguous().transpose(2, 3), target),
        "transposed target": (logits, target.transpose(1, 2).contiguous().transpose(1, 2)),
        "expanded": (logits[:1].expand(2, -1, -1, -1), target),
    }
    for name, (x, y) in layouts.items():
        expected = run(logits[:1].repeat(2, 1, 1, 1), target) if name == "expanded" else (value, gradient)
        other = run(x, y)
        assert torch.allclose(other[0], expected[0], rtol=1e-6), name
        assert torch.allclose(other[1], expected[1], rtol=1e-5, atol=1e-9), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 4, 16, 16).mul(3).to(dtype)
    target = torch.randint(0, 4, (2, 16, 16))
    for surrogate in ("square", "exponential", "hinge"):
        low = logits.clone().requires_grad_()
        full = logits.float().requires_grad_()
        value, (gradient,) = value_and_grad(pairwise_auc_loss(low, target, surrogate, margin=0.5), low)
        expected, (slope,) = value_and_grad(pairwise_auc_loss(full, target, surrogate, margin=0.5), full)
        assert value.dtype == torch.float32
        assert gradient.dtype == dtype
        assert torch.allclose(value, expected, rtol=1e-6)
        assert torch.equal(gradient, slope.to(dtype))


def test_autocast_does_not_change_the_loss() -> None:
    logits, target = torch.randn(2, 4, 16, 16, requires_grad=True), torch.randint(0, 4, (2, 16, 16))
    for options in ({}, {"scores": "softmax"}, {"pair_weight": torch.rand(4, 4)}):
        expected, (slope,) = value_and_grad(pairwise_auc_loss(logits, target, **options), logits)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = pairwise_auc_loss(logits, target, **options)
            value, (gradient,) = value_and_grad(loss, logits)
        assert torch.equal(value, expected)
        assert torch.equal(gradient, slope)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_label_dtypes(dtype: torch.dtype) -> None:
    logits, target = example((2, 4, 6, 6))
    expected = pairwise_auc_loss(logits, target)
    assert torch.equal(pairwise_auc_loss(logits, target.to(dtype)), expected)


def test_other_ignore_labels() -> None:
    logits, target = example((2, 4, 6, 6))
    expected = auc_loss_oracle(logits, target)
    for label in (-100, 4, 1000):
        loss = pairwise_auc_loss(logits, torch.where(target == 255, label, target), ignore_index=label)
        assert torch.allclose(loss, expected, rtol=1e-11)
    # A class of its own as the ignore label: void = 0.
    void = auc_loss_oracle(logits, target.masked_fill(target == 255, 0), ignore_index=0)
    assert torch.allclose(
        pairwise_auc_loss(logits, target.masked_fill(target == 255, 0), ignore_index=0), void, rtol=1e-11
    )


def test_more_than_256_classes() -> None:
    logits = torch.randn(1, 300, 8, 8, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 300, (9,))[torch.randint(0, 9, (1, 8, 8))]
    target[0, 0, 0] = 255  # here a class
    assert_same(logits, target, 1e-11, ignore_index=999)
    with pytest.raises(ValueError, match=r"ignore_index=255 \(the default\) is one of the 300 classes"):
        pairwise_auc_loss(logits, target)


def test_binary_is_two_classes() -> None:
    logits, target = example((3, 1, 6, 6))
    assert_same(logits, target, 1e-11)
    boolean = torch.rand(3, 6, 6) < 0.3
    assert torch.equal(pairwise_auc_loss(logits, boolean), pairwise_auc_loss(logits, boolean.long()))


def test_module_is_the_function() -> None:
    logits, target = example((2, 4, 6, 6))
    options: dict[str, Any] = {"margin": 1.5, "scores": "softmax", "pair_weight": torch.rand(4, 4)}
    module = PairwiseAUCLoss("exponential", **options)
    assert torch.equal(module(logits, target), pairwise_auc_loss(logits, target, "exponential", **options))
    assert not module.state_dict()
    assert "margin=1.5" in repr(module)


@pytest.mark.parametrize(("surrogate", "margin"), [("square", 1.0), ("squared_hinge", 0.5)])
def test_second_derivative_is_refused(surrogate: str, margin: float) -> None:
    logits, target = example((2, 4, 6, 6))
    loss = pairwise_auc_loss(logits, target, surrogate, margin=margin)
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="once"):
        torch.autograd.grad(gradient.pow(2).sum(), logits)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch calls the operators one by one
def test_loss_of_several_batches_by_vmap() -> None:
    logits, target = torch.randn(3, 2, 4, 6, 6), torch.randint(4, (3, 2, 6, 6))
    mapped = torch.vmap(PairwiseAUCLoss())(logits, target)
    one_by_one = torch.stack([PairwiseAUCLoss()(*pair) for pair in zip(logits, target, strict=True)])
    torch.testing.assert_close(mapped, one_by_one)


def test_backward_twice_over_a_retained_graph() -> None:
    for surrogate in ("square", "hinge"):
        logits, target = example((2, 4, 6, 6))
        loss = pairwise_auc_loss(logits, target, surrogate, margin=0.5)
        first = torch.autograd.grad(loss, logits, retain_graph=True)[0].clone()
        assert torch.equal(first, torch.autograd.grad(loss, logits)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"surrogate": "cubic"}, "surrogate must be .*'squared_hinge'.*'cubic'"),
        ({"scores": "tanh"}, "scores must be 'sigmoid', "),
        ({"strategy": "all"}, "strategy must be 'ovo' or"),
        ({"margin": 0.0}, "margin must be a number above 0"),
        ({"margin": float("nan")}, "margin must be a number above 0"),
        ({"margin": 1e30}, "margin must be a number above 0, at most 1e"),
        ({"ignore_index": 2**63}, "must fit into 64 bits"),
        ({"max_fpr": 0.0, "surrogate": "hinge"}, r"max_fpr must lie in \(0, 1\]"),
        ({"max_fpr": 0.3}, "max_fpr .* not for 'square'"),
        ({"surrogate": "logistic", "scores": "identity"}, "scores='identity' is not offered"),
        ({"pair_weight": torch.ones(2, 3)}, r"\(K, K\)"),
        ({"pair_weight": -torch.ones(2, 2)}, "not negative"),
        ({"pair_weight": torch.ones(2, 2), "strategy": "ova"}, "'ovo' only"),
        ({"surrogate": torch.abs}, "not smooth enough"),
        ({"surrogate": lambda t: 1 / t}, "finite"),
        ({"surrogate": lambda t: t.sum()}, "same shape"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairwiseAUCLoss(**options)


def test_misspelt_options() -> None:
    makers: list[Any] = [PairwiseAUCLoss, AUCSegLoss]
    for make in makers:
        name = make.__name__
        with pytest.raises(TypeError, match=rf"{name} has no option 'marign'; did you mean margin\?"):
            make(marign=1.0)
        with pytest.raises(TypeError, match=rf"{name} has no option 'memory'; known: .*max_fpr"):
            make(memory="ema")
    with pytest.raises(TypeError, match="AUCSegLoss has no option 'label_smoth'; did you mean label_smoothing"):
        AUCSegLoss(label_smoth=0.1)


def test_bad_inputs() -> None:
    logits, target = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5).long()
    cases: list[tuple[Any, Any, str]] = [
        (logits, target[:, :3], r"target must have shape \(2, 4, 5\)"),
        (logits[0, 0, 0], target, "logits must be"),
        (logits[:, :0], target, "K >= 1"),
        (logits, target.to("meta"), "target is on meta"),
        (logits, target + 3, r"target\[0, 0, 0\] is 3: labels must lie in 0..2"),
        (logits, target - 1, r"target\[0, 0, 0\] is -1"),
        (logits[:, :1], target + 2, r"labels must lie in 0..1"),
    ]
    for x, y, message in cases:
        with pytest.raises(ValueError, match=message):
            pairwise_auc_loss(x, y)
    with pytest.raises(TypeError, match=r"logits must be a torch\.Tensor, got list"):
        pairwise_auc_loss([1.0], target)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="floating point"):
        pairwise_auc_loss(logits.long(), target)
    with pytest.raises(TypeError, match="integer class ids"):
        pairwise_auc_loss(logits, target.float())
    late = target.clone()
    late[1, 2, 3] = 200
    with pytest.raises(ValueError, match=r"target\[1, 2, 3\] is 200.*ignore label 255"):
        pairwise_auc_loss(logits, late)
    with pytest.raises(ValueError, match=r"softmax.*constant"):
        pairwise_auc_loss(logits[:, :1], target, scores="softmax")
    with pytest.raises(ValueError, match="3 channels"):
        pairwise_auc_loss(logits, target, pair_weight=torch.ones(4, 4))


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: PairwiseAUCLoss(), lambda: PairwiseAUCLoss("hinge", margin=0.5)])
def test_compiles_without_a_graph_break(make: Any) -> None:
    logits, target = example((2, 4, 6, 6), dtype=torch.float32)
    module = make()
    expected, (slope,) = value_and_grad(module(logits, target), logits)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    value, (gradient,) = value_and_grad(compiled(logits, target), logits)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, slope)
    torch._dynamo.reset()
