"""The Triton kernels in Triton's interpreter, on the CPU, against operations of torch; `tests/test_gpu.py` has more."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from aucseg.losses import AUCSegLoss
from aucseg.losses.auc import operators, torch_passes
from aucseg.losses.auc.options import PassOptions
from aucseg.losses.micro_batches import accumulate
from aucseg.tensors.kernels import import_kernels
from tests.oracles import auc_loss_oracle, value_and_grad

NUM_CLASSES = 5
SIZES = {
    "full": ((9, 11), (9, 11)),
    "uneven": ((5, 4), (9, 11)),
    "eightfold": ((4, 2), (32, 16)),
    "same-height": ((6, 3), (6, 9)),
}


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the kernels are built for the GPU here, see tests/test_gpu.py")
    from aucseg.losses.auc import triton_passes

    return triton_passes


@pytest.fixture(autouse=True)
def small_blocks(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs an image, several pieces a gradient."""
    from aucseg.losses.auc import triton_launches

    small = {"BLOCK": 64, "BLOCK_CHANNELS_LAST": 32, "ACCELERATOR_PIECE": 300, "PARTS": 16}
    small |= {"PAIR_BLOCK": 16, "PAIR_BLOCKS": 3, "PAIR_LABELS": 16}
    for name, value in small.items():
        monkeypatch.setattr(triton_launches, name, value)


def sample(size: str = "full", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    small, full = SIZES[size]
    logits = 3 * torch.randn(2, NUM_CLASSES, *small, generator=generator)
    target = torch.randint(NUM_CLASSES - 1, (2, *full), generator=generator)  # the last class is absent
    target[0, :2] = 255
    return logits.to(dtype), target


def check(
    kernels: ModuleType,
    options: PassOptions,
    logits: Tensor,
    target: Tensor,
    rtol: float = 1e-4,
    atol: float = 3e-6,
    by_pair: bool = False,
) -> None:
    """Sums and gradient against those of torch's operations.

    Those of Chebyshev polynomials, whose terms cancel, are off by a little more in float32 in both.
    """
    generator = torch.Generator().manual_seed(1)
    num_classes = logits.shape[1]
    assert kernels.offered(logits, target, options, by_pair=by_pair)
    by_label = torch.rand(num_classes + 1, generator=generator, dtype=torch.float64)
    by_label[-1] = 0
    weight = None if by_pair else by_label
    sums_atol = 1e-4 if options.form == "chebyshev" else 1e-6
    class_weight = torch.rand(num_classes, generator=generator)
    every = torch.ones(num_classes, dtype=torch.bool)
    *expected, lse = torch_passes.sums(logits, target, every, weight, class_weight, options)
    *found, found_lse = kernels.sums(logits, target, every, weight, class_weight, options)
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=2e-6, atol=sums_atol)
    if options.needs_lse:
        torch.testing.assert_close(found_lse[target != 255], lse[target != 255])
    positive, negative, entropy = (
        torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in expected
    )
    inputs = (logits, target, every, weight, class_weight, options)
    slope = torch_passes.gradient(positive, negative, entropy, lse, *inputs)
    found_slope = kernels.gradient(positive, negative, entropy, lse, *inputs)
    assert found_slope.dtype == slope.dtype
    assert found_slope.stride() == slope.stride()
    torch.testing.assert_close(found_slope, slope, rtol=rtol, atol=atol)


def settings(
    form: str = "square", scores: str = "sigmoid", cross_entropy: bool = True, margin: float = 1.5
) -> PassOptions:
    degree = 7 if form == "chebyshev" else 0
    return PassOptions(form, margin, degree, scores, 255, cross_entropy, 0.1 if cross_entropy else 0.0)


