"""Walks through `docs/getting-started.md` as a reader does and writes down times and gain.

`python -m benchmarks.getting_started` runs the page's blocks in a fresh folder, with the whole training, writes
`benchmarks/results/getting_started.json`, and puts its table into the page.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tests.docs_blocks import ROOT, Block, PageRunner

PAGE = ROOT / "docs" / "getting-started.md"
RESULT = ROOT / "benchmarks" / "results" / "getting_started.json"
RUNS = {"cross-entropy": "runs/ce", "AUCSeg": "runs/aucseg"}
COLUMNS = ("miou", "head", "middle", "tail")


class TimedRunner(PageRunner):
    """Runs commands in full, and keeps the seconds of each."""

    def __init__(self, page: Path) -> None:
        super().__init__(page, short=False)
        self.seconds: dict[str, float] = {}

    def _run_command(self, command: str, place: str) -> None:
        if command.startswith("aucseg compare"):  # as long as its --time says
            return
        start = time.perf_counter()
        super()._run_command(command, place)
        if command.startswith("aucseg"):
            self.seconds[command] = time.perf_counter() - start

    def _run_python(self, block: Block) -> None:
        start = time.perf_counter()
        super()._run_python(block)
        self.seconds["making the folder"] = time.perf_counter() - start


def measure() -> dict[str, Any]:
    """Seconds of each step and the metrics of both runs."""
    runner = TimedRunner(PAGE)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = folder
        runner.run()
        metrics = {title: json.loads(Path(run, "result.json").read_text())["metrics"] for title, run in RUNS.items()}
        os.chdir(ROOT)
    return {
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "torch": torch.__version__,
        "seconds": {step: round(seconds, 1) for step, seconds in runner.seconds.items()},
        "metrics": {title: {name: values[name] for name in COLUMNS} for title, values in metrics.items()},
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    minutes = sum(result["seconds"].values()) / 60
    lines = [
        f"The steps of the last section took {minutes:.1f} minutes on a CPU (threads: {result['machine']['threads']}); "
        + "the two trainings took "
        + " and ".join(f"{result['seconds'][c] / 60:.1f}" for c in result["seconds"] if c.startswith("aucseg fit"))
        + " minutes. Mean IoU on the 100 validation images, in %:",
        "",
        "| run | all classes | head | middle | tail |",
        "|---|---|---|---|---|",
    ]
    for title, metrics in result["metrics"].items():
        lines.append(f"| {title} | " + " | ".join(f"{100 * metrics[name]:.1f}" for name in COLUMNS) + " |")
    lines += ["", "Measured by `python -m benchmarks.getting_started`, which runs that section."]
    return "\n".join(lines)


def main() -> None:
    """Measures, unless only the page is to be written anew, and puts the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page-only", action="store_true", help="take the result file as it is")
    if not parser.parse_args().page_only:
        RESULT.write_text(json.dumps(measure(), indent=1) + "\n")
    text = table(json.loads(RESULT.read_text()))
    print(text)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(r"(?s)(?<=## What to expect\n\n).*?(?=\n\nOne run of each)", text, page), encoding="utf-8")


if __name__ == "__main__":
    main()
