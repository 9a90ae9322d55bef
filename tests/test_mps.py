"""A Mac's GPU, pretended: a training step, validation with all metrics, prediction and the bank, for every loss."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aucseg.inference.predictor import InferenceOptions, Predictor
from aucseg.losses import PairwiseAUCLoss, build_loss
from aucseg.losses.baselines import LogitAdjustmentLoss
from aucseg.losses.build import LOSSES
from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision
from aucseg.metrics.image_iou import per_image_overlap
from aucseg.metrics.result_files import curve_points
from aucseg.models import DisAlignModel
from aucseg.tensors.dtypes import wide_sum
from aucseg.training.second_stage import AdjustedModel
from aucseg.training.task import SegmentationTask
from tests.pretended_device import MPS, PretendedMPS

COUNTS = [100_000, 20_000, 3_000, 200, 10]
CARD = """name: five
classes: [{name: a}, {name: b}, {name: c}, {name: d}, {name: e}]
groups: {head: [a, b], middle: [c], tail: [d, e]}
splits:
  train: {images: 'images/*.png', masks: 'masks/{stem}.png'}
"""
AUC_OPTIONS: list[dict[str, Any]] = [
    {"scores": "softmax", "strategy": "ova"},
    {"scores": "identity"},
    {"surrogate": "exponential", "margin": 4.0},
    {"surrogate": "exponential", "scores": "identity"},
    {"surrogate": "logistic", "label_smoothing": 0.1},
    {"surrogate": "hinge", "margin": 0.5},
    {"surrogate": "squared_hinge", "max_fpr": 0.3},
    {"class_weight": {"rule": "inverse", "power": 0.15}, "pair_weight": torch.rand(5, 5)},
]


def batch(seed: int = 0, size: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (3, 3, size, size), dtype=torch.uint8, generator=generator)
    masks = torch.randint(3, (3, size, size), dtype=torch.uint8, generator=generator)
    masks[0, 4:12, 6:12], masks[0, 16:20, 3:9], masks[1, :3] = 3, 4, 255
    return images, masks


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1))


def make_loss(name: str, options: dict[str, Any]) -> nn.Module:
    if name == "blv":  # its noise comes from the device's own generator
        return build_loss(name, COUNTS, sigma=1e-9, **options)
    return build_loss(name, COUNTS, **options)


def whole_run(
    device: torch.device, loss: nn.Module, monkeypatch: pytest.MonkeyPatch, micro_batches: int = 1
) -> dict[str, float]:
    """What Lightning does with the task, without Lightning's devices: a step, a validation, labels of an image."""
    logged: dict[str, float] = {}
    trainer = SimpleNamespace(
        max_steps=1,
        global_step=1,
        world_size=1,
        datamodule=None,
        accumulate_grad_batches=1,
        precision="32-true",
        precision_plugin=None,
    )
    monkeypatch.setattr(SegmentationTask, "trainer", trainer)
    monkeypatch.setattr(SegmentationTask, "log", lambda self, name, value, **_: logged.update({name: float(value)}))
    monkeypatch.setattr(
        SegmentationTask,
        "log_dict",
        lambda self, values, **_: logged.update({name: float(value) for name, value in values.items()}),
    )
    torch.manual_seed(0)
    bank = {"sample_ratio": 1.0, "min_pixels": 4, "scope": "image", "resize_ratio": 0.6}
    task = SegmentationTask(
        CARD, network(), loss=loss, bank=bank, pixel_metrics=True, learning_rate=1e-2, micro_batches=micro_batches
    )
    task.setup("fit")
    task.to(device)
    images, masks = (tensor.to(device) for tensor in batch())
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    task.train()
    for _ in range(2):
        optimizer.zero_grad()
        task.training_step({"image": images, "mask": masks}, 0).backward()
        optimizer.step()
    assert task.bank is not None
    logged["pasted"] = sum(pixels for _, _, pixels in task.bank.last_pastes)
    task.eval()
    with torch.no_grad():
        predicted = task.validation_step({"image": images, "mask": masks}, 0)["predicted"]
        task.on_validation_epoch_end()
    overlap = per_image_overlap(predicted[0], masks[0], task.card.num_classes, task.card.ignore_index)
    logged["overlap"] = sum(intersection / union for intersection, union, _ in overlap.values()) / 100
    assert task.validated.roc_curves is not None
    logged["curve"] = curve_points(*task.validated.roc_curves["d"])["auroc"]
    predictor = Predictor(task.model, InferenceOptions(window=(16, 16), flip=True, class_frequency=tuple(COUNTS)))
    logged["labels"] = float(predictor.labels(batch()[0][0]).float().mean())
    return logged


