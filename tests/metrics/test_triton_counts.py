"""The Triton kernels of the metrics in Triton's interpreter, on the CPU: the counts of torch's operations."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision, mean_iou, pixel_metric, score_histogram
from aucseg.metrics.pixel_metric import PixelMetric

# The interpreter is numpy, which warns of infinities; the kernels mean them.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{what} encountered:RuntimeWarning")
    for what in ("divide by zero", "overflow", "invalid value")
]
K = 5
METRICS: dict[str, Callable[[], PixelMetric]] = {
    "iou": lambda: GroupedMeanIoU(K),
    "ovo": lambda: PixelAUROC(K, bins=64),
    "ovr": lambda: PixelAUROC(K, average="ovr", scores="sigmoid", bins=64),
    "identity": lambda: PixelAUROC(K, scores="identity", bins=33),
    "ap": lambda: PixelAveragePrecision(K),
}
SHAPES = {
    "full": ((2, K, 9, 11), (2, 9, 11)),
    "low": ((2, K, 5, 4), (2, 9, 11)),
    "points": ((70, K), (70,)),
    "volume": ((2, K, 3, 4, 5), (2, 3, 4, 5)),
}


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the kernels are built for the GPU here, see tests/test_gpu.py")
    from aucseg.metrics import triton_counts

    return triton_counts


def batch(name: str = "full", identity: bool = False) -> tuple[Tensor, Tensor]:
    """Logits with large and equal ones among them, the last class is absent, some pixels are ignored."""
    generator = torch.Generator().manual_seed(0)
    shape, labels = SHAPES[name]
    target = torch.randint(K - 1, labels, generator=generator)
    target[0 if name == "points" else (0, 0)] = 255
    if identity:
        return torch.rand(shape, generator=generator), target
    logits = 3 * torch.randn(shape, generator=generator)
    logits[1, :, ...] *= 30
    logits[1, 1:3] = logits[1, :1]
    return logits, target


def counted(
    name: str, logits: Tensor, target: Tensor, kernels: ModuleType | None, monkeypatch: pytest.MonkeyPatch
) -> PixelMetric:
    metric = METRICS[name]()
    with monkeypatch.context() as patch:
        for module in (mean_iou, score_histogram):
            patch.setattr(module, "triton_counts_for", lambda *_: kernels)
        if kernels is not None:
            patch.setattr(kernels, "TILE", 128)  # several programs an image
        metric.update(logits, target)
    return metric


def states(metric: PixelMetric) -> dict[str, Tensor]:
    return {name: getattr(metric, name) for name in metric._defaults}


# The interpreter takes half a second a case.
@pytest.mark.parametrize(
    "shape", ["full", "low", *(pytest.param(s, marks=pytest.mark.slow) for s in ("points", "volume"))]
)
@pytest.mark.parametrize("name", METRICS)
def test_the_counts_are_those_of_torch(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, shape: str
) -> None:
    logits, target = batch(shape, name == "identity")
    expected = counted(name, logits, target, None, monkeypatch)
    found = counted(name, logits, target, kernels, monkeypatch)
    for state, value in states(expected).items():
        assert torch.equal(getattr(found, state), value), state
    assert sum(int(value.sum()) for value in states(found).values()) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [pytest.param("iou", marks=pytest.mark.slow), "ovo"])
def test_other_dtypes_layouts_and_labels(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    for shape in ("full", "low"):
        logits, target = batch(shape)
        logits = logits.to(dtype).contiguous(memory_format=torch.channels_last)
        expected = counted(name, logits, target, None, monkeypatch)
        found = counted(name, logits, target.to(torch.uint8), kernels, monkeypatch)
        for state, value in states(expected).items():
            assert torch.equal(getattr(found, state), value), state


@pytest.mark.parametrize("name", ["iou", "ovo", "ap"])
def test_one_logit_a_pixel(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    made = {"iou": GroupedMeanIoU, "ovo": PixelAUROC, "ap": PixelAveragePrecision}
    monkeypatch.setitem(METRICS, name, lambda: made[name](2))
    logits, target = batch()
    target = torch.where(target == 255, 255, target % 2)
    expected = counted(name, logits[:, :1], target, None, monkeypatch)
    found = counted(name, logits[:, :1], target, kernels, monkeypatch)
    for state, value in states(expected).items():
        assert torch.equal(getattr(found, state), value), state


@pytest.mark.parametrize("name", METRICS)
def test_what_is_invalid_is_counted_and_leads_nowhere_else(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    logits, target = batch(identity=name == "identity")
    clean = counted(name, logits[1:], target[1:], kernels, monkeypatch)
    logits[0, 1, 2, 3], logits[0, 2, 0, 0], logits[0, 0, 4, 4] = torch.nan, torch.inf, -torch.inf  # one is ignored
    target[0, 5, 5], target[0, 6, 6] = K, -1
    metric = counted(name, logits, target, kernels, monkeypatch)
    assert metric.num_invalid == (5 + 3 if name == "identity" else 5)  # these are scores outside of 0..1 too
    with pytest.raises(ValueError, match="non-finite, or labels outside"):
        metric.compute()
    state = "confusion" if name == "iou" else "histogram"
    value, before = getattr(metric, state), getattr(clean, state)
    assert (value >= before).all()
    assert value.sum() <= before.sum() + (target[0] < K).sum() * (1 if name == "iou" else K)


def test_what_does_not_fit_is_left_to_torch(kernels: ModuleType) -> None:
    def offered(*shapes: tuple[int, ...]) -> bool:
        return bool(kernels.offered(*(torch.empty(shape, device="meta") for shape in shapes)))

    assert offered((2, 150, 8, 8), (2, 32, 32))
    assert offered((1, 5, 4, 4, 4), (1, 4, 4, 4))
    assert not offered((1, 5, 4, 4, 4), (1, 8, 8, 8))
    assert not offered((1, 2000, 8, 8), (1, 8, 8))
    assert not offered((1, 2, 2**31), (1, 2**31))
    assert not kernels.offered(torch.empty((2, 5, 8, 8), dtype=torch.float64, device="meta"), torch.empty((2, 8, 8)))


def test_a_device_without_kernels_is_told_once(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    kernels.works_on.cache_clear()
    assert kernels.works_on(device)

    def no_compiler(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(kernels, "count_confusion", no_compiler)
    kernels.works_on.cache_clear()
    with pytest.warns(UserWarning, match="Triton does not work on cpu .Failed to find C compiler"):
        assert not kernels.works_on(device)
    assert not kernels.works_on(device)  # without a word
    kernels.works_on.cache_clear()


def test_other_devices_take_the_operations_of_torch() -> None:
    logits, target = batch()
    assert pixel_metric.triton_counts_for(logits, target) is None
    assert pixel_metric.triton_counts_for(logits.to("meta"), target.to("meta")) is None
