"""Whether a long run stays as small as it begins: `python -m benchmarks.soak`.

Trains with the real command (task, data module, two loader processes, bank, checkpoints, logs, validation), a small
model and small crops, and records every 50 steps: memory and open files of the main process and of each loader process,
bytes of the bank, sizes of the logs. Prints a summary; writes the curve as JSON and as a chart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

RESULTS = Path(__file__).parent / "results" / "soak.json"
MAX_BANK_BYTES = 200_000


class Recorder(Callback):
    """Appends a line of JSON to a file every so many steps.

    Args:
        path: The file.
        run: Folder of the run.
        every: Optimizer steps between lines.
    """

    def __init__(self, path: str, run: str, every: int = 50) -> None:
        self.path = Path(path)
        self.run = Path(run)
        self.every = every

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measures."""
        step = trainer.global_step
        if step % self.every:
            return
        main = psutil.Process()
        # Those of training come first and live to the last step; those of validation come later and stay.
        children = [child for child in main.children(recursive=True) if "resource_tracker" not in str(child.cmdline())]
        loaders = sorted(children, key=lambda process: process.pid)
        record = {
            "step": step,
            "seconds": round(time.time() - main.create_time(), 1),
            "main": _measured(main),
            "loaders": [_measured(process) for process in loaders],
            "bank_bytes": pl_module.bank.nbytes,
            "log_bytes": sum(file.stat().st_size for file in self.run.glob("events*")),
            "csv_bytes": sum(file.stat().st_size for file in self.run.glob("metrics.csv")),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _measured(process: psutil.Process) -> dict[str, float]:
    memory = process.memory_full_info()
    return {"rss_mb": memory.rss / 1e6, "own_mb": memory.uss / 1e6, "files": process.num_fds()}


def configuration(record: Path, run: Path, steps: int, every: int) -> dict[str, Any]:
    """A small model on small crops of the embedded data."""
    options: dict[str, Any] = {
        "embed_dims": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "head_channels": 32,
        "num_bases": 4,
    }
    options["encoder_weights"] = None
    recorder = {"path": str(record), "run": str(run), "every": every}
    return {
        "trainer": {
            "max_steps": steps,
            "val_check_interval": max(steps // 5, 1),
            "limit_val_batches": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "benchmarks.soak.Recorder", "init_args": recorder}],
        },
        "model": {
            "model": "segnext/tiny",
            "model_options": options,
            "loss": "aucseg",
            "bank": {"capacity": 50, "scope": "image", "min_pixels": 4, "max_bytes": MAX_BANK_BYTES},
            "warmup_steps": 10,
        },
        "data": {"card": "freedoom_lt", "batch_size": 2, "num_workers": 2, "crop_size": [32, 32]},
        "checkpoint_every": max(steps // 10, 1),
        "out": str(run),
    }


def train(steps: int, every: int, folder: Path) -> list[dict[str, Any]]:
    """Runs `aucseg fit` in this process and returns what was recorded."""
    from aucseg.commands.fit import run_lightning

    record, config = folder / "record.jsonl", folder / "soak.yaml"
    config.write_text(yaml.safe_dump(configuration(record, folder / "run", steps, every)))
    run_lightning("fit", ["--config", str(config)])
    return [json.loads(line) for line in record.read_text().splitlines()]


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the second and of the last fifth of the run, when everything has long started, and peaks."""
    fifth = max(len(records) // 5, 1)
    early, late = records[fifth : 2 * fifth] or records, records[-fifth:]

    def medians(value: Any) -> dict[str, float]:
        first, last = (statistics.median(value(record) for record in part) for part in (early, late))
        return {"early": round(first, 2), "late": round(last, 2), "growth": round(last - first, 2)}

    num_loaders = min(len(record["loaders"]) for record in records)
    result = {
        "main_rss_mb": medians(lambda record: record["main"]["rss_mb"]),
        "main_own_mb": medians(lambda record: record["main"]["own_mb"]),
        "main_files": medians(lambda record: record["main"]["files"]),
        "bank_bytes": {"largest": max(record["bank_bytes"] for record in records), "limit": MAX_BANK_BYTES},
        "events_bytes_per_1000_steps": round(1000 * records[-1]["log_bytes"] / records[-1]["step"]),
        "csv_bytes_per_1000_steps": round(1000 * records[-1]["csv_bytes"] / records[-1]["step"]),
    }
    for number in range(num_loaders):
        result[f"loader_{number}_own_mb"] = medians(lambda record, i=number: record["loaders"][i]["own_mb"])
        result[f"loader_{number}_files"] = medians(lambda record, i=number: record["loaders"][i]["files"])
    return result


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """The curves over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    memory, files, bank, logs = figure.subplots(2, 2, sharex=True).flatten()
    steps = [record["step"] for record in records]
    memory.plot(steps, [record["main"]["rss_mb"] for record in records], label="main process")
    files.plot(steps, [record["main"]["files"] for record in records], label="main process")
    for number in range(min(len(record["loaders"]) for record in records)):
        for axes, key in ((memory, "rss_mb"), (files, "files")):
            axes.plot(steps, [record["loaders"][number][key] for record in records], label=f"loader {number}")
    bank.plot(steps, [record["bank_bytes"] / 1e3 for record in records])
    bank.axhline(MAX_BANK_BYTES / 1e3, color="black", linestyle=":", label="limit")
    logs.plot(steps, [record["log_bytes"] / 1e3 for record in records], label="TensorBoard")
    logs.plot(steps, [record["csv_bytes"] / 1e3 for record in records], label="metrics.csv")
    for axes, title in ((memory, "resident memory, MB"), (files, "open files"), (bank, "bank, kB"), (logs, "logs, kB")):
        axes.set(title=title, ylim=(0, None))
        axes.legend(fontsize=8)
    bank.set_xlabel("step")
    logs.set_xlabel("step")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs, prints, writes."""
    parser = argparse.ArgumentParser(description="memory, files and logs of a long run")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--every", type=int, default=50, help="steps between measurements")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the result goes; the chart lies beside it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        records = train(args.steps, args.every, Path(folder))
    result = {
        "steps": args.steps,
        "minutes": round((time.monotonic() - start) / 60, 2),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
        "summary": summary(records),
        "records": records,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result) + "\n")
    draw(records, args.json.with_suffix(".png"))
    print(f"{args.steps} steps in {result['minutes']} minutes")
    for name, values in result["summary"].items():
        print(f"  {name:28} {values}")


if __name__ == "__main__":
    main()
