"""Time and memory on a GPU, beside cross-entropy: `python -m benchmarks.gpu [--repeats N] [--only TABLE ...]`.

With `--device cpu --small` a rehearsal of the same code on any machine: the first case of each table, in miniature.

- *loss*: forward and backward on float32 and bfloat16 logits, the losses of `benchmarks.loss`; peak memory beyond
  logits and their gradient.
- *paths*: the other ways of the loss beside the square with uniform weights: weights of class pairs, smooth surrogates,
  identity scores, the sums of a micro-batch, what needs a sort.
- *bank*: a call of the memory bank that stores and pastes, images and masks on the GPU, without and with a plan.
- *step*: a whole training step (batch in uint8 on the GPU, forward, loss, backward, AdamW) under bfloat16 autocast,
  with cross-entropy, with the AUC loss, with both and the bank, and that with a plan and compiled.
- *metrics*: updates beside torchmetrics', and beside the AUC loss on full-size logits of 150 classes.
- *labels*: what validation makes of low-resolution logits of 150 classes: their labels at full size, and the metrics.

The ways of a case take turns; each is timed with the device's clock between synchronizations. Prints medians over the
turns and ratios to the first way of the case (medians of the ratios turn by turn). Writes
`benchmarks/results/gpu.json`.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from benchmarks.label_maps import IGNORE
from benchmarks.loss import LABELS, WAYS, forward_backward
from benchmarks.memory_bank import CASES, batch, full_bank
from benchmarks.metrics import make_batch, score_metrics
from torch import Tensor
from torch.nn import functional as F

from aucseg.losses import AUCSegLoss, build_loss
from aucseg.memory_bank import TailMemoryBank
from aucseg.metrics import GroupedMeanIoU
from aucseg.models import build_model
from aucseg.tensors.upsampling import predicted_labels

RESULTS = Path(__file__).parent / "results" / "gpu.json"
Row = dict[str, Any]
T = TypeVar("T")


class Setting(NamedTuple):
    """Where and how long to measure."""

    device: torch.device
    repeats: int
    small: bool

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def warm_up(self) -> int:
        return 1 if self.small else 3

    def cases(self, all_cases: Sequence[T]) -> Sequence[T]:
        return all_cases[:1] if self.small else all_cases


def milliseconds(function: Callable[[], Any], setting: Setting) -> float:
    """Wall time of a call until the device has done its work."""
    if setting.on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if setting.on_gpu:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def peak_bytes(function: Callable[[], Any], setting: Setting) -> int:
    """Memory of tensors at the most during a call, beyond what was there before; 0 on the CPU, which does not tell."""
    if not setting.on_gpu:
        return 0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def in_turns(ways: Mapping[str, Callable[[], Any]], setting: Setting) -> dict[str, Row]:
    """Median milliseconds of each way, its ratio to the first, and its peak memory beyond what was there before."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(setting.repeats + setting.warm_up):
        for name, way in ways.items():
            taken = milliseconds(way, setting)
            if repeat >= setting.warm_up:
                times[name].append(taken)
    first = times[next(iter(ways))]
    rows: dict[str, Row] = {}
    for name, way in ways.items():
        rows[name] = {
            "ms": statistics.median(times[name]),
            "ratio": statistics.median(a / b for a, b in zip(times[name], first, strict=True)),
            "peak_bytes": peak_bytes(way, setting),
        }
    return rows


def show(case: str, rows: dict[str, Row]) -> Row:
    print(f"\n{case}")
    for name, row in rows.items():
        peak = row["peak_bytes"] / 2**20
        print(f"  {name:58s} {row['ms']:9.3f} ms  x{row['ratio']:6.2f}  {peak:9.1f} MiB", flush=True)
    return {"case": case, "ways": rows}


class LossCase(NamedTuple):
    """Logits and labels of one case."""

    ways: str
    shape: tuple[int, int, int, int]
    scale: int = 1
    labels: str = "realistic"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __str__(self) -> str:
        size = f" -> {self.shape[2] * self.scale}" if self.scale > 1 else ""
        layout = ", channels last" if self.channels_last else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{' x '.join(map(str, self.shape))}{size}, {self.labels}, {dtype}{layout}"


BATCHES = [LossCase("full", (8, 19, 1024, 1024)), LossCase("full", (16, 150, 512, 512))]
BATCHES += [LossCase("low", (8, 19, 128, 128), 8), LossCase("low", (16, 150, 128, 128), 4)]
LOSS_CASES = [
    LossCase("full", (2, 19, 512, 512)),
    *(case for batch in BATCHES for case in (batch, batch._replace(dtype=torch.bfloat16, channels_last=True))),
    *(batch._replace(labels="random") for batch in BATCHES[:2]),
    LossCase("surrogates", (2, 19, 512, 512)),
]


