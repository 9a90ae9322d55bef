"""What several processes cost: `python -m benchmarks.scale [--repeats N]`.

Measures messages between two gloo processes on this machine, fits latency and bandwidth to them, counts the bytes that
a training step of aucseg sends, and extrapolates to many GPUs. Prints tables, with what is measured and what is assumed
beside every figure, and writes `benchmarks/results/scale.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from aucseg.losses import AUCSegLoss
from aucseg.memory_bank import TailMemoryBank
from aucseg.memory_bank.exchange import exchange_samples

RESULTS = Path(__file__).parent / "results" / "scale.json"
SIZES = (8, 80, 800, 8_000, 80_000, 800_000, 8_000_000)
CLASSES = (19, 59, 150, 171)
# Assumed, not measured: a node of 8 GPUs with an inter-node network of 400 Gbit/s a GPU, and a step of a small model.
ASSUMED = {"latency_us": 20.0, "bandwidth_gb_s": 40.0, "step_ms": 250.0, "images_per_gpu": 4, "parameters": 4_300_000}
GPUS = (1, 8, 64, 512, 4096, 10_000)
IMAGES = 10**9


def auc_bytes(num_classes: int, element_size: int = 8) -> int:
    """Bytes that a step with the square surrogate, one-vs-one, sums over the processes: in two messages.

    Pixels per class (K); then two sums of positives and two of negatives a channel, and the cross-entropy (4 K + 1).
    """
    return element_size * (5 * num_classes + 1)


@contextmanager
def recorded_messages() -> Any:
    """Collects the bytes of every all-reduce."""
    sent: list[int] = []
    original = dist.all_reduce

    def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        return original(tensor, *args, **kwargs)

    dist.all_reduce = all_reduce
    try:
        yield sent
    finally:
        dist.all_reduce = original


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median time of a call that all processes make together."""
    for _ in range(3):
        call()
    times: list[float] = []
    for _ in range(repeats):
        dist.barrier()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def batch(num_classes: int, size: int = 128) -> tuple[Tensor, Tensor]:
    """Quarter-resolution logits and labels of an image."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    target = torch.randint(num_classes, (1, size // 16, size // 16), generator=generator)
    target = target.repeat_interleave(16, 1).repeat_interleave(16, 2)
    return torch.randn(1, num_classes, size // 4, size // 4, generator=generator), target


def loss_step(loss_fn: AUCSegLoss, logits: Tensor, target: Tensor) -> Callable[[], None]:
    """Forward and backward."""

    def call() -> None:
        loss_fn(logits, target).backward()

    return call


def filled_bank(num_tail: int) -> TailMemoryBank:
    """A bank with five samples of each tail class, 40 x 40 pixels each."""
    bank = TailMemoryBank(range(num_tail), num_tail, capacity=5, generator=torch.Generator().manual_seed(0))
    images = torch.randint(256, (5, 3, 512, 512), dtype=torch.uint8)
    masks = torch.full((5, 512, 512), 255, dtype=torch.uint8)
    for class_id in range(num_tail):
        row, column = divmod(class_id, 12)
        masks[:, row * 42 : row * 42 + 40, column * 42 : column * 42 + 40] = class_id
    bank(images, masks)
    return bank


def measure(rank: int, ranks: int, folder: str, repeats: int) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    group = dist.group.WORLD
    result: dict[str, Any] = {"all_reduce": {}, "loss": {}}
    for size in SIZES:
        tensor = torch.zeros(size // 4)
        result["all_reduce"][size] = median_seconds(lambda t=tensor: dist.all_reduce(t), repeats)  # type: ignore[misc]
    for num_classes in CLASSES:
        logits, target = batch(num_classes)
        logits.requires_grad_()
        times = {}
        with recorded_messages() as sent:
            for name, loss_fn in (("alone", AUCSegLoss()), ("together", AUCSegLoss(process_group=group))):
                times[name] = median_seconds(loss_step(loss_fn, logits, target), max(repeats // 10, 5))
                if name == "alone":
                    assert not sent
            sent.clear()
            AUCSegLoss(process_group=group)(logits, target)
            result["loss"][num_classes] = {**times, "messages": list(sent)}
    bank, generator = filled_bank(20), torch.Generator().manual_seed(rank)
    exchanged: list[int] = []
    seconds = median_seconds(
        lambda: exchanged.append(exchange_samples(bank, torch.device("cpu"), 1, generator)), max(repeats // 20, 5)
    )
    result["bank"] = {"nbytes": bank.nbytes, "exchanged_bytes": exchanged[-1], "seconds": seconds}
    if rank == 0:
        (Path(folder) / "result.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def fitted(seconds: dict[int, float]) -> tuple[float, float]:
    """Latency (s) and bandwidth (bytes/s) of an all-reduce between two processes: those of the ends of the curve."""
    small, large = min(seconds), max(seconds)
    return seconds[small], (large - small) / max(seconds[large] - seconds[small], 1e-12)


def all_reduce_seconds(num_bytes: float, ranks: int, latency: float, bandwidth: float) -> float:
    """Model of a ring or tree all-reduce: a latency for each doubling, and every byte over the link about twice."""
    if ranks == 1:
        return 0.0
    return latency * math.ceil(math.log2(ranks)) + 2 * (ranks - 1) / ranks * num_bytes / bandwidth


def model_rows(latency: float, bandwidth: float, num_classes: int) -> list[dict[str, float]]:
    """Parts of a step for each number of GPUs, under `ASSUMED`."""
    rows = []
    step, images, parameters = ASSUMED["step_ms"] / 1e3, ASSUMED["images_per_gpu"], ASSUMED["parameters"]
    for ranks in GPUS:
        # Two messages of the loss, one of the guard, one of Lightning; each costs the latency again.
        half = auc_bytes(num_classes) / 2
        sums = 2 * all_reduce_seconds(half, ranks, latency, bandwidth)
        small = 2 * all_reduce_seconds(8, ranks, latency, bandwidth)
        gradient = all_reduce_seconds(4 * parameters, ranks, latency, bandwidth)
        # Nothing hidden behind the backward pass: an upper bound for the gradients.
        total = step + sums + small + gradient
        rows.append(
            {
                "gpus": ranks,
                "sums_ms": 1e3 * sums,
                "small_ms": 1e3 * small,
                "gradient_ms": 1e3 * gradient,
                "step_ms": 1e3 * total,
                "sums_share": sums / total,
                "efficiency": step / total,
                "hours_per_epoch": IMAGES / (ranks * images) * total / 3600,
            }
        )
    return rows


def print_rows(rows: list[dict[str, float]]) -> None:
    """A table of `model_rows`."""
    print("  GPUs  AUC sums ms  guard ms  gradients ms  step ms  AUC share  efficiency  hours for 10^9 images")
    for row in rows:
        print(
            f"{row['gpus']:6.0f}  {row['sums_ms']:11.3f}  {row['small_ms']:8.3f}  {row['gradient_ms']:12.2f}  "
            f"{row['step_ms']:7.1f}  {100 * row['sums_share']:7.2f} %  {100 * row['efficiency']:8.1f} %  "
            f"{row['hours_per_epoch']:21.1f}"
        )


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200, help="repeats of each message (%(default)s)")
    parser.add_argument("--latency-us", type=float, default=ASSUMED["latency_us"], help="assumed, of one hop")
    parser.add_argument("--bandwidth-gb-s", type=float, default=ASSUMED["bandwidth_gb_s"], help="assumed, of a link")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start_processes(  # type: ignore[no-untyped-call]
            measure, (2, folder, args.repeats), nprocs=2, start_method="spawn"
        )
        measured = json.loads((Path(folder) / "result.json").read_text())
    seconds = {int(size): value for size, value in measured["all_reduce"].items()}
    latency, bandwidth = fitted(seconds)

    print("Measured: all-reduce between 2 gloo processes on this machine\n\n     bytes   median us")
    for size, value in seconds.items():
        print(f"{size:10d}  {1e6 * value:10.1f}")
    print(f"\nlatency {1e6 * latency:.0f} us, bandwidth {bandwidth / 1e9:.2f} GB/s (ends of the curve)")
    print("\nMeasured: AUCSegLoss forward and backward, 1 x K x 32 x 32 logits, 128 x 128 labels, 1 thread a process\n")
    print("  K   alone ms  together ms   bytes a step (messages)")
    for num_classes, row in measured["loss"].items():
        sent = f"{sum(row['messages'])} ({' + '.join(map(str, row['messages']))})"
        print(f"{num_classes:>3}  {1e3 * row['alone']:9.2f}  {1e3 * row['together']:11.2f}   {sent}")
    bank = measured["bank"]
    print(
        f"\nMeasured: bank of 20 classes x 5 samples, {bank['nbytes'] / 1e6:.2f} MB; an exchange sends "
        f"{bank['exchanged_bytes'] / 1e6:.2f} MB a process and takes {1e3 * bank['seconds']:.1f} ms"
    )
    assumed = model_rows(args.latency_us / 1e6, args.bandwidth_gb_s * 1e9, 150)
    print(
        f"\nExtrapolated, not measured: K = 150, {ASSUMED['parameters'] / 1e6:.1f} M parameters, a step of "
        f"{ASSUMED['step_ms']:g} ms for {ASSUMED['images_per_gpu']} images a GPU,\n"
        "nothing hidden behind the backward pass, no stragglers"
    )
    print(f"\nwith an assumed {args.latency_us:g} us a hop and {args.bandwidth_gb_s:g} GB/s a link\n")
    print_rows(assumed)
    pessimistic = model_rows(latency, bandwidth, 150)
    print("\nwith the latency and bandwidth measured above, between two processes of this machine over TCP\n")
    print_rows(pessimistic)
    RESULTS.parent.mkdir(exist_ok=True)
    content = {
        "machine": {"platform": platform.platform(), "torch": torch.__version__, "repeats": args.repeats},
        "measured": measured,
        "fit": {"latency_us": 1e6 * latency, "bandwidth_gb_s": bandwidth / 1e9},
        "assumed": {**ASSUMED, "latency_us": args.latency_us, "bandwidth_gb_s": args.bandwidth_gb_s},
        "extrapolated": {"assumed_network": assumed, "measured_network": pessimistic},
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\n{RESULTS}")


if __name__ == "__main__":
    main()
