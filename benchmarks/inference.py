"""Time and memory of inference by image size: `python -m benchmarks.inference [--sizes 1000 10000 ...]`.

FPN with the tf_efficientnet_lite0 encoder and 19 classes (random weights) labels square images that lie in
memory-mapped files, in windows of 1024 x 1024 every 896 pixels, and small ones whole as well. Each case runs in a
process of its own. Seconds are processor time of one thread, which other programs on the machine change little. The
memory is what the process adds for itself (`RssAnon`) above what it held with the model loaded; pages of the mapped
files, which the system can drop at any time, are not in it. Prints a table and writes
`benchmarks/results/inference.json`.
"""

import argparse
import json
import multiprocessing
import platform
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aucseg.inference.predictor import InferenceOptions, Predictor
from aucseg.models import build_model

RESULTS = Path(__file__).parent / "results" / "inference.json"
WINDOW, STRIDE = 1024, 896
LARGEST_WHOLE = 2000


class PeakMemory(threading.Thread):
    """Samples this process's own memory until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = self.start_bytes = own_memory()
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.02):
            self.peak = max(self.peak, own_memory())

    def stop(self) -> int:
        self._stopped.set()
        self.join()
        return max(self.peak, own_memory()) - self.start_bytes


def own_memory() -> int:
    """Bytes of anonymous memory that are in RAM."""
    found = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(mode: str, size: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    model = build_model("smp/fpn", 19, encoder="tf_efficientnet_lite0").eval()
    options = InferenceOptions(window=(WINDOW, WINDOW), stride=(STRIDE, STRIDE)) if mode == "windows" else None
    predictor = Predictor(model, options, pixel_mean=model.pixel_mean, pixel_std=model.pixel_std)
    with tempfile.TemporaryDirectory() as folder:
        image = np.lib.format.open_memmap(f"{folder}/image.npy", mode="w+", dtype=np.uint8, shape=(size, size, 3))
        labels = np.lib.format.open_memmap(f"{folder}/labels.npy", mode="w+", dtype=np.uint8, shape=(size, size))
        generator = np.random.default_rng(0)
        for row in range(0, size, 1000):
            image[row : row + 1000] = generator.integers(0, 256, image[row : row + 1000].shape, dtype=np.uint8)
        memory = PeakMemory()
        memory.start()
        start = time.process_time()
        predictor.labels(image, out=labels)
        seconds = time.process_time() - start
        peak = memory.stop()
    return {"mode": mode, "size": size, "seconds": round(seconds, 2), "peak_mib": round(peak / 2**20)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 2000, 4000, 10_000])
    args = parser.parse_args()
    cases = [("windows", size) for size in args.sizes]
    cases += [("whole", size) for size in args.sizes if size <= LARGEST_WHOLE]
    rows = []
    environment = {"machine": platform.machine(), "torch": torch.__version__, "threads": 1}
    RESULTS.parent.mkdir(exist_ok=True)
    print(f"{'mode':8} {'image':>15} {'seconds':>9} {'s / Mpixel':>11} {'peak MiB':>9}")
    for mode, size in cases:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (mode, size))
        rows.append(row)
        RESULTS.write_text(json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n")
        rate = row["seconds"] / (size * size / 1e6)
        print(f"{mode:8} {f'{size} x {size}':>15} {row['seconds']:9.2f} {rate:11.3f} {row['peak_mib']:9}", flush=True)
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
