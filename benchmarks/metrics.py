"""Time and state of the metrics beside torchmetrics': `python -m benchmarks.metrics [--repeats N]`.

One update and one compute on random logits and labels with one thread, and the labels that validation takes from
low-resolution logits. Prints medians and writes them to `benchmarks/results/metrics.json`.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchmetrics
from benchmarks.peak_memory import peak_bytes
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAUROC, MulticlassJaccardIndex

from aucseg.metrics import GroupedMeanIoU, PixelAUROC, PixelAveragePrecision
from aucseg.tensors.upsampling import predicted_labels

RESULTS = Path(__file__).parent / "results" / "metrics.json"
THRESHOLDS = 200

Factories = dict[str, Callable[[], Metric]]


def score_metrics(num_classes: int) -> Factories:
    return {
        "PixelAUROC ovo": lambda: PixelAUROC(num_classes),
        "PixelAUROC ovr": lambda: PixelAUROC(num_classes, average="ovr"),
        "PixelAveragePrecision": lambda: PixelAveragePrecision(num_classes),
        f"torchmetrics MulticlassAUROC ({THRESHOLDS} thresholds)": lambda: MulticlassAUROC(
            num_classes, thresholds=THRESHOLDS, ignore_index=255, validate_args=False
        ),
    }


def label_metrics(num_classes: int) -> Factories:
    return {
        "GroupedMeanIoU": lambda: GroupedMeanIoU(num_classes),
        "torchmetrics MulticlassJaccardIndex": lambda: MulticlassJaccardIndex(
            num_classes, ignore_index=255, validate_args=False
        ),
    }


def make_batch(num_classes: int, size: int) -> tuple[Tensor, Tensor]:
    """Logits (1, K, size, size) and labels of at most 12 classes, 5 % of them ignored."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(min(num_classes, 12), (1, size, size), generator=generator)
    logits = 2 * torch.randn(1, num_classes, size, size, generator=generator)
    logits.scatter_add_(1, target.unsqueeze(1), torch.full((1, 1, size, size), 3.0))
    target[torch.rand(1, size, size, generator=generator) < 0.05] = 255
    return logits, target


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(factories: Factories, preds: Tensor, target: Tensor, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of update and compute; the metrics take turns, so that a noisy machine disturbs all alike."""
    metrics = {name: factory() for name, factory in factories.items()}
    times: dict[str, dict[str, list[float]]] = {name: {"update_s": [], "compute_s": []} for name in metrics}
    for metric in metrics.values():  # the first update allocates
        metric.update(preds[..., :8, :8], target[..., :8, :8])
    for _ in range(repeats):
        for name, metric in metrics.items():
            times[name]["update_s"].append(seconds(partial(metric.update, preds, target)))
            times[name]["compute_s"].append(seconds(metric.compute))
            metric._computed = None  # compute() would return its last result
    rows = {name: {kind: statistics.median(v) for kind, v in kinds.items()} for name, kinds in times.items()}
    for name, metric in metrics.items():
        rows[name]["state_mb"] = sum(getattr(metric, state).nbytes for state in metric._defaults) / 1e6
        if isinstance(metric, PixelAUROC | PixelAveragePrecision):
            rows[name]["error_bound"] = metric.details()["error_bound"].item()
    return rows


def labels_at_full_size(repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds and peak memory of labels from 16 x 150 x 128 x 128 logits at 512 x 512: at once, and by bands."""
    logits = torch.randn(16, 150, 128, 128, generator=torch.Generator().manual_seed(0))
    logits, size = logits.contiguous(memory_format=torch.channels_last), (512, 512)
    ways: dict[str, Callable[[], Tensor]] = {
        "interpolate and argmax": lambda: F.interpolate(logits, size, mode="bilinear").argmax(1),
        "predicted_labels": lambda: predicted_labels(logits, size),
    }
    times = [{name: seconds(way) for name, way in ways.items()} for _ in range(repeats)]
    return {
        name: {"seconds": statistics.median(row[name] for row in times), "peak_mib": peak_bytes(way) / 2**20}
        for name, way in ways.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "torchmetrics": torchmetrics.__version__,
        "machine": platform.machine(),
        "threads": 1,
        "repeats": repeats,
        "cases": {},
    }
    for num_classes, size, on_labels in ((6, 128, False), (19, 128, False), (150, 64, False), (150, 512, True)):
        logits, target = make_batch(num_classes, size)
        if on_labels:
            rows = measure(label_metrics(num_classes), logits.argmax(1), target, repeats)
        else:
            rows = measure(score_metrics(num_classes), logits, target, repeats)
        case = f"K={num_classes}, {size}x{size}, {'labels' if on_labels else 'logits'}"
        report["cases"][case] = rows
        print(f"\n{case}")
        for name, row in rows.items():
            bound = f", error bound {row['error_bound']:.1e}" if "error_bound" in row else ""
            times = f"update {row['update_s'] * 1e3:9.2f} ms, compute {row['compute_s'] * 1e3:8.2f} ms"
            print(f"  {name:52s} {times}, state {row['state_mb']:7.2f} MB{bound}")
    report["labels"] = labels_at_full_size(repeats)
    print("\nlabels of 16 x 150 x 128 x 128 logits at 512 x 512")
    for name, row in report["labels"].items():
        print(f"  {name:52s} {row['seconds']:6.2f} s, {row['peak_mib']:8.1f} MiB")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