@pytest.mark.parametrize("size", ["full", "uneven"])
@pytest.mark.parametrize("cross_entropy", [False, True])
@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
@pytest.mark.parametrize("form", ["square", "linear", "exponential"])
def test_sums_and_gradient(kernels: ModuleType, form: str, scores: str, cross_entropy: bool, size: str) -> None:
    check(kernels, settings(form, scores, cross_entropy), *sample(size))


# The interpreter takes a second a case: the other halves are in the slow tier.
FULL_AND_UNEVEN = ["full", pytest.param("uneven", marks=pytest.mark.slow)]


def slow(options: PassOptions) -> Any:
    return pytest.param(options, marks=pytest.mark.slow)


@pytest.mark.parametrize("size", FULL_AND_UNEVEN)
@pytest.mark.parametrize(
    "options",
    [
        settings("chebyshev"),
        slow(settings("chebyshev", "softmax", cross_entropy=False)),
        settings("square", "identity"),
        slow(settings("linear", "identity", cross_entropy=False)),
        slow(settings("exponential", "identity")),
        slow(settings("exponential", margin=30.0)),
    ],
    ids=lambda options: f"{options.form}-{options.scores}-{options.margin:g}",
)
def test_polynomials_and_arithmetic_in_float64(kernels: ModuleType, options: PassOptions, size: str) -> None:
    check(kernels, options, *sample(size), atol=1e-4 if options.form == "chebyshev" else 3e-6)


@pytest.mark.parametrize("size", FULL_AND_UNEVEN)
@pytest.mark.parametrize(
    "options",
    [
        settings(),
        settings("square", "softmax", cross_entropy=False),
        slow(settings("linear", "softmax")),
        slow(settings("exponential", "sigmoid")),
        slow(settings("")),
    ],
    ids=lambda options: f"{options.form}-{options.scores}",
)
def test_negatives_by_channel_and_label(kernels: ModuleType, options: PassOptions, size: str) -> None:
    check(kernels, options, *sample(size), by_pair=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_of_logits(kernels: ModuleType, dtype: torch.dtype) -> None:
    rtol, atol = (1e-2, 1e-3) if dtype == torch.bfloat16 else (1e-9, 1e-12)
    for size in ("full", "uneven"):
        check(kernels, settings("square", "identity"), *sample(size, dtype), rtol, atol)


def test_more_classes_than_a_program_takes(kernels: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 20, 6, 5, generator=generator), torch.randint(20, (2, 6, 5), generator=generator)
    check(kernels, settings("square", "softmax"), logits, target, by_pair=True)
    check(kernels, settings(), logits.contiguous(memory_format=torch.channels_last), target, by_pair=True)


@pytest.mark.parametrize("size", ["eightfold", "same-height"])
def test_other_scales(kernels: ModuleType, size: str) -> None:
    check(kernels, settings(), *sample(size))


def test_cross_entropy_alone(kernels: ModuleType) -> None:
    check(kernels, settings(""), *sample("uneven"))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("form", "scores"), [("", "softmax"), ("square", "softmax"), ("square", "sigmoid")])
def test_cross_entropy_of_confident_pixels_keeps_its_digits(
    kernels: ModuleType, form: str, scores: str, smoothing: float
) -> None:
    logits, target = sample()
    own = target.clamp(max=NUM_CLASSES - 1)[:, None]
    logits = logits.scatter_add(1, own, torch.full(own.shape, 24.0))
    options = PassOptions(form, 1.5, 0, scores, 255, True, smoothing)
    every, weight = torch.ones(NUM_CLASSES, dtype=torch.bool), torch.ones(NUM_CLASSES + 1, dtype=torch.float64)
    weight[-1] = 0
    inputs = (logits, target, every, weight, None, options)
    positive, negative, entropy, lse = kernels.sums(*inputs)
    slope = kernels.gradient(
        torch.zeros_like(positive), torch.zeros_like(negative), torch.ones_like(entropy), lse, *inputs
    )
    exact = logits.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        exact, target, ignore_index=255, reduction="sum", label_smoothing=smoothing
    )
    (expected,) = torch.autograd.grad(loss, exact)
    valid = (target != 255)[:, None]
    torch.testing.assert_close(
        slope.gather(1, own)[valid].double(), expected.gather(1, own)[valid], rtol=1e-4, atol=1e-15
    )


