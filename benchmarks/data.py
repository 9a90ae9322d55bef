"""Counting and loading, side by side with the plain ways: `python -m benchmarks.data`.

Everything is made here: scenes of overlapping ellipses, as masks (PNG) and images (JPEG). Times are medians over rounds
in which the rivals take turns, so that a busy moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from aucseg.datasets.card import DatasetCard
from aucseg.datasets.counting import count_ids, scan_mask
from aucseg.datasets.files import read_image
from aucseg.datasets.mask_files import read_raw_mask
from aucseg.statistics.class_statistics import ClassStatistics

if TYPE_CHECKING:
    from aucseg.datasets.dataset import SegmentationDataset

# torch is imported where it is needed: every counting process imports this module anew.

CARD = """\
name: scenes
ignore_ids: [255]
classes:
{classes}
splits:
  train: {{images: "images/*.jpg", masks: "masks/{{stem}}.png"}}
"""


def scene(height: int, width: int, num_classes: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draws a mask of about 60 overlapping ellipses of random classes."""
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        w, h = (int(rng.exponential(side / 8)) + 2 for side in (width, height))
        draw.ellipse((x - w, y - h, x + w, y + h), fill=int(rng.integers(num_classes)))
    return np.array(image)


def medians(rivals: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each rival over rounds in which they take turns."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, run in rivals.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def count_in_memory(rounds: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    cases = {
        "1024 x 2048, 19 classes": [scene(1024, 2048, 19, rng) for _ in range(4)],
        "512 x 683, 150 classes": [scene(512, 683, 150, rng) for _ in range(8)],
        "1024 x 2048, noise": [rng.integers(0, 19, (1024, 2048), dtype=np.uint8)],
    }
    ways: dict[str, Callable[[np.ndarray[Any, np.dtype[np.uint8]]], object]] = {
        "numpy.bincount": lambda mask: np.bincount(mask.reshape(-1), minlength=256),
        "count_ids": count_ids,
        "scan_mask (with places)": scan_mask,
    }
    rows: list[dict[str, object]] = []
    for case, masks in cases.items():
        rivals = {
            name: partial(lambda way, masks: [way(mask) for mask in masks], way, masks) for name, way in ways.items()
        }
        result = medians(rivals, rounds)
        milliseconds = {name: 1e3 * value / len(masks) for name, value in result.items()}
        rows.append({"case": case, **milliseconds, "speed-up": result["numpy.bincount"] / result["count_ids"]})
    return rows


