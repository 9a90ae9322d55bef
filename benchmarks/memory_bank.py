"""Time and memory of the tail memory bank: `python -m benchmarks.memory_bank [--repeats N] [--threads 1 2]`.

Scenes are random smooth regions of non-tail classes with elliptic objects of tail classes on top. A call stores and
pastes; the bank is full before the clock starts. Prints medians in milliseconds of wall time, and of the CPU time of
the calling thread, which a busy machine distorts less: of a plain call; of a plan, which a loader's worker makes where
there is a GPU; of a call with a plan; and of such a call without the copies of pixels, which a GPU does. Writes them to
`benchmarks/results/memory_bank.json`.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from aucseg import TailMemoryBank
from aucseg.memory_bank import bank as bank_module
from aucseg.memory_bank import store as store_module

RESULTS = Path(__file__).parent / "results" / "memory_bank.json"


class Case(NamedTuple):
    """One timed situation."""

    name: str
    num_classes: int
    tail_classes: list[int]
    size: int
    batch_size: int
    tail_per_image: int
    dtype: torch.dtype
    options: dict[str, Any]


CITYSCAPES = [6, 12, 14, 15, 16, 17, 18]
ADE20K = list(range(26, 150))
PASTE_ALL = {"sample_ratio": 1.0, "resize_ratio": 1.0, "scope": "image"}
ADE_OPTIONS = {"sample_ratio": 0.05, "resize_ratio": 0.4, "scope": "image"}
CASES = [
    Case("1024x1024, K=19, 3 tail classes stored, 4 pasted", 19, CITYSCAPES, 1024, 1, 3, torch.uint8, PASTE_ALL),
    Case("1024x1024, K=19, 0 stored, 7 pasted", 19, CITYSCAPES, 1024, 1, 0, torch.uint8, PASTE_ALL),
    Case("1024x1024, K=19, 3 stored, 4 pasted, float32", 19, CITYSCAPES, 1024, 1, 3, torch.float32, PASTE_ALL),
    Case("512x512, K=150, ADE20K settings, 4 stored", 150, ADE20K, 512, 1, 4, torch.uint8, ADE_OPTIONS),
    Case("512x512, K=150, ADE20K settings, 4 stored, float32", 150, ADE20K, 512, 1, 4, torch.float32, ADE_OPTIONS),
    Case("16 x 512x512, K=150, ADE20K settings, 4 stored each", 150, ADE20K, 512, 16, 4, torch.uint8, ADE_OPTIONS),
    Case("16 x 512x512, K=19, presence target 0.3, 1 stored each", 19, CITYSCAPES, 512, 16, 1, torch.uint8,
         {"presence_target": 0.3, "resize_ratio": 1.0, "scope": "image"}),
    Case("32 x 96x128-like, K=35, 18 tail, R_S 0.2, uniform", 35, list(range(17, 35)), 112, 32, 1, torch.uint8,
         {"sample_ratio": 0.2, "resize_ratio": 1.0, "scope": "image", "placement": "uniform"}),
]  # fmt: skip


def scene(size: int, head_classes: list[int], tail_classes: list[int], generator: torch.Generator) -> Tensor:
    """Label map (size, size) uint8: regions of `head_classes`, 1 to 3 objects of each tail class, 0.1-2 % in all."""
    noise = torch.rand(1, min(len(head_classes), 12), 9, 9, generator=generator)
    regions = F.interpolate(noise, size=(size, size), mode="bicubic").argmax(1)[0]
    chosen = torch.tensor(head_classes)[torch.randperm(len(head_classes), generator=generator)[:12]]
    mask = chosen[regions].to(torch.uint8)
    grid = torch.arange(size)
    for class_id in tail_classes:
        share = 0.001 * 20 ** float(torch.rand((), generator=generator))
        count = int(torch.randint(1, 4, (), generator=generator))
        for _ in range(count):
            aspect, row, column = torch.rand(3, generator=generator).tolist()
            radius = size * (share / count / 3.1416) ** 0.5
            y, x = (grid - row * size) / radius * (0.6 + aspect), (grid - column * size) / radius / (0.6 + aspect)
            mask[y[:, None] ** 2 + x[None, :] ** 2 < 1] = class_id
    return mask


def batch(
    case: Case, batch_size: int, tail_classes: list[list[int]], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images and masks, with the given tail classes in each image."""
    head = [c for c in range(case.num_classes) if c not in case.tail_classes]
    masks = torch.stack([scene(case.size, head, tail_classes[number], generator) for number in range(batch_size)])
    images = torch.randint(0, 256, (batch_size, 3, case.size, case.size), generator=generator, dtype=torch.uint8)
    return images.to(case.dtype), masks


