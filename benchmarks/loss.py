"""Time and memory of the loss beside cross-entropy: `python -m benchmarks.loss [--repeats N] [--only TABLE ...]`.

Forward and backward on float32 logits. Every case has a process of its own: what ran before decides how much memory a
process keeps, and cross-entropy takes up to twice as long where it has to ask for pages. All ways of a case take turns
there, so that a noisy machine disturbs all alike. Prints medians over the turns and ratios to the first way of the case
(the median of the ratios turn by turn, of wall time and of CPU time), and the peak of what a way allocates beyond
logits and their gradient. Writes `benchmarks/results/loss.json` and the charts `docs/images/loss_*.svg`.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.label_maps import IGNORE, realistic, worst_case
from benchmarks.peak_memory import peak_bytes
from torch import Tensor
from torch.nn import functional as F

from aucseg.losses import AUCSegLoss, PairwiseAUCLoss
from benchmarks import loss_charts

RESULTS = Path(__file__).parent / "results" / "loss.json"
LABELS = {"realistic": realistic, "random": worst_case}

Loss = Callable[[Tensor, Tensor], Tensor]
Row = dict[str, Any]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, ignore_index=IGNORE)


def interpolated(loss: Loss) -> Loss:
    """The plain way for logits smaller than the target."""

    def with_interpolation(logits: Tensor, target: Tensor) -> Tensor:
        full = F.interpolate(logits, size=target.shape[1:], mode="bilinear", align_corners=False)
        return loss(full, target)

    return with_interpolation


auc = PairwiseAUCLoss(ignore_index=IGNORE)
both = AUCSegLoss(ignore_index=IGNORE)
FULL: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "PairwiseAUCLoss": auc,
    "cross_entropy + PairwiseAUCLoss": lambda x, y: cross_entropy(x, y) + auc(x, y),
    "AUCSegLoss": both,
}
LOW: dict[str, Loss] = {
    "interpolate + cross_entropy": interpolated(cross_entropy),
    "interpolate + cross_entropy + PairwiseAUCLoss": interpolated(lambda x, y: cross_entropy(x, y) + auc(x, y)),
    "AUCSegLoss": both,
}
# Every surrogate, and the ways that need a sort.
SURROGATES: dict[str, dict[str, Any]] = {
    "square": {},
    "square, softmax scores": {"scores": "softmax"},
    "square, pair weights": {"pair_weight": torch.ones(19, 19)},
    "exponential": {"surrogate": "exponential"},
    "logistic": {"surrogate": "logistic"},
    "hinge": {"surrogate": "hinge"},
    "hinge, margin 0.5 (sorted)": {"surrogate": "hinge", "margin": 0.5},
    "squared hinge, identity scores (sorted)": {"surrogate": "squared_hinge", "scores": "identity"},
    "hinge, max_fpr 0.1 (sorted)": {"surrogate": "hinge", "max_fpr": 0.1},
}
WAYS: dict[str, dict[str, Loss]] = {
    "full": FULL,
    "low": LOW,
    "surrogates": {
        "cross_entropy": cross_entropy,
        **{name: PairwiseAUCLoss(ignore_index=IGNORE, **chosen) for name, chosen in SURROGATES.items()},
    },
}


def forward_backward(loss: Loss, logits: Tensor, target: Tensor) -> Tensor:
    return torch.autograd.grad(loss(logits, target), logits)[0]


def measure(ways: dict[str, Loss], logits: Tensor, target: Tensor, repeats: int) -> dict[str, Row]:
    """For each way: median seconds, ratios to the first way, and peak bytes beyond logits and gradient."""
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, loss in ways.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            forward_backward(loss, logits, target)
            if repeat:  # the first turn warms up
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - cpu_start)
    first = next(iter(ways))
    rows: dict[str, Row] = {}
    for name, loss in ways.items():
        peak = peak_bytes(partial(forward_backward, loss, logits, target)) - logits.nbytes
        rows[name] = {
            "seconds": statistics.median(wall[name]),
            "ratio": statistics.median(a / b for a, b in zip(wall[name], wall[first], strict=True)),
            "cpu_ratio": statistics.median(a / b for a, b in zip(cpu[name], cpu[first], strict=True)),
            "extra_bytes": peak,
            "extra_share": peak / logits.nbytes,
        }
    return rows


def measure_case(
    ways: str,
    shape: tuple[int, int, int, int],
    labels: str,
    repeats: int,
    scale: int,
    channels_last: bool,
    threads: int,
) -> dict[str, Row]:
    """One case; runs in a process of its own."""
    torch.set_num_threads(threads)
    batch, num_classes, size, _ = shape
    generator = torch.Generator().manual_seed(0)
    target = LABELS[labels](num_classes, batch, size * scale, generator)
    logits = torch.randn(shape, generator=generator)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return measure(WAYS[ways], logits.contiguous(memory_format=layout).requires_grad_(), target, repeats)


def case(
    ways: str,
    shape: tuple[int, int, int, int],
    labels: str,
    repeats: int,
    *,
    scale: int = 1,
    channels_last: bool = False,
) -> Row:
    """Measures and prints one case: logits of `shape`, labels `scale` times as high and wide."""
    arguments = (ways, shape, labels, repeats, scale, channels_last, torch.get_num_threads())
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        rows = fresh.submit(measure_case, *arguments).result()
    name = f"{' x '.join(map(str, shape))}{f' -> {shape[2] * scale}' if scale > 1 else ''}, {labels}"
    print(f"\n{name}{', channels last' if channels_last else ''}")
    for way, row in rows.items():
        print(
            f"  {way:46s} {row['seconds'] * 1e3:9.1f} ms  x{row['ratio']:6.2f} (CPU time x{row['cpu_ratio']:5.2f})"
            f"  extra {row['extra_bytes'] / 2**20:8.1f} MiB = {row['extra_share']:6.3f} of the logits",
            flush=True,
        )
    return {"logits": shape, "scale": scale, "labels": labels, "channels_last": channels_last, "ways": rows}


def full_resolution(repeats: int) -> list[Row]:
    shapes = [(2, 19, 512, 512), (2, 19, 1024, 1024), (1, 150, 512, 512), (4, 150, 512, 512)]
    return [
        case("full", shape, labels, repeats, channels_last=channels_last)
        for shape in shapes
        for labels in LABELS
        for channels_last in ((False, True) if shape != shapes[-1] else (False,))
    ]


def low_resolution(repeats: int) -> list[Row]:
    sizes = [((4, 150, 128, 128), 4), ((2, 19, 128, 128), 8)]
    return [
        case("low", shape, labels, repeats, scale=scale, channels_last=channels_last)
        for shape, scale in sizes
        for labels in LABELS
        for channels_last in (False, True)
    ]


def pixels(repeats: int) -> list[Row]:
    return [case("full", (2, 19, size, size), "realistic", repeats) for size in (256, 512, 1024, 2048)]


def classes(repeats: int) -> list[Row]:
    return [case("full", (1, count, 256, 256), "realistic", repeats) for count in (19, 150, 500, 1000)]


def surrogates(repeats: int) -> list[Row]:
    return [case("surrogates", (2, 19, 512, 512), labels, repeats) for labels in LABELS]


TABLES = {table.__name__: table for table in (full_resolution, low_resolution, pixels, classes, surrogates)}


def processor() -> str:
    """The model as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=TABLES, help="some of the tables; the others stay as they are")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    setting = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "repeats": arguments.repeats,
    }
    print(", ".join(f"{name} {value}" for name, value in setting.items()), f"load {os.getloadavg()}")
    report = json.loads(RESULTS.read_text()) if arguments.only and RESULTS.exists() else {}
    for name in arguments.only or TABLES:
        print(f"\n== {name.replace('_', ' ')}")
        report[name] = {**setting, "load_before": os.getloadavg()[0], "cases": TABLES[name](arguments.repeats)}
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    loss_charts.main()


if __name__ == "__main__":
    main()
