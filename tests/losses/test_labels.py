"""Labels of every dtype with every ignore label: numbers are never compared in a dtype where they wrap around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aucseg.inference import OffsetFitter
from aucseg.losses import AUCSegLoss, PairwiseAUCLoss, accumulate, build_loss
from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision
from aucseg.metrics.boundary_iou import boundary_overlap
from tests.oracles import auc_loss_oracle, partial_auc_oracle, value_and_grad

NUM_CLASSES = 4
DTYPES = [torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.int64]
IGNORE = [255, -100, -1, 0, 3]
PATHS: dict[str, dict[str, Any]] = {
    "separable": {},
    "softmax": {"scores": "softmax"},
    "expansion": {"surrogate": "logistic"},
    "sorted": {"surrogate": "hinge", "margin": 0.5},
    "pair weights": {"pair_weight": torch.arange(1.0, 17.0).view(4, 4)},
    "sorted pair weights": {
        "surrogate": "squared_hinge",
        "margin": 0.5,
        "pair_weight": torch.arange(1.0, 17.0).view(4, 4),
    },
    "partial AUC": {"surrogate": "hinge", "margin": 0.5, "max_fpr": 0.3},
}


def largest(dtype: torch.dtype) -> int:
    return torch.iinfo(dtype).max


def sample(dtype: torch.dtype, ignore_index: int, factor: int = 1) -> tuple[Tensor, Tensor]:
    """Logits, and labels with the ignore label wherever the dtype has it."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, NUM_CLASSES, 6, 5, generator=generator)
    target = torch.randint(NUM_CLASSES, (2, 6 * factor, 5 * factor), generator=generator)
    if torch.iinfo(dtype).min <= ignore_index <= largest(dtype):
        target[0, :2] = ignore_index
    return logits.requires_grad_(), target.to(dtype)


def oracle(logits: Tensor, target: Tensor, ignore_index: int, options: dict[str, Any]) -> Tensor:
    target, options = target.long(), dict(options)
    share = options.pop("max_fpr", None)
    if share is not None:
        target = torch.where(target == ignore_index, 255, target)
        return partial_auc_oracle(logits, target, options["surrogate"], share, margin=options["margin"])
    return auc_loss_oracle(logits, target, ignore_index=ignore_index, **options)


def check(path: str, dtype: torch.dtype, ignore_labels: list[int]) -> None:
    options, rtol = PATHS[path], 1e-4 if path == "expansion" else 1e-5
    for ignore_index in ignore_labels:
        logits, target = sample(dtype, ignore_index)
        loss_fn = PairwiseAUCLoss(ignore_index=ignore_index, **options)
        value, (gradient,) = value_and_grad(loss_fn(logits, target), logits)
        expected, (slope,) = value_and_grad(oracle(logits, target, ignore_index, options), logits)
        torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
        torch.testing.assert_close(gradient, slope, rtol=10 * rtol, atol=2e-8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_every_dtype_and_ignore_label(path: str, dtype: torch.dtype) -> None:
    check(path, dtype, IGNORE)


@pytest.mark.usefixtures("kernels_in_place")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_ignore_label_in_the_kernels(dtype: torch.dtype) -> None:
    check("separable", dtype, IGNORE)


@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("ignore_index", [255, -100, 0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_with_cross_entropy_from_smaller_logits(dtype: torch.dtype, ignore_index: int) -> None:
    logits, target = sample(dtype, ignore_index, factor=2)
    value, (gradient,) = value_and_grad(AUCSegLoss(ignore_index=ignore_index)(logits, target), logits)
    full = F.interpolate(logits.double(), scale_factor=2, mode="bilinear", align_corners=False)
    entropy = F.cross_entropy(full, target.long(), ignore_index=ignore_index)
    expected, (slope,) = value_and_grad(entropy + oracle(full, target, ignore_index, {}), logits)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("options", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(
    ("dtype", "label", "ignore_index"),
    [(torch.uint8, 156, -100), (torch.uint8, 255, -1), (torch.uint16, 65436, -100), (torch.int8, -1, 255)],
)
def test_what_only_wraps_around_to_the_ignore_label_is_refused(
    dtype: torch.dtype, label: int, ignore_index: int, options: dict[str, Any]
) -> None:
    logits, target = sample(dtype, ignore_index)
    target[1, 2, 3] = label
    with pytest.raises(ValueError, match=rf"target\[1, 2, 3\] is {label}: .* or be the ignore label {ignore_index}"):
        PairwiseAUCLoss(ignore_index=ignore_index, **options)(logits, target)


@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("options", [{}, {"surrogate": "hinge", "margin": 0.5}], ids=str)
def test_a_class_that_wraps_around_to_the_ignore_label_counts(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 160, 4, 4, generator=generator, requires_grad=True)
    target = torch.zeros(1, 4, 4, dtype=torch.uint8)
    target[0, :2] = 156
    value, (gradient,) = value_and_grad(PairwiseAUCLoss(ignore_index=-100, **options)(logits, target), logits)
    expected, (slope,) = value_and_grad(oracle(logits, target, -100, options), logits)
    assert expected > 0.1
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-8)


@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("num_channels", [1, 2])
def test_bool_labels(num_channels: int, path: str) -> None:
    options = {**PATHS[path]}
    if num_channels == 1 and path == "softmax":
        options["scores"] = "sigmoid"  # softmax of one channel is refused
    if "pair_weight" in options:
        options["pair_weight"] = torch.ones(num_channels, num_channels)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, num_channels, 6, 5, generator=generator)
    target = torch.rand(2, 6, 5, generator=generator) < 0.3
    for ignore_index in (255, 0):
        loss_fn = AUCSegLoss(ignore_index=ignore_index, **options)
        found = value_and_grad(loss_fn(logits.requires_grad_(), target), logits)
        expected = value_and_grad(loss_fn(logits, target.long()), logits)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1][0], expected[1][0])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool], ids=str)