def full_bank(case: Case, generator: torch.Generator) -> TailMemoryBank:
    """A bank with every slot of every class taken."""
    bank = TailMemoryBank(case.tail_classes, case.num_classes, generator=generator, **case.options)
    for number in range(bank.capacity):
        for first in range(0, len(case.tail_classes), 7):
            bank(*batch(case, 1, [case.tail_classes[first : first + 7]], generator))
        # A class that later objects hid is stored again until it has its sample.
        while missing := [class_id for class_id, count in bank.num_samples.items() if count <= number]:
            bank(*batch(case, 1, [missing[:1]], generator))
    return bank


@contextmanager
def copies_timed() -> Iterator[list[float]]:
    """Within the context: CPU seconds of each function that moves pixels about and does nothing else."""
    taken: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                taken.append(time.thread_time() - start)

        return call

    with ExitStack() as stack:
        for owner, name in ((bank_module, "paste_pixels"), (store_module, "cut_pixels"), (Tensor, "clone")):
            stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name))))
        yield taken


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Median time of a call, and what it did."""
    generator = torch.Generator().manual_seed(0)
    bank = full_bank(case, generator)
    nbytes = bank.nbytes
    drawn = [torch.randperm(len(case.tail_classes), generator=generator) for _ in range(4 * case.batch_size)]
    tail = [[case.tail_classes[i] for i in order[: case.tail_per_image].tolist()] for order in drawn]
    batches = [
        batch(case, case.batch_size, tail[case.batch_size * i : case.batch_size * (i + 1)], generator) for i in range(4)
    ]
    times, cpu_times, pixels, pastes = [], [], [], []
    plan_times, planned_times, host_times = [], [], []
    for repeat in range(repeats + 3):
        images, masks = batches[repeat % len(batches)]
        plan_start = time.thread_time()
        plan = bank.plan(masks)
        plan_time = time.thread_time() - plan_start
        with copies_timed() as copying:
            planned_start = time.thread_time()
            bank(images, masks, plan=plan)
            planned_time = time.thread_time() - planned_start
        if repeat >= 3:
            plan_times.append(1e3 * plan_time)
            planned_times.append(1e3 * planned_time)
            host_times.append(1e3 * (planned_time - sum(copying)))
        start, cpu_start = time.perf_counter(), time.thread_time()
        bank(images, masks)
        elapsed, cpu_elapsed = time.perf_counter() - start, time.thread_time() - cpu_start
        if repeat >= 3:
            times.append(1e3 * elapsed)
            cpu_times.append(1e3 * cpu_elapsed)
            pixels.append(sum(count for _, _, count in bank.last_pastes))
            pastes.append(len(bank.last_pastes))
    whole = len(case.tail_classes) * bank.capacity * 3 * case.size**2 * 4
    return {
        "case": case.name,
        "median_ms": round(statistics.median(times), 2),
        "fastest_ms": round(min(times), 2),
        "cpu_median_ms": round(statistics.median(cpu_times), 2),
        "plan_cpu_ms": round(statistics.median(plan_times), 2),
        "planned_cpu_ms": round(statistics.median(planned_times), 2),
        "host_cpu_ms": round(statistics.median(host_times), 2),
        "pastes": round(statistics.mean(pastes), 1),
        "pasted_pixels": round(statistics.mean(pixels)),
        "bank_bytes": nbytes,
        "whole_float_images_over_bank": round(whole / nbytes, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "repeats": arguments.repeats,
        "results": [],
    }
    print(f"torch {report['torch']}, Python {report['python']}, {report['cores']} cores, load {os.getloadavg()}")
    header = ("threads", "ms", "fastest", "cpu ms", "plan", "planned", "host", "pastes", "pixels", "bank MB", "x less")
    print(f"{'case':54}" + "".join(f"{title:>10}" for title in header))
    for case in CASES:
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            row = {"threads": threads, **measure(case, arguments.repeats)}
            report["results"].append(row)
            bank_mb = row["bank_bytes"] / 1e6
            times = ("median_ms", "fastest_ms", "cpu_median_ms", "plan_cpu_ms", "planned_cpu_ms", "host_cpu_ms")
            keys = ("threads", *times, "pastes", "pasted_pixels")
            values = [*(row[key] for key in keys), round(bank_mb, 2), row["whole_float_images_over_bank"]]
            print(f"{case.name:54}" + "".join(f"{value:>10}" for value in values), flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