def make_folder(root: Path, num_images: int, copies: int, height: int, width: int, num_classes: int) -> DatasetCard:
    rng = np.random.default_rng(1)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    for i in range(num_images):
        mask = scene(height, width, num_classes, rng)
        Image.fromarray(mask).save(root / f"masks/{i:05d}.png")
        noise = rng.integers(0, 32, (height, width, 1), dtype=np.uint8)
        Image.fromarray(palette[mask] // 2 + noise).save(root / f"images/{i:05d}.jpg", quality=90)
    # Counting alone is fast: give it copies, so that the start of the processes does not count for much.
    for i in range(num_images, copies * num_images):
        for name in ("masks/{:05d}.png", "images/{:05d}.jpg"):
            # Bytes behind the end of the picture, so that nobody takes a copy for known.
            (root / name.format(i)).write_bytes((root / name.format(i % num_images)).read_bytes() + b"%08d" % i)
    path = root / "card.yaml"
    path.write_text(CARD.format(classes="\n".join(f"  - {{name: c{i}}}" for i in range(num_classes))))
    return DatasetCard.load(path)


def count_from_disk(dataset: SegmentationDataset, rounds: int) -> dict[str, float]:
    paths = [dataset.mask_path(i) for i in range(len(dataset))]

    def decode() -> None:
        for path in paths:
            with Image.open(path) as image:
                image.load()

    rivals = {
        "PNG decoding alone": decode,
        "this process": lambda: ClassStatistics.from_dataset(dataset),
        "1 process": lambda: ClassStatistics.from_dataset(dataset, num_workers=1),
        "2 processes": lambda: ClassStatistics.from_dataset(dataset, num_workers=2),
    }
    return {name: len(paths) / value for name, value in medians(rivals, rounds).items()}


# What people write who have no command for it.
PLAIN_LOOP = """\
import sys
from pathlib import Path
import numpy as np
from PIL import Image
counts = np.zeros(256, np.int64)
for path in sorted(Path(sys.argv[1]).glob("*.png")):
    with Image.open(path) as image:
        counts += np.bincount(np.asarray(image).reshape(-1), minlength=256)
print(counts.sum())
"""


def seconds_of(command: list[str]) -> tuple[float, float]:
    """Returns the wall-clock and the CPU seconds of a command with all its processes."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RuntimeError(f"{command} ended with exit status {child.returncode}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def stats_beside_a_loop(root: Path, rounds: int) -> dict[str, object]:
    """Time `aucseg stats`, all checks on, beside a loop over the masks alone, in turns: median, least, most."""
    stats = [sys.executable, "-m", "aucseg", "stats", str(root / "card.yaml"), "--root", str(root)]
    cache = root / "cache.sqlite"
    commands = {
        "loop over the masks": [sys.executable, "-c", PLAIN_LOOP, str(root / "masks")],
        "aucseg stats, 2 processes": [*stats, "--workers", "2", "--cache", str(cache)],
        "again, from the cache": [*stats, "--workers", "2", "--cache", str(cache)],
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    loads: list[float] = []
    for _ in range(rounds):
        cache.unlink(missing_ok=True)
        loads.append(os.getloadavg()[0])
        for name, command in commands.items():
            found[name].append(seconds_of(command))
    result: dict[str, object] = {}
    for name, times in found.items():
        result[f"{name}: seconds"] = _spread([wall for wall, _ in times])
        result[f"{name}: CPU seconds"] = _spread([cpu for _, cpu in times])
    loop, counting, _ = found.values()
    return {
        "masks": len(list((root / "masks").iterdir())),
        "rounds": rounds,
        "load average in the rounds": _spread(loads),
        **result,
        "times as fast": _spread([one[0] / two[0] for one, two in zip(loop, counting, strict=True)]),
        "CPU time over that of the loop": _spread([two[1] / one[1] for one, two in zip(loop, counting, strict=True)]),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def load(dataset: SegmentationDataset, num_images: int, rounds: int) -> dict[str, float]:
    from torch.utils.data import DataLoader, Subset

    part = Subset(dataset, range(num_images))

    def plain() -> None:
        for pair in dataset.pairs[:num_images]:
            with Image.open(dataset.root / pair.image) as image, Image.open(dataset.root / str(pair.mask)) as mask:
                np.array(image.convert("RGB"))
                np.array(mask)

    def loader(num_workers: int) -> Callable[[], None]:
        def run() -> None:
            for _ in DataLoader(part, batch_size=8, num_workers=num_workers):
                pass

        return run

    rivals = {"plain loop over Pillow": plain, "dataset": lambda: [dataset[i] for i in range(num_images)]}
    rivals |= {f"DataLoader, {n} workers": loader(n) for n in (0, 1, 2)}
    return {name: num_images / value for name, value in medians(rivals, rounds).items()}


def load_by_stage(dataset: SegmentationDataset, rounds: int) -> dict[str, float]:
    """Returns milliseconds an image for each stage of a sample's way."""
    from aucseg.loading.crops import ClassAwareCrop
    from aucseg.loading.transforms import training_transform

    indices = range(min(32, len(dataset)))
    images = [dataset.image_path(i) for i in indices]
    masks = [dataset.mask_path(i) for i in indices]
    raw = [read_raw_mask(path, dataset.card) for path in masks]
    samples = [dataset[i] for i in indices]
    crop = ClassAwareCrop((256, 256), range(10, 19), rare_probability=0.5)
    stages: dict[str, Callable[[], object]] = {
        "decode image": lambda: [read_image(path) for path in images],
        "decode mask": lambda: [read_raw_mask(path, dataset.card) for path in masks],
        "map ids": lambda: [dataset.label_map(mask) for mask in raw],
        "class-aware crop 256": partial(lambda samples: [crop(sample) for sample in samples], samples),
    }
    for step in training_transform((256, 256)).transforms:
        stages[type(step).__name__] = partial(lambda step, samples: [step(sample) for sample in samples], step, samples)
        samples = [step(sample) for sample in samples]
    return {name: 1e3 * value / len(images) for name, value in medians(stages, rounds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400, help="images of 512 x 1024 to make (default: 400)")
    parser.add_argument("--copies", type=int, default=5, help="copies of each for counting (default: 5)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only-stats", action="store_true", help="time 'aucseg stats' beside a loop, no more")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "data.json")
    args = parser.parse_args()
    import torch

    from aucseg.datasets.dataset import SegmentationDataset

    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "machine": {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()},
        "rounds": args.rounds,
        "load_average_at_the_start": os.getloadavg()[0],
    }
    if not args.only_stats:
        result["count_in_memory_ms"] = count_in_memory(4 * args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        card = make_folder(Path(folder) / "scenes", args.images, args.copies, 512, 1024, 19)
        dataset = SegmentationDataset(card, Path(folder) / "scenes")
        result["stats_beside_a_loop"] = stats_beside_a_loop(Path(folder) / "scenes", args.rounds)
        if args.only_stats:
            print(json.dumps(result, indent=1))
            return
        result["count_from_disk_images_per_s"] = count_from_disk(dataset, args.rounds)
        result["load_images_per_s"] = load(dataset, args.images, args.rounds)
        result["load_by_stage_ms"] = load_by_stage(dataset, args.rounds)
    rates = result["count_from_disk_images_per_s"]
    result["two_processes_over_one"] = rates["2 processes"] / rates["1 process"]
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for title, values in result.items():
        print(f"\n{title}")
        for row in values if isinstance(values, list) else [values]:
            entries = row.items() if isinstance(row, dict) else [("", row)]
            print("  " + ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in entries))


if __name__ == "__main__":
    main()