def test_micro_batches(dtype: torch.dtype) -> None:
    model = torch.nn.Conv2d(2, 2, 1)
    images = torch.randn(2, 2, 6, 5)
    target = torch.randint(2, (2, 6, 5))
    expected = AUCSegLoss()(model(images), target)
    parts = list(zip(images.split(1), target.to(dtype).split(1), strict=True))
    torch.testing.assert_close(accumulate(AUCSegLoss(), model, parts), expected.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint64, torch.complex64], ids=str)
def test_other_dtypes_are_refused_with_the_way_out(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"integer class ids .*, got {dtype}: convert labels with target\.long\(\)"):
        PairwiseAUCLoss()(torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=dtype))


@pytest.mark.parametrize("name", ["ce", "aucseg"])
def test_what_torchvision_returns_is_not_taken_for_logits(name: str) -> None:
    logits, target = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    with pytest.raises(TypeError, match=r"logits must be a torch.Tensor, got dict: pass the entry .*'out', 'aux'"):
        build_loss(name)({"out": logits, "aux": logits}, target)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PairwiseAUCLoss()(torch.zeros(1, 300, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)),
        lambda: build_loss("ce")(torch.zeros(1, 300, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)),
        lambda: build_loss("dice")(torch.zeros(1, 300, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)),
        lambda: GroupedMeanIoU(300),
        lambda: PixelAUROC(300),
        lambda: PixelAveragePrecision(300),
        lambda: OffsetFitter(300),
        lambda: boundary_overlap(torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.int64), 300),
    ],
    ids=["auc", "ce", "dice", "mIoU", "AUROC", "AP", "offsets", "boundary"],
)  # fmt: skip
def test_the_default_ignore_label_is_refused_where_it_is_a_class(make: Callable[[], object]) -> None:
    """Else the pixels of class 255 would silently not count."""
    with pytest.raises(ValueError, match=r"ignore_index=255 \(the default\) is one of the 300 classes"):
        make()


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
@pytest.mark.parametrize("ignore_index", [255, 3])
@pytest.mark.parametrize("label", [NUM_CLASSES, NUM_CLASSES + 1, -1])
def test_a_label_that_nobody_has_checked_is_not_taken_for_another(scores: str, ignore_index: int, label: int) -> None:
    logits, target = sample(torch.int64, ignore_index)
    target[1, -1] = label
    with pytest.raises(IndexError, match=r"labels outside 0\.\.3 that are not the ignore label"):
        AUCSegLoss(scores=scores, ignore_index=ignore_index, validate_args=False)(logits, target)


@pytest.mark.parametrize("name", ["ce", "dice", "ce-jml", "lovasz"])
@pytest.mark.parametrize("label", [NUM_CLASSES, NUM_CLASSES + 2, -1])
def test_wrong_labels_are_found_in_compiled_code(name: str, label: int) -> None:
    logits, target = sample(torch.int64, 255)
    target[1, -1] = label
    compiled = torch.compile(build_loss(name), backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"a label is neither in 0\.\.3 nor the ignore label 255"):
        compiled(logits, target)


def test_masks_of_0_and_255_are_pointed_out(recwarn: pytest.WarningsRecorder) -> None:
    target = torch.zeros(2, 6, 5, dtype=torch.uint8)
    target[:, 2:4] = 255
    binary, both = AUCSegLoss(), PairwiseAUCLoss()
    lesion = target.clone()
    lesion[0, 0] = 1
    for number in range(40):
        binary(torch.zeros(2, 1, 6, 5), target)
        both(torch.zeros(2, 2, 6, 5), lesion if number == 10 else target)
        AUCSegLoss()(torch.zeros(2, 1, 6, 5), target)
    assert [str(warning.message) for warning in recwarn] == [
        "the masks of 20 batches hold class 0 and the ignore label 255, and never class 1: if 255 stands for class 1, "
        "pass (target > 0)"
    ]
