"""What a training step costs, by model: `python -m benchmarks.models [--repeats N] [--only segnext/large]`.

For each model: parameters; floating-point operations of forward and backward for one 512 x 512 image, three times the
forward ones, counted without computing (2 for each multiply-add); and measured on the CPU, one image a step, 150
classes: seconds of a step with cross-entropy and with AUCSeg and its memory bank, each with backward and AdamW
(medians, both in turns), and the peak memory of the process. Seconds are processor time of one thread, which other
programs on the machine change little. Each case runs in a process of its own. Prints a table and writes
`benchmarks/results/models.json`.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from aucseg.losses import build_loss
from aucseg.memory_bank import TailMemoryBank
from aucseg.models import build_model

RESULTS = Path(__file__).parent / "results" / "models.json"
NUM_CLASSES, CROP = 150, 512
MODELS: dict[str, dict[str, Any]] = {
    "segnext/tiny": {},
    "segnext/large": {},
    "smp/deeplabv3plus": {"encoder": "resnet50"},
    "smp/fpn": {"encoder": "tf_efficientnet_lite0"},
}


def count_operations(name: str, size: int = CROP) -> float:
    """Floating-point operations of forward and backward for one image: three times those of the forward pass.

    torch's counter takes the backward pass of a depthwise convolution for that of a full one, and SegNeXt has many.
    """
    with FakeTensorMode():
        model = build_model(name, NUM_CLASSES, **MODELS[name]).train()
        images = torch.empty(2, 3, size, size)  # two, for batch norm over 1 x 1 features
        with FlopCounterMode(display=False) as counter:
            model(images)
    forward: int = counter.get_total_flops()
    return 3 * forward / len(images)


def make_batch(size: int) -> tuple[Tensor, Tensor]:
    """A random image with a grid of twelve classes, two of them rare."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (1, 3, size, size), generator=generator, dtype=torch.uint8)
    cells = torch.randint(12, (1, 1, 16, 16), generator=generator).float()
    masks = torch.nn.functional.interpolate(cells, (size, size), mode="nearest")[:, 0].long()
    masks[:, :40, :40] = NUM_CLASSES - 1
    return images, masks


def measure(name: str, size: int, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    model = build_model(name, NUM_CLASSES, **MODELS[name]).train()
    for module in model.modules():  # a batch of one image has no statistics where pooling leaves 1 x 1 features
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)
    bank = TailMemoryBank(range(26, NUM_CLASSES), NUM_CLASSES, sample_ratio=0.05, resize_ratio=0.4, scope="image")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.pixel_mean, model.pixel_std))
    losses = {"ce": build_loss("ce"), "aucseg": build_loss("aucseg", auc_weight=4.0)}

    def step(method: str) -> float:
        images, masks = make_batch(size)
        start = time.process_time()
        if method == "aucseg":
            images, masks = bank(images, masks)
        loss = losses[method](model((images.float() - mean) / std), masks)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - start

    step("aucseg")
    times: dict[str, list[float]] = {method: [] for method in losses}
    for _ in range(repeats):
        for method, taken in times.items():
            taken.append(step(method))
    seconds = {f"{method}_seconds": round(statistics.median(taken), 3) for method, taken in times.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kB on Linux
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "size": size, **seconds, "peak_gib": round(peak, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, CROP])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'model':18} {'M param.':>9} {'GFLOP':>6} {'size':>5} {'CE s':>7} {'AUCSeg s':>9} {'peak GiB':>9}")
    for name in args.only:
        gigaflop = count_operations(name) / 1e9
        for size in args.sizes:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row = pool.apply(measure, (name, size, args.repeats))
            rows.append({"model": name, "gigaflop_per_image": round(gigaflop, 1), **row})
            times = f"{row['ce_seconds']:7.2f} {row['aucseg_seconds']:9.2f} {row['peak_gib']:9.2f}"
            print(f"{name:18} {row['parameters'] / 1e6:9.1f} {gigaflop:6.0f} {size:5} {times}", flush=True)
    environment = {"machine": platform.machine(), "torch": torch.__version__, "threads": 1}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