CASES: list[tuple[str, dict[str, Any]]] = [*((name, {}) for name in LOSSES), *(("aucseg", o) for o in AUC_OPTIONS)]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}{i}" for i, (name, _) in enumerate(CASES)])
def test_trains_validates_and_predicts(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole_run(torch.device("cpu"), make_loss(name, options), monkeypatch)
    with PretendedMPS():
        result = whole_run(MPS, make_loss(name, options), monkeypatch)
    assert result["pasted"] > 0
    assert {"train/loss", "val/loss", "val/miou", "val/tail", "val/auroc", "val/tail_ap"} <= result.keys()
    for key in expected:  # a pixel between two classes may change sides
        assert result[key] == pytest.approx(expected[key], rel=1e-5, abs=0 if "loss" in key else 2e-3), key


def test_what_the_pretended_device_refuses() -> None:
    with PretendedMPS():
        numbers = torch.arange(6, device=MPS)
        assert numbers.device == MPS
        assert numbers.tolist() == [0, 1, 2, 3, 4, 5]
        for dtype in (torch.float64, torch.complex128, torch.uint16):
            with pytest.raises(TypeError, match="MPS framework"):
                numbers.to(dtype)
        with pytest.raises(TypeError, match="MPS framework"):
            torch.zeros(3, dtype=torch.float64).to(MPS)
        with pytest.raises(TypeError, match="MPS framework"):
            torch.zeros(3, dtype=torch.float64, device=MPS)
        with pytest.raises(NotImplementedError, match="histc"):
            torch.histc(numbers, 3)
        with pytest.raises(NotImplementedError, match="index_add"):
            torch.zeros_like(numbers).index_add_(0, numbers, numbers)
        with pytest.raises(NotImplementedError, match="not implemented for the MPS device"):
            torch.linalg.eig(numbers.view(2, 3)[:, :2].float())
        with pytest.raises(RuntimeError, match="same device"):
            numbers + torch.ones(6)
        weight = torch.ones(6, device=MPS, requires_grad=True)
        with pytest.raises(TypeError, match="MPS framework"):  # in the backward pass too
            _DoubleBackward.apply(weight).sum().backward()


class _DoubleBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].double().float()