@pytest.mark.parametrize("size", ["full", "uneven"])
def test_half_precision(kernels: ModuleType, size: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        check(kernels, settings(), *sample(size, dtype), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("size", ["full", "uneven"])
@pytest.mark.parametrize("copied", [False, True])
def test_layouts(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, copied: bool, size: str) -> None:
    if copied:
        monkeypatch.setattr("aucseg.losses.auc.triton_launches.MOST_CHANNELS_LAST", 2)
    logits, target = sample(size)
    check(kernels, settings(), logits.contiguous(memory_format=torch.channels_last), target)
    if size == "full":
        flat = logits.movedim(1, -1).reshape(-1, NUM_CLASSES)
        check(kernels, settings(), flat, target.flatten())
        check(kernels, settings(), logits.unsqueeze(2), target.unsqueeze(1))
        for label_dtype in (torch.uint8, torch.int16, torch.int32):
            check(kernels, settings(), logits, target.to(label_dtype))


def test_a_device_without_kernels_is_told_once(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.works_on.cache_clear()
    device = torch.device("cpu")
    assert kernels.works_on(device)

    def no_compiler(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    kernels.works_on.cache_clear()
    monkeypatch.setattr(kernels, "_loss", no_compiler)
    with pytest.warns(UserWarning, match="Triton does not work on cpu .Failed to find C compiler"):
        assert not kernels.works_on(device)
    assert not kernels.works_on(device)  # without a word
    assert kernels.works_on(device, by_pair=True)  # another kernel
    monkeypatch.setattr(kernels.Passes, "pair_sums", no_compiler)
    kernels.works_on.cache_clear()
    with pytest.warns(UserWarning, match="the AUC loss with pair weights and micro-batches falls back"):
        assert not kernels.works_on(device, by_pair=True)
    kernels.works_on.cache_clear()


def test_triton_that_cannot_be_imported_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import_kernels.cache_clear()
    monkeypatch.delattr("aucseg.losses.auc.triton_passes")
    monkeypatch.setitem(sys.modules, "aucseg.losses.auc.triton_passes", None)
    with pytest.warns(UserWarning, match="slower operations of torch, without Triton"):
        assert operators.triton_passes_on(torch.device("cuda")) is None
    assert operators.triton_passes_on(torch.device("cuda")) is None  # without a word
    assert operators.triton_passes_on(torch.device("cpu")) is None
    import_kernels.cache_clear()


def test_counts(kernels: ModuleType) -> None:
    _, target = sample()
    expected = torch.bincount(target[target != 255], minlength=NUM_CLASSES).double()
    assert torch.equal(kernels.counts(target, NUM_CLASSES, 255), expected)
    assert kernels.counts(target[:0], NUM_CLASSES, 255).tolist() == [0] * NUM_CLASSES
    assert kernels.counts(torch.tensor([True, False, True]), 2, 255).tolist() == [1, 2]
    for label in (-1, NUM_CLASSES, 254):
        with pytest.raises(RuntimeError, match=r"a label is neither in 0..4 nor the ignore label 255"):
            kernels.counts(torch.tensor([0, label]), NUM_CLASSES, 255)
    assert kernels.counts(torch.tensor([0, -100]), NUM_CLASSES, -100).tolist() == [1, 0, 0, 0, 0]


@pytest.fixture
def in_place_of_torch(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss takes the kernels on the CPU."""
    take_kernels(monkeypatch, kernels)


def take_kernels(monkeypatch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
    monkeypatch.setattr(operators, "triton_passes_on", lambda device: kernels)


@pytest.mark.usefixtures("in_place_of_torch")
@pytest.mark.parametrize(
    "options", [{}, {"strategy": "ova"}, {"scores": "softmax"}, {"surrogate": "exponential"}], ids=str
)
def test_the_auc_loss_with_kernels_equals_the_definition(options: dict[str, Any]) -> None:
    logits, target = sample()
    logits.requires_grad_()
    value, (gradient,) = value_and_grad(AUCSegLoss(ce_weight=0.0, **options)(logits, target), logits)
    expected, (slope,) = value_and_grad(auc_loss_oracle(logits, target, **options), logits)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, slope.float(), rtol=1e-5, atol=1e-8)


OPTIONS: list[Any] = [
    {},
    {"class_weight": [1.0, 2.0, 0.0, 3.0, 0.5], "label_smoothing": 0.2},
    {"auc_weight": 0.0, "label_smoothing": 0.1},
    {"surrogate": "hinge", "margin": 1.5, "scores": "softmax"},
    {"surrogate": "exponential", "strategy": "ova", "auc_weight": 3.0, "ce_weight": 0.5},
    {"pair_weight": torch.arange(1.0, 26.0).view(5, 5)},
    {"surrogate": "logistic"},
    {"scores": "identity", "label_smoothing": 0.1},
    {"surrogate": "exponential", "margin": 30.0, "ce_weight": 0.0},
    pytest.param(
        {"surrogate": "sigmoid", "strategy": "ova", "scores": "softmax", "auc_weight": 2.0}, marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize("size", ["full", "uneven"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_loss_with_kernels_equals_the_loss_without(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], size: str
) -> None:
    logits, target = sample(size)
    logits.requires_grad_()
    expected, (slope,) = value_and_grad(AUCSegLoss(**options)(logits, target), logits)
    take_kernels(monkeypatch, kernels)
    value, (gradient,) = value_and_grad(AUCSegLoss(**options)(logits, target), logits)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-8)


@pytest.mark.usefixtures("in_place_of_torch")
@pytest.mark.parametrize("options", [{}, {"surrogate": "exponential", "ce_weight": 0.0}, {"auc_weight": 0.0}], ids=str)
def test_the_sums_of_many_programs_take_another_launch(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    logits, target = sample()
    few = value_and_grad(AUCSegLoss(**options)(logits.requires_grad_(), target), logits)
    monkeypatch.setattr("aucseg.losses.auc.triton_launches.FEW_SUMS", 0)
    many = value_and_grad(AUCSegLoss(**options)(logits, target), logits)
    torch.testing.assert_close(many, few, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("in_place_of_torch")
def test_one_logit_a_pixel_micro_batches_and_second_derivatives(kernels: ModuleType) -> None:
    logits, target = sample()
    one = logits[:, :1].clone().requires_grad_()
    labels = torch.where(target == 255, 255, target % 2)
    value, (gradient,) = value_and_grad(AUCSegLoss(ce_weight=0.0)(one, labels), one)
    expected, (slope,) = value_and_grad(auc_loss_oracle(one, labels), one)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, slope.float(), rtol=1e-5, atol=1e-8)

    weight = torch.ones(NUM_CLASSES, NUM_CLASSES, requires_grad=True)
    whole = value_and_grad(AUCSegLoss()(torch.einsum("bkhw,kl->blhw", logits, weight), target), weight)
    model = torch.nn.Conv2d(NUM_CLASSES, NUM_CLASSES, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1)
    parts = [(logits[:1], target[:1]), (logits[1:], target[1:])]
    torch.testing.assert_close(accumulate(AUCSegLoss(), model, parts), whole[0])
    assert model.weight.grad is not None
    torch.testing.assert_close(model.weight.grad.squeeze().t(), whole[1][0], rtol=1e-4, atol=1e-6)

    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(AUCSegLoss()(logits, target), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        gradient.sum().backward()


@pytest.mark.usefixtures("in_place_of_torch")
@pytest.mark.parametrize("options", [{}, {"scores": "softmax"}, {"surrogate": "exponential"}], ids=str)
def test_ignored_pixels_never_count_and_nan_is_not_hidden(options: dict[str, Any]) -> None:
    loss_fn = AUCSegLoss(**options)
    logits, target = sample()
    expected, (slope,) = value_and_grad(loss_fn(logits.requires_grad_(), target), logits)
    spoiled = logits.detach().clone()
    spoiled[0, :, 0], spoiled[0, :, 1] = float("nan"), float("inf")
    value, (gradient,) = value_and_grad(loss_fn(spoiled.requires_grad_(), target), spoiled)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, slope)
    assert (gradient[0, :, :2] == 0).all()
    with torch.no_grad():
        spoiled[1, 2, 3, 4] = float("nan")
    assert loss_fn(spoiled, target).isnan()
    nothing = loss_fn(spoiled, torch.full_like(target, 255))
    assert value_and_grad(nothing, spoiled)[1][0].abs().sum() == nothing == 0


@pytest.mark.usefixtures("in_place_of_torch")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nan_is_not_hidden_where_the_gradient_is_clamped(dtype: torch.dtype) -> None:
    logits, target = sample(dtype=dtype)
    logits[1, 2, 3, 4] = float("nan")
    value, (gradient,) = value_and_grad(AUCSegLoss(surrogate="exponential")(logits.requires_grad_(), target), logits)
    assert value.isnan()
    assert gradient.isnan().any()


@pytest.mark.usefixtures("in_place_of_torch")
def test_the_default_dtype_does_not_matter() -> None:
    """Lightning sets it to half precision for `bf16-true`."""
    logits, target = sample()
    expected = AUCSegLoss()(logits, target)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = AUCSegLoss()(logits, target)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_what_does_not_fit_is_left_to_torch(kernels: ModuleType) -> None:
    def offered(*shapes: tuple[int, ...], form: str = "square", by_pair: bool = False) -> bool:
        logits, target = (torch.empty(shape, device="meta") for shape in shapes)
        return bool(kernels.offered(logits, target, settings(form), by_pair=by_pair))

    assert offered((70000, 5), (70000,))
    assert offered((2, 5, 8, 8), (2, 32, 32))
    assert not offered((70000, 5, 1), (70000, 1))  # images are a direction of the grid
    assert not offered((2**31, 2), (2**31,))
    assert not offered((1, 2, 1, 20000), (1, 1, 70000))  # twice the product of the widths
    assert not offered((1, 5000, 8, 8), (1, 8, 8))
    assert offered((2, 5, 8, 8), (2, 8, 8), form="chebyshev")
    assert not offered((2, 5, 8, 8), (2, 8, 8), form="chebyshev", by_pair=True)


def test_other_accelerators_are_told_once_what_is_slower() -> None:
    operators.warn_without_kernels.cache_clear()
    for kind in ("xpu", "mps"):
        with pytest.warns(UserWarning, match=f"the AUC loss runs as operations of torch on {kind}"):
            assert operators.triton_passes_on(torch.device(kind)) is None
        assert operators.triton_passes_on(torch.device(kind)) is None  # without a word
    assert operators.triton_passes_on(torch.device("cpu")) is None
    operators.warn_without_kernels.cache_clear()


@pytest.mark.usefixtures("in_place_of_torch")
def test_infinite_logits_with_sigmoid_scores() -> None:
    logits, target = sample()
    logits[0, :, 3, 0] = torch.tensor([float("inf"), -float("inf"), 0.0, 1e4, -1e4])
    logits[1, 1] = -float("inf")
    value, (gradient,) = value_and_grad(AUCSegLoss(ce_weight=0.0)(logits.requires_grad_(), target), logits)
    clipped = AUCSegLoss(ce_weight=0.0)(logits.detach().clamp(-100, 100), target)
    torch.testing.assert_close(value, clipped)
    assert gradient.isfinite().all()
