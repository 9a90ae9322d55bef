"""On a GPU: the numbers of the CPU, no waiting for the device in the loss, mixed precision, runs from start to end."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from aucseg import AUCSegLoss, PairwiseAUCLoss, SegmentationTask
from aucseg.losses import accumulate, build_loss
from aucseg.losses.build import LOSSES
from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision
from aucseg.metrics.pixel_metric import PixelMetric
from aucseg.training.step_guard import StepGuard
from tests.on_gpu import no_waiting, run
from tests.oracles import auc_loss_oracle
from tests.small_runs import make_trainer
from tests.training.faults import FAULTY_STEP, States, faulty_network, same
from tests.training.tiny_tasks import make_data, make_task
from tests.two_processes import STEPS, arguments

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

COUNTS = [500.0, 300.0, 150.0, 40.0, 10.0]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"scores": "softmax"},
    {"scores": "identity"},
    {"surrogate": "exponential"},
    {"surrogate": "logistic"},
    {"surrogate": "squared_hinge", "margin": 1.5},
    {"surrogate": "hinge", "margin": 0.5},
    {"surrogate": "squared_hinge", "margin": 0.5, "scores": "identity"},
    {"surrogate": "hinge", "max_fpr": 0.2},
    {"strategy": "ova"},
    {"pair_weight": torch.arange(1.0, 26.0).view(5, 5)},
    {"pair_weight": torch.arange(1.0, 26.0).view(5, 5), "surrogate": "exponential", "scores": "softmax"},
    {"surrogate": "exponential", "margin": 30.0},
    {"surrogate": "sigmoid", "margin": 5.0, "scores": "softmax"},
]


def batch(size: int = 24, target_size: int = 24, num_classes: int = 5, images: int = 2) -> tuple[Tensor, Tensor]:
    """Logits and labels of a few classes, the rarest a hundredth of the pixels, some ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(images, num_classes, size, size, generator=generator)
    target = torch.multinomial(
        torch.tensor(COUNTS[:num_classes]), images * target_size**2, replacement=True, generator=generator
    ).view(images, target_size, target_size)
    target[0, :2] = 255
    return logits, target


def value_and_gradient(loss: nn.Module, logits: Tensor, target: Tensor, device: str) -> tuple[Tensor, Tensor]:
    moved = logits.detach().clone().to(device).requires_grad_()
    value = loss.to(device)(moved, target.to(device))
    value.backward()
    assert moved.grad is not None
    assert moved.grad.dtype == logits.dtype
    return value.detach().cpu(), moved.grad.cpu()


@pytest.mark.parametrize("size", [24, 6], ids=["full", "low"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_value_and_gradient_equal_those_of_the_cpu(options: dict[str, Any], size: int) -> None:
    logits, target = batch(size)
    expected = value_and_gradient(AUCSegLoss(label_smoothing=0.1, **options), logits, target, "cpu")
    found = value_and_gradient(AUCSegLoss(label_smoothing=0.1, **options), logits, target, DEVICE)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-9)


def test_value_equals_the_definition() -> None:
    logits, target = batch()
    expected = auc_loss_oracle(logits, target)
    assert PairwiseAUCLoss()(logits.to(DEVICE), target.to(DEVICE)).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_other_dtypes_and_layouts(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    logits, target = batch()
    logits = logits.to(dtype).contiguous(memory_format=memory_format)
    expected = value_and_gradient(AUCSegLoss(), logits, target, "cpu")
    found = value_and_gradient(AUCSegLoss(), logits, target, DEVICE)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1], expected[1])


def test_transposed_logits() -> None:
    logits, target = batch()
    expected = value_and_gradient(AUCSegLoss(), logits, target, DEVICE)
    moved = logits.to(DEVICE).transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    value = AUCSegLoss()(moved, target.to(DEVICE))
    (gradient,) = torch.autograd.grad(value, moved)
    torch.testing.assert_close(value.detach().cpu(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.cpu(), expected[1])


@pytest.mark.parametrize("options", [{}, {"surrogate": "logistic"}], ids=str)
def test_tensor_float_32_does_not_reach_the_loss(options: dict[str, Any]) -> None:
    logits, target = batch(6)
    expected = value_and_gradient(AUCSegLoss(**options), logits, target, DEVICE)
    torch.set_float32_matmul_precision("high")
    try:
        found = value_and_gradient(AUCSegLoss(**options), logits, target, DEVICE)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)


