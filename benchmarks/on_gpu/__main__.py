"""Makes the most of some minutes on a GPU: `make gpu`, or `python -m benchmarks.on_gpu [--slices tests,studies]`.

Installs the wheels from `.wheels`, unpacks the packs in `.packs`, and runs slices in order of importance, each with
a time limit of its own; what each found is written as it comes, so that a stop at any moment loses one slice. At the
end a table: what passed, failed, did not fit, and the first lines of each failure. All results lie flat in one folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.on_gpu.packs import DATA, PACKS, unpack
from benchmarks.on_gpu.slices import SLICES, Outcome, Setting
from benchmarks.on_gpu.wheels import PINNED, SITE, WHEELS, install

# Minutes of a slice at the most, where the command line does not say; None: the rest.
_LIMITS: dict[str, float | None] = {"tests": 2.0, "benchmarks": 2.0, "studies": None}
# Writing results and tables takes some seconds of the whole.
_RESERVE_SECONDS = 10.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.on_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=parse_slices, default=parse_slices(",".join(SLICES)), metavar="NAME[=N],...",
                        help="of tests, benchmarks and studies, in their order (default: all; tests and benchmarks "
                        "N = 2 minutes each, studies the rest)")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=9.0, metavar="N", help="in all (default: %(default)s)")
    parser.add_argument("--studies", default="cityscapes_256", metavar="A,B", help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=8, metavar="N", help="runs at a time (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal, small")
    parser.add_argument("--out", type=Path, default=Path(".gpu/results"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--keep-data", action="store_true", help="do not delete packs and data at the end")
    args = parser.parse_args(argv)
    start = time.monotonic()
    end = start + 60 * args.minutes - _RESERVE_SECONDS
    args.out.mkdir(parents=True, exist_ok=True)
    studies = tuple(name for name in args.studies.split(",") if name)
    try:
        problems = install(WHEELS, SITE, PINNED)
        for study in studies if "studies" in args.slices else ():
            if (PACKS / study).is_dir():
                missing = unpack(PACKS / study, DATA / study)
                problems += [f"{study}: pack {name} has not arrived" for name in missing]
    except ValueError as error:
        parser.error(str(error))
    for problem in problems:
        print(f"does not fit: {problem}", flush=True)
    print(f"prepared in {time.monotonic() - start:.0f} s", flush=True)
    setting = Setting(args.device, args.out, studies, args.processes)
    outcomes: dict[str, Outcome] = {}
    try:
        for name, limit in args.slices.items():
            left = end - time.monotonic()
            seconds = left if limit is None else min(left, 60 * limit)
            began = time.monotonic()
            print(f"{name}: {max(0.0, seconds):.0f} s at the most", flush=True)
            outcomes[name] = SLICES[name](setting, seconds) if seconds > 0 else Outcome(did_not_fit=1)
            outcomes[name].seconds = round(time.monotonic() - began, 1)
            _write(args.out, outcomes)
    finally:
        if not args.keep_data:
            for study in studies:
                shutil.rmtree(PACKS / study, ignore_errors=True)
                shutil.rmtree(DATA / study, ignore_errors=True)
        print(table(outcomes))
    return 1 if problems or any(outcome.failed for outcome in outcomes.values()) else 0


def parse_slices(text: str) -> dict[str, float | None]:
    chosen: dict[str, float | None] = {}
    for item in text.split(","):
        name, equals, minutes = item.partition("=")
        if name not in SLICES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SLICES)}")
        try:
            chosen[name] = float(minutes) if equals else _LIMITS[name]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{item!r}: expected minutes after '='") from error
    return {name: chosen[name] for name in SLICES if name in chosen}


def table(outcomes: dict[str, Outcome]) -> str:
    """What passed, failed and did not fit, a slice a line, then the first lines of each failure."""
    lines = ["", "slice        passed  failed  skipped  did not fit  seconds"]
    for name, outcome in outcomes.items():
        lines.append(
            f"{name:12} {outcome.passed:6}  {len(outcome.failed):6}  {outcome.skipped:7}  {outcome.did_not_fit:11}  "
            f"{outcome.seconds:7.0f}"
        )
    for name, outcome in outcomes.items():
        lines += [f"{name}: {note}" for note in outcome.notes]
        for failure, text in outcome.failed.items():
            lines += [f"\n{name}: {failure}", *(f"  | {line}" for line in text.splitlines())]
    return "\n".join(lines)


def _write(out: Path, outcomes: dict[str, Outcome]) -> None:
    summary = {name: asdict(outcome) for name, outcome in outcomes.items()}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (out / "summary.txt").write_text(table(outcomes) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
