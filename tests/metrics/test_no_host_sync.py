"""On an accelerator no update waits for the device: the pretended one refuses whatever would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision
from aucseg.metrics.boundary_iou import boundary_overlap
from aucseg.metrics.pixel_metric import PixelMetric
from aucseg.tensors.upsampling import predicted_labels
from tests.pretended_device import MPS, MPSTensor, NoWaiting, PretendedMPS

K = 5
METRICS: dict[str, Callable[[], PixelMetric]] = {
    "iou": lambda: GroupedMeanIoU(K, {"tail": [3, 4]}),
    "ovo": lambda: PixelAUROC(K, bins=32),
    "ovr": lambda: PixelAUROC(K, average="ovr", scores="sigmoid", bins=32),
    "identity": lambda: PixelAUROC(K, scores="identity", bins=32),
    "ap": lambda: PixelAveragePrecision(K, bins=32),
}


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(K, (2, 16, 12), generator=generator)
    target[0, :3] = 255
    return torch.rand(2, K, 8, 6, generator=generator).to(dtype), target


def on_device(metric: PixelMetric) -> PixelMetric:
    """The states on the pretended device; `torch.nn.Module.to` is not what is tested."""
    for name in ("num_invalid", *metric._defaults):
        setattr(metric, name, getattr(metric, name).to(MPS))
    return metric


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_update_waits_for_nothing_and_counts_the_same(name: str, dtype: torch.dtype) -> None:
    logits, target = batch(dtype)
    on_cpu = METRICS[name]()
    on_cpu.update(logits, target)
    with NoWaiting():
        metric = on_device(METRICS[name]())
        metric.update(logits.to(MPS), target.to(MPS))
        states = {state: getattr(metric, state) for state in metric._defaults}
    for state, value in states.items():
        assert isinstance(value, MPSTensor)
        assert torch.equal(value.held, getattr(on_cpu, state)), state


@pytest.mark.parametrize("name", METRICS)
def test_what_is_not_a_number_is_counted_and_refused_later(name: str) -> None:
    logits, target = batch()
    logits[0, 1, 2, 3] = torch.nan
    with PretendedMPS():
        metric = on_device(METRICS[name]())
        metric.update(logits.to(MPS), target.to(MPS))
        with pytest.raises(ValueError, match="non-finite"):
            metric.raise_if_invalid()


@pytest.mark.parametrize("size", [(8, 6), (16, 12)])
def test_labels_and_boundaries_wait_for_nothing(size: tuple[int, int]) -> None:
    logits, target = batch()
    labels = predicted_labels(logits, size)
    with NoWaiting():
        found: Any = predicted_labels(logits.to(MPS), size)
        overlap: Any = boundary_overlap(found, found.clone(), K, width=1)
        metric: Any = on_device(GroupedMeanIoU(K))
        if size == (16, 12):
            metric.update(found, target.to(MPS))
    assert torch.equal(found.held, labels)
    assert torch.equal(overlap.held, boundary_overlap(labels, labels, K, width=1))


def test_the_pretended_device_notices_a_wait() -> None:
    with NoWaiting():
        metric = on_device(GroupedMeanIoU(K))
        with pytest.raises(AssertionError, match="the host waits"):
            metric.raise_if_invalid()
