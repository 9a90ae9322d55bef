"""Two processes that see half of the batches each compute what one computes from all of them."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision
from aucseg.metrics.pixel_metric import PixelMetric

NUM_CLASSES, WORLD_SIZE = 4, 2


def make_metrics(**options: Any) -> dict[str, PixelMetric]:
    groups = {"head": [0], "middle": [1], "tail": [2, 3]}
    return {
        "iou": GroupedMeanIoU(NUM_CLASSES, groups, **options),
        "ovo": PixelAUROC(NUM_CLASSES, bins=100, **options),
        "ovr": PixelAUROC(NUM_CLASSES, average="ovr", bins=100, **options),
        "precision": PixelAveragePrecision(NUM_CLASSES, groups, bins=100, **options),
    }


def batch(index: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(index)
    target = torch.randint(NUM_CLASSES, (2, 8, 9), generator=generator)
    if index % 2 == 0:
        target[target == 3] = 255  # a class that only one process sees
    return torch.randn(2, NUM_CLASSES, 4, 3, generator=generator), target


def run_child(index: int, folder: str) -> None:
    run(index + 1, folder)


def run(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE)
    try:
        results = {}
        for name, metric in make_metrics().items():
            for index in range(rank, 4, WORLD_SIZE):
                metric.update(*batch(index))
            results[name] = results_of(metric)
        torch.save(results, f"{folder}/{rank}.pt")
        torch.save(own_values(rank), f"{folder}/own_{rank}.pt")
    finally:
        dist.destroy_process_group()


def results_of(metric: PixelMetric) -> dict[str, Any]:
    results = {"compute": metric.compute(), "details": metric.details()}
    if isinstance(metric, PixelAUROC):
        results["curve"] = dict(zip(("false", "true"), metric.roc_curve(1), strict=True))
    return results


def own_values(rank: int) -> dict[str, list[Any]]:
    """What is not synchronized: values of `forward`, of which rank 1 has one more, and those without sync."""
    values: dict[str, list[Any]] = {
        name: [metric(*batch(index)) for index in range(2 + rank)] for name, metric in make_metrics().items()
    }
    for name, metric in make_metrics(sync_on_compute=False).items():
        metric.update(*batch(rank))
        values[name] += [metric.compute(), metric.details()]
    return values


def test_two_processes_equal_one(tmp_path: Path) -> None:
    # This process is rank 0: starting one process instead of two halves the time, which is that of importing torch.
    child = spawn(run_child, (str(tmp_path),), nprocs=WORLD_SIZE - 1, join=False)
    run(0, str(tmp_path))
    assert child.join(60)
    expected = {}
    for name, metric in make_metrics().items():
        for index in range(4):
            metric.update(*batch(index))
        expected[name] = results_of(metric)
    for rank in range(WORLD_SIZE):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(results, expected, rtol=0, atol=0)
        own = torch.load(tmp_path / f"own_{rank}.pt", weights_only=True)
        torch.testing.assert_close(own, own_values(rank), rtol=0, atol=0, equal_nan=True)
