"""Plans of `aucseg fit FOLDER`: printed for five folders, and trained beside configurations written by hand.

`python -m benchmarks.plan show FOLDER` makes the five folders of `docs/plan.md` and puts their plans into it.
`python -m benchmarks.plan estimate FOLDER` trains on them as planned: estimated times beside true ones.
`python -m benchmarks.plan train DATA --time 20m` trains on `DATA/images` and `DATA/masks` as planned and, at the
same time and with half of the cores each, by the configuration of `benchmarks/evidence/configs` with as many steps
as take this time, and writes `benchmarks/results/plan_NAME.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from aucseg import SegmentationDataset
from aucseg.commands.plan import Planner
from aucseg.commands.plan_options import Request
from aucseg.planning.machine import find_machine
from aucseg.runtime.durations import parse_duration
from aucseg.runtime.resources import num_cores

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "plan.md"
CONFIGS = ROOT / "benchmarks" / "evidence" / "configs"
# Of each of the two trainings that run side by side.
THREADS = max(1, num_cores() // 2)
COLUMNS = ("miou", "head", "middle", "tail")


def save(folder: Path, split: str, name: str, image: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> None:
    """Writes an image (JPEG where it is large) and its mask."""
    ending = "jpg" if image.shape[0] > 1000 else "png"
    for kind, pixels, suffix in (("images", image, ending), ("masks", mask, "png")):
        path = folder / kind / split / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def scenes(split: str, count: int) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Images and masks of Freedoom-LT, 120 x 160."""
    dataset = SegmentationDataset("freedoom_lt", split=split)
    return [
        (sample["image"].permute(1, 2, 0).numpy(), sample["mask"].numpy())
        for sample in map(dataset.__getitem__, range(count))
    ]


def make_twelve(folder: Path) -> None:
    """Twelve images."""
    for index, (image, mask) in enumerate(scenes("train", 12)):
        save(folder, "", f"{index:02d}", image, mask)