@pytest.mark.parametrize(
    "loss",
    [
        build_loss("focal", activation="sigmoid", gamma=0.5),
        build_loss("cb-focal", COUNTS, activation="sigmoid", beta=0.9),
        build_loss("ldam", COUNTS, drw_start=0.0),
        build_loss("wce-inverse", COUNTS, power=0.5),
        PairwiseAUCLoss(),
        PairwiseAUCLoss("exponential", margin=8.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(5,), (2, 5, 7), (2, 5, 4, 4), (1, 5, 3, 4, 2)])
def test_values_and_gradients_are_those_of_the_cpu(loss: nn.Module, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, *shape, generator=generator) if shape == (5,) else torch.randn(shape, generator=generator)
    target = torch.randint(5, (logits.shape[0], *logits.shape[2:]), generator=generator)
    results = []
    for device in (torch.device("cpu"), MPS):
        with PretendedMPS():
            given = logits.clone().to(device).requires_grad_()
            value = loss.to(device)(given, target.to(device))
            value.backward()
            assert given.grad is not None
            results.append((value.item(), given.grad.cpu()))
    loss.to("cpu")
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


def test_a_steep_exponential_saturates_where_float32_does() -> None:
    logits = torch.tensor([[40.0, -40.0], [-40.0, 40.0]])
    for margin in (20.0, 300.0, 1e6):
        with PretendedMPS():
            given = logits.to(MPS).requires_grad_()
            loss = PairwiseAUCLoss("exponential", margin=margin)(given, torch.tensor([1, 0]).to(MPS))
            loss.backward()
            assert given.grad is not None
            assert loss.isfinite()
            assert given.grad.isfinite().all()
            assert loss > 1e8  # a pair the wrong way round


def test_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device: torch.zeros(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, device: None)
    expected = whole_run(torch.device("cpu"), build_loss("aucseg"), monkeypatch, micro_batches=3)
    with PretendedMPS():
        result = whole_run(MPS, build_loss("aucseg"), monkeypatch, micro_batches=3)
    assert result["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-5)


def test_models_of_a_second_stage() -> None:
    images, masks = batch()
    with PretendedMPS():
        given = (images.float() / 255).to(MPS)
        adjusted = AdjustedModel(network().eval(), COUNTS, tau=0.5).to(MPS)
        with torch.no_grad():
            difference = (adjusted(given) - adjusted.model(given)).cpu()
        expected = -0.5 * (torch.tensor(COUNTS) / sum(COUNTS)).log().view(1, 5, 1, 1)
        torch.testing.assert_close(difference, expected.expand_as(difference))
        aligned = DisAlignModel(network(), 5).to(MPS)
        build_loss("disalign", COUNTS).to(MPS)(aligned(given), masks.to(MPS)).backward()
        assert aligned.scale.grad is not None
        assert aligned.scale.grad.isfinite().all()


METRICS: list[GroupedMeanIoU | PixelAUROC | PixelAveragePrecision] = [
    GroupedMeanIoU(5, {"tail": [3, 4]}),
    PixelAUROC(5, bins=64),
    PixelAUROC(5, average="ovr", scores="sigmoid", bins=64),
    PixelAveragePrecision(5, {"tail": [3, 4]}, bins=64),
]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_metrics_are_those_of_the_cpu(metric: GroupedMeanIoU | PixelAUROC | PixelAveragePrecision) -> None:
    """Bit by bit: the states are integers, and what is made of them is computed in float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 5, 8, 8, generator=generator), torch.randint(5, (2, 8, 8), generator=generator)
    on_cpu = copy.deepcopy(metric)
    on_cpu.update(logits, target)
    with PretendedMPS():
        moved = copy.deepcopy(metric).to(MPS)
        moved.update(logits.to(MPS), target.to(MPS))
        for name in moved._defaults:  # of a data set of 10^9 pixels
            if name != "num_invalid":
                getattr(on_cpu, name).mul_(10**8 + 1)
                getattr(moved, name).mul_(10**8 + 1)
        result = moved.details()
        if isinstance(moved, PixelAUROC) and isinstance(on_cpu, PixelAUROC):
            for rates, expected in zip(moved.roc_curve(1), on_cpu.roc_curve(1), strict=True):
                assert torch.equal(rates.cpu(), expected)
        assert {value.device for value in result.values()} == {MPS}
        for key, expected in on_cpu.details().items():
            assert torch.equal(result[key].cpu(), expected), key
        moved.update(logits.to(MPS), torch.full_like(target, 77).to(MPS))
        with pytest.raises(ValueError, match="met 128 values"):
            moved.details()
        moved.reset()
        assert set(moved.metric_state) == set(metric.metric_state)


@pytest.mark.parametrize("size", [0, 1, 255, 257, 3_000_000])
def test_long_sums_keep_their_digits(size: int) -> None:
    values = torch.rand(size, generator=torch.Generator().manual_seed(0)) + 0.1
    with PretendedMPS():
        given = values.to(MPS).requires_grad_()
        total = wide_sum(given)
        total.backward()
        assert total.dtype == torch.float32
        assert given.grad is not None
        assert (given.grad == 1).all()
        assert wide_sum(given > 0).item() == size
        assert total.item() == pytest.approx(values.double().sum().item(), rel=1e-7 if size < 2 else 3e-7)


def test_values_of_classes_come_back_exact() -> None:
    """From a device without float64, and from half precision."""
    loss = build_loss("la", COUNTS)
    assert isinstance(loss, LogitAdjustmentLoss)
    exact = torch.log(torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS))
    with PretendedMPS():
        assert loss.to(MPS).log_prior.dtype == torch.float32
    for convert in (loss.cpu, loss.half, loss.bfloat16, loss.float):
        converted = convert()
        assert isinstance(converted, LogitAdjustmentLoss)
        assert torch.equal(converted.log_prior, exact)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float64"])
def test_images_of_any_dtype_are_predicted(dtype: str) -> None:
    image = batch()[0][0].permute(1, 2, 0).numpy().astype(dtype)
    expected = Predictor(network().eval()).labels(image)
    with PretendedMPS():
        assert torch.equal(Predictor(network().eval().to(MPS)).labels(image), expected)
