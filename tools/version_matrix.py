"""Run the fast tests with the oldest and the newest releases that the package asks for, on each Python that is here.

    python -m tools.version_matrix [--only NAME ...] [--json FILE] [--keep]

Each row gets a virtual environment of its own in a temporary folder (up to 8 GB with CUDA libraries; one at a time, and
removed afterwards). A Python that this machine lacks is told and passed over. Exit status 1 if a row failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("pytest>=8", "pytest-timeout", "hypothesis", "scikit-learn", "scipy")
# Lower bounds of pyproject.toml: the losses, the bank and the metrics need no more.
OLDEST_CORE = (
    *("torch==2.4.0", "numpy==1.24.4", "pillow==10.0.0", "pyyaml==6.0.1", "tqdm==4.64.0"),
    *("torchmetrics==1.4.0", "scipy==1.10.1"),
)
OLDEST_TRAIN = (
    *("torch==2.6.0", "torchvision==0.21.0", "lightning==2.6.0", "jsonargparse[signatures]==4.39.0", "timm==1.0.11"),
    *(
        "torchmetrics==1.4.0",
        "segmentation-models-pytorch==0.5.0",
        "tensorboard==2.15.1",
        "numpy==1.24.4",
        "scipy==1.10.1",
        "webdataset==0.2.100",
    ),
)
CORE_TESTS = ("tests/losses", "tests/memory_bank", "tests/metrics", "tests/fuzz/test_numbers.py")
TRAIN_TESTS = (*CORE_TESTS, "tests/training/test_task.py", "tests/test_cli.py", "tests/training/test_datamodule.py")
# Torch warns of Python 3.13.0 when compiling.
CORE_OPTIONS = ("-W", "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
# A tool of the tests, not what the package calls: fake tensors on "cuda" need a driver in old torch.
OLDEST_TRAIN_OPTIONS = ("--ignore=tests/losses/test_no_host_sync.py",)
# Before torch 2.6 its profiler cannot count what a step allocates, its own pickling of tensors warns of itself, and a
# gloo group now and then waits for ever when a process of many threads destroys it (it holds the interpreter's lock).
OLDEST_OPTIONS = (
    *(*CORE_OPTIONS, *OLDEST_TRAIN_OPTIONS, "--ignore=tests/losses/test_memory.py"),
    *("--ignore=tests/metrics/test_two_processes.py", "-W", "ignore:You are using `torch.load` with:FutureWarning"),
)


@dataclass(frozen=True)
class Row:
    """One environment: its name, Python's version, what to install, what to run."""

    name: str
    python: str
    packages: tuple[str, ...]
    tests: tuple[str, ...] = CORE_TESTS
    options: tuple[str, ...] = ()


ROWS = (
    Row("oldest", "3.10", OLDEST_CORE, options=OLDEST_OPTIONS),
    Row("oldest-train", "3.10", OLDEST_TRAIN, TRAIN_TESTS, OLDEST_TRAIN_OPTIONS),
    *(Row(f"newest-{python}", python, ("torch", "torchmetrics"), options=CORE_OPTIONS)
      for python in ("3.10", "3.11", "3.12", "3.13")),
)  # fmt: skip


def find_python(version: str) -> Path | None:
    """An interpreter of this version that starts, on the path or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    on_path = shutil.which(f"python{version}")
    for place in [*([on_path] if on_path else []), *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]:
        done = subprocess.run([place, "--version"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.startswith(f"Python {version}."):
            return Path(place)
    return None


def run_row(row: Row, keep: bool) -> dict[str, Any]:
    """Installs and tests one row."""
    python = find_python(row.python)
    if python is None:
        return {"name": row.name, "outcome": f"no Python {row.python} here"}
    folder = Path(tempfile.mkdtemp(prefix=f"aucseg-{row.name}-"))
    start = time.monotonic()
    try:
        subprocess.run([python, "-m", "venv", folder], check=True)
        own = str(folder / "bin" / "python")
        packages = [*row.packages, "pillow", "pyyaml", "tqdm", "numpy", *TOOLS]
        done = subprocess.run(
            [own, "-m", "pip", "install", "--quiet", *packages], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return {"name": row.name, "outcome": "cannot be installed", "message": done.stderr[-2000:]}
        listed = subprocess.run([own, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
        versions = {entry["name"].lower(): entry["version"] for entry in json.loads(listed.stdout)}
        command = [own, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *row.options, *row.tests]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        lines = done.stdout.splitlines()
        return {
            "name": row.name,
            "outcome": "passed" if done.returncode == 0 else "failed",
            "python": subprocess.run([own, "--version"], capture_output=True, text=True, check=True).stdout.split()[1],
            "versions": {
                name: versions[name] for name in ("torch", "numpy", "lightning", "torchmetrics") if name in versions
            },
            "summary": re.sub(r" in [\d.]+s.*", "", lines[-1]) if lines else done.stderr[-2000:],
            "failures": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
            "minutes": round((time.monotonic() - start) / 60, 1),
        }
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Runs the rows and prints a table."""
    parser = argparse.ArgumentParser(description="the fast tests with the oldest and the newest supported releases")
    parser.add_argument("--only", nargs="+", choices=[row.name for row in ROWS], help="these rows alone")
    parser.add_argument("--json", type=Path, help="write the results")
    parser.add_argument("--keep", action="store_true", help="leave the environments where they are")
    args = parser.parse_args()
    results = []
    for row in ROWS:
        if args.only and row.name not in args.only:
            continue
        result = run_row(row, args.keep)
        results.append(result)
        versions = " ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
        print(
            f"{row.name:14} Python {result.get('python', row.python):8} {versions:60} {result['outcome']}", flush=True
        )
        for line in (result.get("summary", ""), *result.get("failures", []), result.get("message", "")):
            print(f"    {line}" if line else "", end="\n" if line else "", flush=True)
        if args.json is not None:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(results, indent=2) + "\n")
    return int(any(result["outcome"] in ("failed", "cannot be installed") for result in results))


if __name__ == "__main__":
    sys.exit(main())
