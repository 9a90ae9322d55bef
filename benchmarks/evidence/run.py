"""Runs a study in pieces: ``python -m benchmarks.evidence.run STUDY [--minutes N] [--root DIR]``.

A piece ends after N minutes, or with Ctrl-C. The next call goes on: finished runs are not repeated, the run that was
cut off goes on from its checkpoint. After every piece what is finished is written to
``benchmarks/evidence/results/STUDY.json``. What follows ``--`` goes to ``aucseg compare``, such as ``--dry-run``.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.evidence.studies import RESULTS, STUDIES


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--minutes", type=float, metavar="N", help="length of this piece (default: to the end)")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of data that are not in the package")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/evidence"),
        metavar="DIR",
        help="folder of the runs (default: %(default)s)",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default: %(default)s")
    options = sys.argv[1:] if argv is None else argv
    cut = options.index("--") if "--" in options else len(options)
    args = parser.parse_args(options[:cut])
    out = args.out / args.study
    try:
        arguments = STUDIES[args.study].arguments(out, args.root, args.results)
    except ValueError as error:
        parser.error(str(error))
    status = run_for([sys.executable, "-m", "aucseg.cli", "compare", *arguments, *options[cut + 1 :]], args.minutes)
    result = collect(args.study, out)
    if result["runs"] or result["search"]:
        args.results.mkdir(parents=True, exist_ok=True)
        path = args.results / f"{args.study}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{len(result['runs'])} finished runs: {path}")
    return status


def run_for(command: list[str], minutes: float | None) -> int:
    """Runs a command, asks it to end after some minutes, and returns its exit status."""
    process = subprocess.Popen(command)
    try:
        return process.wait(None if minutes is None else 60 * minutes)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGTERM)  # the comparison ends its run, too
        return process.wait()


def collect(study: str, out: Path) -> dict[str, Any]:
    """What the finished runs of a study have measured.

    Args:
        study: Its name.
        out: Folder that ``aucseg compare`` worked in.
    """
    runs = []
    for path in sorted(out.glob("*/*/seed*/compare.json")):
        model, method, seed = path.parts[-4:-1]
        record = json.loads(path.read_text(encoding="utf-8"))
        result = json.loads((path.parent / "result.json").read_text(encoding="utf-8"))
        configuration = record["fingerprints"]["configuration"]
        runs.append({
            "model": model,
            "method": method,
            "seed": int(seed.removeprefix("seed")),
            "steps": configuration["trainer.max_steps"],
            "metrics": _rounded(record["metrics"]),
            "per_class_iou": _rounded(result.get("per_class_iou", {})),
            "cost": record["cost"],
            "seconds": record["seconds"],
            "hashes": record["hashes"],
        })  # fmt: skip
    runs.sort(key=lambda run: (run["model"], run["method"], run["seed"]))
    search = out / "search.json"
    return {
        "study": study,
        "runs": runs,
        "search": json.loads(search.read_text(encoding="utf-8")) if search.is_file() else [],
    }


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 6) for name, value in values.items()}


if __name__ == "__main__":
    sys.exit(main())