def loss(setting: Setting) -> list[Row]:
    cases = []
    for case in setting.cases(LOSS_CASES):
        if setting.small:
            case = case._replace(shape=(1, 19, 64, 64))
        generator = torch.Generator().manual_seed(0)
        batch_size, num_classes, size, _ = case.shape
        target = LABELS[case.labels](num_classes, batch_size, size * case.scale, generator).to(setting.device)
        layout = torch.channels_last if case.channels_last else torch.contiguous_format
        logits = (
            torch.randn(case.shape, device=setting.device)
            .to(case.dtype)
            .contiguous(memory_format=layout)
            .requires_grad_()
        )
        ways = {name: partial(forward_backward, way, logits, target) for name, way in WAYS[case.ways].items()}
        rows = in_turns(ways, setting)
        for row in rows.values():  # the gradient is not an extra
            row["peak_bytes"] = max(0, row["peak_bytes"] - logits.nbytes)
        cases.append(show(str(case), rows))
    return cases


PATHS: dict[str, dict[str, Any]] = {
    "square": {},
    "square, label smoothing": {"label_smoothing": 0.1},
    "pair weights": {"pair_weight": 1 + torch.rand(19, 19, generator=torch.Generator().manual_seed(0))},
    "exponential": {"surrogate": "exponential"},
    "logistic": {"surrogate": "logistic"},
    "sigmoid, margin 5": {"surrogate": "sigmoid", "margin": 5.0},
    "identity scores": {"scores": "identity"},
    "hinge by sorting": {"surrogate": "hinge", "margin": 0.5},
    "partial AUC": {"surrogate": "hinge", "max_fpr": 0.1},
}


def paths(setting: Setting) -> list[Row]:
    size = 64 if setting.small else 512
    generator = torch.Generator().manual_seed(0)
    target = LABELS["realistic"](19, 2, size, generator).to(setting.device)
    logits = torch.randn(2, 19, size, size, generator=generator).to(setting.device).requires_grad_()
    made = {name: AUCSegLoss(ignore_index=IGNORE, **chosen).to(setting.device) for name, chosen in PATHS.items()}
    ways: dict[str, Callable[[], Any]] = {
        name: partial(forward_backward, loss_fn, logits, target) for name, loss_fn in made.items()
    }
    ways["sums of a micro-batch"] = partial(made["square"].class_sums, logits, target)
    return [show(f"2 x 19 x {size} x {size}", in_turns(ways, setting))]


def bank(setting: Setting) -> list[Row]:
    cases = []
    for case in setting.cases((CASES[0], CASES[5], CASES[6])):
        generator = torch.Generator().manual_seed(0)
        filled = full_bank(case, generator)
        tail = [case.tail_classes[: case.tail_per_image]] * case.batch_size
        on_host = batch(case, case.batch_size, tail, generator)
        images, masks = (tensor.to(setting.device) for tensor in on_host)
        ways = {
            "bank": partial(filled, images, masks),
            "bank with a plan": partial(filled, images, masks, plan=filled.plan(on_host[1])),
        }
        cases.append(show(case.name, in_turns(ways, setting)))
    return cases


MODELS: dict[str, dict[str, Any]] = {"segnext/tiny": {}, "smp/deeplabv3plus": {"encoder": "resnet50"}}


def step(setting: Setting) -> list[Row]:
    batch_size, size = (2, 64) if setting.small else (16, 512)
    return [
        show(
            f"{name}, {batch_size} x {size} x {size}, K={num_classes}, bfloat16 autocast",
            in_turns(training_steps(name, batch_size, size, num_classes, setting.device), setting),
        )
        for name, num_classes in setting.cases([(name, count) for name in MODELS for count in (19, 150)])
    ]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    full = F.interpolate(logits.float(), size=target.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, target, ignore_index=255)


