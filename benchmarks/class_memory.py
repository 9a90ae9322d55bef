"""What ``memory="ema"`` does to the tail: ``python -m benchmarks.class_memory [--steps N] [--seeds N ...]``.

Trains the configuration of the embedded data without the bank, so that batches do lack tail classes, with and without
the memory; same seed, same budget. Prints mean IoU overall, head, middle and tail in percent, and writes
``benchmarks/results/class_memory.json``. Needs ``aucseg[demo]``.
"""

import argparse
import json
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from aucseg.lightning_cli import run_lightning

RESULTS = Path(__file__).parent / "results" / "class_memory.json"
CONFIG = str(files("aucseg") / "configs" / "freedoom_lt_fpn_aucseg.yaml")
MEMORY: dict[str, dict[str, Any]] = {
    "none": {},
    "ema, momentum 0.9": {"memory": "ema"},
    "ema, momentum 0.99": {"memory": "ema", "memory_momentum": 0.99},
}


def train(options: dict[str, Any], seed: int, steps: int) -> dict[str, float]:
    """Mean IoU in percent after ``steps`` steps."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "config": CONFIG,
            "seed_everything": seed,
            "out": folder,
            "trainer.max_steps": steps,
            "trainer.val_check_interval": steps,
            "trainer.enable_progress_bar": "false",
            "trainer.enable_model_summary": "false",
            "model.bank": "null",
            "model.loss_options": json.dumps({"auc_weight": 4.0, **options}),
            "model.warmup_steps": min(100, steps // 10),
            "data.num_workers": 1,
        }
        fitted = run_lightning("fit", [text for key, value in arguments.items() for text in (f"--{key}", str(value))])
        metrics = fitted.trainer.callback_metrics
        return {name: 100 * float(metrics[f"val/{name}"]) for name in ("miou", "head", "middle", "tail")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    rows = []
    print(f"{'memory':20}{'seed':>6}" + "".join(f"{name:>9}" for name in ("miou", "head", "middle", "tail")))
    for seed in arguments.seeds:
        for name, options in MEMORY.items():
            row = train(options, seed, arguments.steps)
            rows.append({"memory": name, "seed": seed, **row})
            print(f"{name:20}{seed:>6}" + "".join(f"{value:9.2f}" for value in row.values()), flush=True)
    report = {"torch": torch.__version__, "steps": arguments.steps, "threads": torch.get_num_threads(), "rows": rows}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