def make_photographs(folder: Path) -> None:
    """Photographs of 4,000 x 3,000 with two coarse classes, and marks of 10 x 10 pixels in every tenth."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 10)):
        for index, (image, mask) in enumerate(scenes(split, count)):
            large = np.array(Image.fromarray(image).resize((4000, 3000), Image.Resampling.BILINEAR))
            labels = np.array(
                Image.fromarray((mask > 1).astype(np.uint8)).resize((4000, 3000), Image.Resampling.NEAREST)
            )
            if index % 10 == 0:
                for y, x in rng.integers(0, 2900, (4, 2)):
                    large[y : y + 10, x : x + 10], labels[y : y + 10, x : x + 10] = (255, 0, 0), 2
            save(folder, split, f"{index:03d}", large, labels)


def make_unsplit(folder: Path) -> None:
    """Three hundred images in one folder."""
    for index, (image, mask) in enumerate(scenes("train", 300)):
        save(folder, "", f"{index:03d}", image, mask)


def make_lesions(folder: Path) -> None:
    """Skin with one darker ellipse, in masks of 0 and 1, in images of several sizes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 120), ("val", 30)):
        for index in range(count):
            height, width = (600, 800) if index % 3 else (540, 722)
            y, x = np.mgrid[:height, :width]
            center = rng.uniform(0.3, 0.7, 2) * (height, width)
            radii = rng.uniform(40, 160, 2)
            mask = (((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 < 1).astype(np.uint8)
            skin = rng.normal((200, 160, 140), 6, (height, width, 3)) - 70 * mask[..., None]
            save(folder, split, f"{index:03d}", skin.clip(0, 255).astype(np.uint8), mask)


def make_slices(folder: Path) -> None:
    """Grey slices of 16 bits, a body with an organ in half of them and a small finding in few."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 160), ("val", 40)):
        for index in range(count):
            y, x = np.mgrid[:256, :256]
            mask = np.zeros((256, 256), np.uint8)
            mask[(y - 128) ** 2 + (x - 128) ** 2 < 100**2] = 1
            for class_id, share, radius in ((2, 0.5, 25), (3, 0.08, 6)):
                if rng.random() < share:
                    center = rng.integers(80, 176, 2)
                    mask[(y - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2] = class_id
            values = np.array([200, 9000, 14000, 22000])[mask] + rng.normal(0, 400, mask.shape)
            save(folder, split, f"{index:03d}", values.clip(0, 65535).astype(np.uint16), mask)


FOLDERS = {
    "twelve": make_twelve,
    "photographs": make_photographs,
    "unsplit": make_unsplit,
    "lesions": make_lesions,
    "slices": make_slices,
}


def aucseg(*arguments: object) -> Iterator[str]:
    """Runs a command, and gives the lines that it prints, as they come; its progress goes to the screen."""
    command = [sys.executable, "-m", "aucseg", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def make_folders(folder: Path) -> None:
    """Makes the folders where they are missing, and goes there."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for name, make in FOLDERS.items():
        if not Path(name).exists():
            make(Path(name))


def show(folder: Path) -> None:
    """Puts the plans of the folders into the page, without the line about the time."""
    make_folders(folder)
    page = PAGE.read_text(encoding="utf-8")
    for name in FOLDERS:
        plan = Planner(Request(name)).plan(find_machine()).describe()
        print(f"\n{plan}\n", flush=True)
        before, mark, rest = page.partition(f"<!-- plan of {name} -->\n```text\n")
        if not mark:
            raise ValueError(f"{PAGE} has no place for the plan of {name}")
        page = f"{before}{mark}{plan}\n{rest[rest.index('```') :]}"
    PAGE.write_text(page, encoding="utf-8")


def estimate(folder: Path) -> None:
    """Trains on the folders, one after the other, and puts the times into the page."""
    make_folders(folder)
    rows = []
    for name in FOLDERS:
        for line in aucseg("fit", name, "--out", f"runs/{name}", "--overwrite", "true"):
            if found := re.match(r"  time +about ([\d.,]+) (\w)", line):
                estimated, begin = parse_duration("".join(found.groups())), time.perf_counter()
        seconds = time.perf_counter() - begin
        result = json.loads(Path("runs", name, "result.json").read_text(encoding="utf-8"))
        rows.append({"folder": name, "steps": result["step"], "estimated": estimated, "seconds": round(seconds, 1)})
        print(rows[-1], flush=True)
    figures = {"threads": THREADS, "torch": torch.__version__, "folders": rows}
    (ROOT / "benchmarks" / "results" / "plan_times.json").write_text(json.dumps(figures, indent=1) + "\n")
    table = "| folder | steps | estimate, minutes | truth |\n|---|---:|---:|---:|\n" + "".join(
        f"| {row['folder']} | {row['steps']:,} | {row['estimated'] / 60:.1f} | {row['seconds'] / 60:.1f} |\n"
        for row in rows
    )
    page, mark = PAGE.read_text(encoding="utf-8"), "<!-- estimates -->\n"
    before, _, rest = page.partition(mark)
    PAGE.write_text(before + mark + table + rest[rest.index("\n\n") + 1 :], encoding="utf-8")


def run_of(folder: Path, *arguments: object) -> dict[str, Any]:
    """Trains, and returns metrics, steps and the seconds of the whole command."""
    start = time.perf_counter()
    for _ in aucseg("fit", *arguments, "--out", folder, "--overwrite", "true"):
        pass
    seconds = time.perf_counter() - start
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    metrics = {name: round(100 * float(result["metrics"][name]), 2) for name in COLUMNS}
    return {"seconds": round(seconds, 1), "steps": result["step"], "metrics": metrics}


def by_hand(name: str, data: Path, folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Trains by the configuration of the evidence with the steps that the time has room for."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".yaml")
    if not torch.cuda.is_available():
        config["trainer"].pop("precision", None)
        config["data"].pop("photometric", None)
    config["model"].setdefault("learning_rate", 4e-3)
    options = ("--config", path, "--data.root", data, "--seed_everything", seed, "--data.seed", seed)
    # Two short trainings tell what a step costs, and what the rest does.
    took = []
    for steps in (20, 60):
        config["trainer"] |= {"max_steps": steps, "val_check_interval": steps}
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        took.append(run_of(folder, *options)["seconds"])
    step = (took[1] - took[0]) / 40
    steps = max(60, int((seconds - took[0]) / step + 20))
    config["trainer"] |= {"max_steps": steps, "val_check_interval": steps}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return run_of(folder, *options)


def train(data: Path, duration: str, out: Path, seed: int) -> None:
    """Trains as planned and by hand, and writes the figures."""
    name = data.name
    card = CONFIGS.parent / "cards" / f"{name}.yaml"
    source = card if card.is_file() else name
    options = ("--root", data, "--time", duration, "--seed_everything", seed, "--data.seed", seed)
    val_split = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["data"].get("val_split")
    options += () if val_split is None else ("--data.val_split", val_split)
    with ThreadPoolExecutor() as pool:
        runs = {
            "planned": pool.submit(run_of, out / f"{name}-planned", source, *options),
            "by_hand": pool.submit(by_hand, name, data, out / f"{name}-by-hand", parse_duration(duration), seed),
        }
    result = {
        "data": name,
        "time": duration,
        "seconds_asked": parse_duration(duration),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": THREADS,
        "torch": torch.__version__,
        "seed": seed,
        **{key: run.result() for key, run in runs.items()},
        "plan": yaml.safe_load((out / f"{name}-planned" / "plan.yaml").read_text(encoding="utf-8")),
    }
    result["plan"]["data"].pop("root", None)
    result["plan"]["data"]["card"] = name
    path = ROOT / "benchmarks" / "results" / f"plan_{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("planned", "by_hand")}, indent=1))


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("show", help="plans of five folders, for the page")
    shown.add_argument("folder", type=Path, help="where the folders are made")
    estimated = commands.add_parser("estimate", help="estimated and true times of five folders, for the page")
    estimated.add_argument("folder", type=Path, help="where the folders are made")
    trained = commands.add_parser("train", help="a plan beside a configuration")
    trained.add_argument("data", type=Path, nargs="+", help="folders called as their configuration: camvid, ccp, ...")
    trained.add_argument("--time", default="20m", help="of each training (default: %(default)s)")
    trained.add_argument(
        "--out", type=Path, default=Path("runs/plan"), help="folder of the runs (default: %(default)s)"
    )
    trained.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.command == "show":
        show(args.folder)
    if args.command == "estimate":
        estimate(args.folder)
    for data in getattr(args, "data", []):
        train(data.resolve(), args.time, args.out, args.seed)


if __name__ == "__main__":
    main()