def test_a_label_out_of_range_is_an_error_that_names_it() -> None:
    """In a process of its own: CUDA is of no use after it."""
    code = (
        "import torch; from aucseg import AUCSegLoss\n"
        "AUCSegLoss()(torch.randn(1, 3, 4, 4, device='cuda'), torch.full((1, 4, 4), 7, device='cuda'))\n"
        "torch.cuda.synchronize()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "a label is neither in 0..2 nor the ignore label 255" in result.stderr


def test_many_pixels_keep_their_digits() -> None:
    """Two million pixels of 19 classes, against float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 19, 1024, 1024, generator=generator)
    target = torch.multinomial(0.5 ** torch.arange(19.0), 2 * 1024**2, replacement=True, generator=generator)
    target = target.view(2, 1024, 1024)
    expected = value_and_gradient(AUCSegLoss(), logits.double(), target, "cpu")
    found = value_and_gradient(AUCSegLoss(), logits, target, DEVICE)
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-6)
    assert float((found[1] - expected[1]).norm() / expected[1].norm()) < 1e-5


@pytest.mark.parametrize("size", [24, 6], ids=["full", "low"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_loss_never_waits_for_the_device(options: dict[str, Any], size: int) -> None:
    logits, target = (tensor.to(DEVICE) for tensor in batch(size))
    logits.requires_grad_()
    loss_fn = AUCSegLoss(class_weight=torch.ones(5), **options).to(DEVICE)
    loss_fn(logits, target).backward()  # the first call may load kernels
    with no_waiting():
        loss_fn(logits, target).backward()


def test_the_check_for_waiting_notices() -> None:
    value = torch.ones(3, device=DEVICE).sum()
    with pytest.raises(RuntimeError, match="synchroniz"), no_waiting():
        value.item()


def test_bad_logits_stay_where_they_are() -> None:
    """Infinite and ignored pixels; batches without a valid pixel, with one class, without pixels."""
    logits, target = batch()
    logits[0, :, 0] = math.nan
    logits[1, 2, 3, 4] = math.inf
    auc = PairwiseAUCLoss()
    for labels in (target, torch.full_like(target, 255), torch.where(target == 255, 255, 1)):
        value, gradient = value_and_gradient(auc, logits, labels, DEVICE)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert value.item() == pytest.approx(value_and_gradient(auc, logits, labels, "cpu")[0].item(), rel=1e-6)
    empty = value_and_gradient(AUCSegLoss(), logits[:0], target[:0], DEVICE)
    assert empty[0].item() == 0


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "blv"])
@pytest.mark.parametrize("size", [24, 6], ids=["full", "low"])
def test_rival_losses_equal_those_of_the_cpu(name: str, size: int) -> None:
    logits, target = batch(size)
    found, expected = (
        value_and_gradient(build_loss(name, COUNTS), logits, target, device) for device in (DEVICE, "cpu")
    )
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-7)


def test_noise_of_blv_is_drawn_on_the_device() -> None:
    logits, target = batch()
    value, gradient = value_and_gradient(build_loss("blv", COUNTS), logits, target, DEVICE)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_micro_batches_have_the_gradient_of_the_whole() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 5, 3, padding=1).to(DEVICE)
    images, target = torch.randn(4, 3, 24, 24, device=DEVICE), batch(images=4)[1].to(DEVICE)
    AUCSegLoss()(model(images), target).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    accumulate(AUCSegLoss(), model, [(images[:1], target[:1]), (images[1:], target[1:])])
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


METRICS: dict[str, Callable[[], PixelMetric]] = {
    "iou": lambda: GroupedMeanIoU(5),
    "ovo": lambda: PixelAUROC(5),
    "ovr": lambda: PixelAUROC(5, average="ovr", scores="sigmoid"),
    "ap": lambda: PixelAveragePrecision(5),
}


@pytest.mark.parametrize("size", [24, 6], ids=["full", "low"])
@pytest.mark.parametrize("name", METRICS)
def test_metrics_count_what_the_cpu_counts_without_a_wait(name: str, size: int) -> None:
    logits, target = batch(size)
    on_cpu, on_gpu = METRICS[name](), METRICS[name]().to(DEVICE)
    moved, labels = logits.to(DEVICE), target.to(DEVICE)
    on_gpu.update(moved, labels)  # the first call may load kernels
    on_gpu.reset()
    with no_waiting():
        on_gpu.update(moved, labels)
    on_cpu.update(logits, target)
    for state in on_cpu._defaults:
        expected, found = getattr(on_cpu, state), getattr(on_gpu, state).cpu()
        assert found.sum() == expected.sum()
        # A score at the border of two bins may fall to the other side.
        assert (found - expected).abs().sum() <= (0 if name == "iou" else 1e-3 * expected.sum()), state
    moved[0, 0, 0, 0] = math.nan
    on_gpu.update(moved, labels)
    with pytest.raises(ValueError, match="non-finite"):
        on_gpu.compute()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_computes_in_float32(dtype: torch.dtype) -> None:
    logits, target = (tensor.to(DEVICE) for tensor in batch(6))
    expected = AUCSegLoss()(logits.to(dtype).float(), target)
    with torch.autocast(DEVICE, dtype):
        found = AUCSegLoss()(logits.to(dtype), target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [24, 6], ids=["full", "low"])
def test_compiled_loss_equals_the_plain_one(size: int) -> None:
    logits, target = batch(size)
    expected = value_and_gradient(AUCSegLoss(), logits, target, DEVICE)
    loss_fn = AUCSegLoss().to(DEVICE)
    moved = logits.to(DEVICE).requires_grad_()
    value = torch.compile(loss_fn, fullgraph=True)(moved, target.to(DEVICE))
    value.backward()
    assert moved.grad is not None
    torch.testing.assert_close(value.detach().cpu(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(moved.grad.cpu(), expected[1], rtol=1e-5, atol=1e-9)


def test_deterministic_algorithms_repeat_the_gradient_bit_by_bit() -> None:
    logits, target = batch(128, 128)
    torch.use_deterministic_algorithms(True)
    try:
        gradients = [value_and_gradient(AUCSegLoss(), logits, target, DEVICE)[1] for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in itertools.pairwise(gradients))


@pytest.mark.filterwarnings(r"ignore:step \d+ was skipped:UserWarning")
def test_bad_step_is_left_out(tiny_card: Path, tmp_path: Path) -> None:
    guard, states = StepGuard(), States()
    task = make_task(tiny_card)
    task.model = faulty_network(math.nan, {FAULTY_STEP})
    make_trainer(tmp_path, 6, accelerator="gpu", callbacks=[states, guard]).fit(task, make_data(tiny_card))
    assert guard.num_skipped == 1
    assert same(*states.before[FAULTY_STEP : FAULTY_STEP + 2])
    assert not same(states.before[2], states.before[3])
    assert not same(states.before[4], states.before[5])


def test_training_learns_the_colours(tiny_card: Path, tmp_path: Path) -> None:
    task = make_task(tiny_card, learning_rate=0.02, bank={"capacity": 2, "min_pixels": 4}, pixel_metrics=True)
    trainer = make_trainer(tmp_path, 60, accelerator="gpu")
    trainer.fit(task, make_data(tiny_card))
    assert float(trainer.callback_metrics["val/miou"]) > 0.5
    assert float(trainer.callback_metrics["val/auroc"]) > 0.9
    assert task.bank is not None
    assert task.bank.num_samples == {3: 2}


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_fit_stops_goes_on_and_predicts(tiny_card: Path, tmp_path: Path, precision: str) -> None:
    more = {"trainer.accelerator": "gpu", "trainer.precision": precision, "resume": "auto"}
    out = tmp_path / "run"
    for steps in (STEPS // 2, STEPS):
        result = run("fit", *arguments(tiny_card, out, **{**more, "trainer.max_steps": steps}))
        assert result.returncode == 0, result.stderr
    result_file = json.loads((out / "result.json").read_text())
    assert result_file["step"] == STEPS
    assert 0 <= result_file["metrics"]["miou"] <= 1
    labels = {}
    for device in ("cpu", DEVICE):
        folder = tmp_path / device
        result = run("predict", out, tiny_card.parent / "images" / "val", "--out", folder, "--device", device)
        assert result.returncode == 0, result.stderr
        with Image.open(folder / "labels" / "frame_00.png") as picture:
            labels[device] = np.array(picture)
    assert (labels["cpu"] == labels[DEVICE]).mean() > 0.99


def test_checkpoint_of_a_gpu_loads_on_a_cpu(tiny_card: Path, tmp_path: Path) -> None:
    task = make_task(tiny_card, bank={"capacity": 2, "min_pixels": 4})
    trainer = make_trainer(tmp_path, 2, accelerator="gpu")
    trainer.fit(task, make_data(tiny_card))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = SegmentationTask.load_from_checkpoint(
        tmp_path / "last.ckpt", map_location="cpu", weights_only=True, model=make_task(tiny_card).model
    )
    assert again.bank is not None
    assert task.bank is not None
    assert again.bank.num_samples == task.bank.num_samples
    assert {parameter.device.type for parameter in again.parameters()} == {"cpu"}