def training_steps(
    name: str, batch_size: int, size: int, num_classes: int, device: torch.device
) -> dict[str, Callable[[], Any]]:
    """One step with each method, all of one model."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(name, num_classes, **MODELS[name]).train().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (model.pixel_mean, model.pixel_std))
    images = torch.randint(256, (batch_size, 3, size, size), generator=generator, dtype=torch.uint8).to(device)
    masks = LABELS["realistic"](num_classes, batch_size, size, generator)
    masks = masks.where(masks >= 0, 255).to(torch.uint8)
    tail = range(num_classes // 2, num_classes)
    memory = TailMemoryBank(tail, num_classes, sample_ratio=0.2, resize_ratio=0.4)
    auc = build_loss("aucseg")
    plan = memory.plan(masks)  # a loader's worker makes it
    masks = masks.to(device)

    def value_of(loss_fn: Callable[[Tensor, Tensor], Tensor], with_bank: bool, with_plan: bool) -> Tensor:
        seen, labels = memory(images, masks, plan=plan if with_plan else None) if with_bank else (images, masks)
        with torch.autocast(device.type, torch.bfloat16):
            normalized = ((seen.float() - mean) / std).contiguous(memory_format=torch.channels_last)
            return loss_fn(model(normalized), labels.long())

    compiled = torch.compile(value_of)

    def one(
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        with_bank: bool,
        with_plan: bool = False,
        forward: Callable[..., Tensor] = value_of,
    ) -> None:
        torch.autograd.backward(forward(loss_fn, with_bank, with_plan))
        optimizer.step()
        optimizer.zero_grad()

    return {
        "interpolate + cross-entropy": partial(one, cross_entropy, False),
        "AUC loss": partial(one, auc, False),
        "AUC loss and bank": partial(one, auc, True),
        "AUC loss and bank with a plan": partial(one, auc, True, True),
        # On a CPU a compiler of C++ would be needed.
        **({"the same, compiled": partial(one, auc, True, True, compiled)} if device.type == "cuda" else {}),
    }


def metrics(setting: Setting) -> list[Row]:
    cases = []
    for num_classes, size in (
        [(19, 32)] if setting.small else [(19, 512), (150, 64)]
    ):  # with more pixels of 150 classes torchmetrics takes too long
        logits, target = (tensor.to(setting.device) for tensor in make_batch(num_classes, size))
        made = {name: factory().to(setting.device) for name, factory in score_metrics(num_classes).items()}
        updates = {name: partial(metric.update, logits, target) for name, metric in made.items()}
        cases.append(show(f"update, 1 x {num_classes} x {size} x {size}", in_turns(updates, setting)))
    batch_size, size = (1, 32) if setting.small else (16, 512)
    target = LABELS["realistic"](150, batch_size, size, torch.Generator().manual_seed(0))
    target = target.where(target >= 0, 255).to(setting.device)
    logits = torch.randn(batch_size, 150, size, size, device=setting.device).requires_grad_()
    ways: dict[str, Callable[[], Any]] = {
        "AUC loss": partial(forward_backward, build_loss("aucseg"), logits, target),
        **own_updates(logits.detach(), target, setting),
    }
    return [*cases, show(f"update, {batch_size} x 150 x {size} x {size}", in_turns(ways, setting))]


def own_updates(logits: Tensor, target: Tensor, setting: Setting) -> dict[str, Callable[[], Any]]:
    """An update of each metric of this package with logits of 150 classes."""
    factories: dict[str, Callable[[], Any]] = {
        "GroupedMeanIoU": partial(GroupedMeanIoU, 150),
        **{name: factory for name, factory in score_metrics(150).items() if "torch" not in name},
    }
    return {name: partial(factory().to(setting.device).update, logits, target) for name, factory in factories.items()}


def labels(setting: Setting) -> list[Row]:
    batch_size, size = (1, 64) if setting.small else (16, 512)
    generator = torch.Generator().manual_seed(0)
    target = LABELS["realistic"](150, batch_size, size, generator)
    target = target.where(target >= 0, 255).to(setting.device)
    logits = torch.randn(batch_size, 150, size // 4, size // 4, generator=generator).to(setting.device)
    logits = logits.contiguous(memory_format=torch.channels_last).requires_grad_()
    auc, found = build_loss("aucseg"), predicted_labels(logits.detach(), (size, size))
    iou = GroupedMeanIoU(150).to(setting.device)

    def at_once() -> Tensor:
        full = F.interpolate(logits.detach(), size=(size, size), mode="bilinear", align_corners=False)
        return full.argmax(1)

    ways: dict[str, Callable[[], Any]] = {
        "AUC loss": partial(forward_backward, auc, logits, target),
        "interpolate and argmax": at_once,
        "predicted_labels": partial(predicted_labels, logits.detach(), (size, size)),
        "GroupedMeanIoU of labels": partial(iou.update, found, target),
        **own_updates(logits.detach(), target, setting),
    }
    return [show(f"{batch_size} x 150 x {size // 4} x {size // 4} -> {size}", in_turns(ways, setting))]


TABLES = {table.__name__: table for table in (loss, paths, bank, step, metrics, labels)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=TABLES, help="some of the tables; the others stay as they are")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--small", action="store_true", help="the first case of each table, in miniature")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here (--device cpu --small: a rehearsal)")
    setting = Setting(torch.device(arguments.device), arguments.repeats, arguments.small)
    about = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "triton": version("triton") if setting.on_gpu else "none",
        "device": torch.cuda.get_device_name() if setting.on_gpu else "cpu",
        "repeats": arguments.repeats,
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    report = json.loads(arguments.out.read_text()) if arguments.only and arguments.out.exists() else {}
    for name in arguments.only or TABLES:
        print(f"\n== {name}")
        report[name] = {**about, "cases": TABLES[name](setting)}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
