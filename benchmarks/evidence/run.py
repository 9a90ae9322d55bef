"""Runs a study in pieces: `python -m benchmarks.evidence.run STUDY [--minutes N] [--root DIR]`.

A piece ends after N minutes, or with Ctrl-C. The next call goes on: finished runs are not repeated, the run that was
cut off goes on from its checkpoint. After every piece what is finished is written to
`benchmarks/evidence/results/STUDY.json`, and read from there by the next piece, also on another machine (where a run
that was cut off begins anew). Several processes at once share the runs of a study. What follows `--` goes to
`aucseg compare`, such as `--dry-run`.

The studies of `benchmarks.evidence.shared_studies` are for a GPU: `--processes N` runs at a time share it, a run that
would not end in time is not begun, and the code is that of one commit (`--code`), whose hash stands in the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.pool import Pool, commit_of_code, merge_lock
from benchmarks.evidence.records import KEYS, read_result, rounded, unique
from benchmarks.evidence.shared_studies import SHARED_STUDIES
from benchmarks.evidence.studies import RESULTS, SECOND_STAGES, STUDIES
from filelock import FileLock

import aucseg
from aucseg.run_files import RECORD_FILE, RESULT_FILE

PINNED = Path(".gpu/pinned")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=(*STUDIES, *SHARED_STUDIES))
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
    shared = parser.add_argument_group("studies for a GPU")
    shared.add_argument("--processes", type=int, default=4, metavar="N", help="runs at a time (default: %(default)s)")
    shared.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    shared.add_argument("--loaders", type=int, metavar="N", help="loader processes of a run (default: by the cores)")
    shared.add_argument("--methods", metavar="A,B,...", help="some of the study's methods (default: all)")
    code = shared.add_mutually_exclusive_group()
    code.add_argument("--code", type=Path, default=PINNED, metavar="DIR", help="folder with the package of one commit, "
                      "as `make gpu` installs it (default: %(default)s)")  # fmt: skip
    code.add_argument("--working-tree", action="store_true", help="run the code that is imported, whatever it is")
    options = sys.argv[1:] if argv is None else argv
    cut = options.index("--") if "--" in options else len(options)
    args = parser.parse_args(options[:cut])
    if args.study in SHARED_STUDIES:
        return _run_shared(parser, args, options)
    study = STUDIES[args.study]
    out = args.out / args.study
    try:
        arguments = study.arguments(out, args.root, args.results)
    except ValueError as error:
        parser.error(str(error))
    path = args.results / f"{args.study}.json"
    methods = arguments[arguments.index("--methods") + 1].split(",")
    with FileLock(merge_lock(path)):
        before = read_result(path)
        if before is not None:
            restore(before, methods, out)
        main_study = read_result(args.results / "main.json") if study.from_main else None
        if main_study is not None:
            runs = [run for run in main_study["runs"] if run["seed"] < study.seeds]
            restore({"runs": runs, "search": [], "trials": []}, [m for m in study.from_main if m in methods], out)
    status = run_for([sys.executable, "-m", "aucseg", "compare", *arguments, *options[cut + 1 :]], args.minutes)
    with FileLock(merge_lock(path)):
        before = read_result(path)
        result = collect(args.study, out)
        if before is not None:
            result = joined(before, result)
        if result["runs"] or result["trials"]:
            args.results.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if result["runs"] or result["trials"]:
        print(f"{len(result['runs'])} finished runs, {len(result['trials'])} trials: {path}")
    return status


def _run_shared(parser: argparse.ArgumentParser, args: argparse.Namespace, options: list[str]) -> int:
    if not args.working_tree and commit_of_code() is None:
        if not (args.code / "aucseg").is_dir():
            parser.error(
                f"there is no package in {args.code}: a study is of one commit. `make gpu-wheels` builds it, "
                "`make gpu` installs it there; --working-tree takes the code as it is"
            )
        path = os.pathsep.join([str(args.code.resolve()), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "benchmarks.evidence.run", *options]
        os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})
    try:
        study = SHARED_STUDIES[args.study].resolved(args.results)
        if args.methods is not None:
            study = study.only(args.methods.split(","))
        root = study.data_root(args.root)
    except ValueError as error:
        parser.error(str(error))
    if args.processes < 1:
        parser.error("--processes must be at least 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # One core of each run prepares the steps.
    loaders = (
        max(0 if args.device == "cpu" else 1, cores // args.processes - 1) if args.loaders is None else args.loaders
    )
    pool = Pool(
        args.study, study, root, args.out / args.study, args.results, args.device, args.processes, loaders, args.minutes
    )
    print(f"commit {commit_of_code()}, {Path(aucseg.__file__).parent}, {cores} cores, {loaders} loader processes a run")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ends a piece early keeps its results
    try:
        return pool.run()
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        parser.error(str(error))
    finally:
        signal.signal(signal.SIGTERM, before)


def run_for(command: list[str], minutes: float | None) -> int:
    """Runs a command, asks it to end after some minutes, and returns its exit status."""
    process = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ends a piece early keeps its results
    try:
        return process.wait(None if minutes is None else 60 * minutes)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGTERM)  # the comparison ends its run, too
        return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def collect(study: str, out: Path) -> dict[str, Any]:
    """What the finished runs and trials of a study have measured.

    Args:
        study: Its name.
        out: Folder that `aucseg compare` worked in.
    """
    runs, trials, search = [], [], []
    for path in out.glob(f"*/*/seed*/{RECORD_FILE}"):
        model, method, seed = path.parts[-4:-1]
        runs.append({"model": model, "method": method, "seed": int(seed.removeprefix("seed")), **_measured(path)})
    for path in out.glob(f"search/*/*/*/{RECORD_FILE}"):
        model, method, trial = path.parts[-4:-1]
        trials.append({"model": model, "method": method, "trial": trial, **_measured(path)})
    if (path := out / "search.json").is_file():
        search += json.loads(path.read_text(encoding="utf-8"))
    return {
        "study": study,
        "runs": unique("runs", runs),
        "search": unique("search", search),
        "trials": unique("trials", trials),
    }


def joined(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The results and those of earlier pieces; the new ones alone where the earlier are of other code or data.

    Args:
        before: From `collect`, or from here.
        now: From `collect`.
    """
    # Trials are validated on other images than runs, so that their data are others.
    for part in ("runs", "trials"):
        if now[part] and not _digests(before[part], "data") <= _digests(now[part], "data"):
            return dict(now)
    codes = [_digests([*result["runs"], *result["trials"]], "code") for result in (before, now)]
    if codes[1] and not codes[0] <= codes[1]:
        return dict(now)
    return {"study": now["study"], **{part: unique(part, [*before[part], *now[part]]) for part in KEYS}}


def _digests(records: Sequence[Mapping[str, Any]], part: str) -> set[str]:
    return {record["hashes"][part] for record in records}


def restore(result: Mapping[str, Any], methods: Sequence[str], out: Path) -> None:
    """Puts the finished runs and trials of some methods back where `aucseg compare` looks for them.

    A run whose model a second stage still needs is left out: models are not part of the results.

    Args:
        result: From `collect`.
        methods: Names of the methods.
        out: Folder of the runs.
    """
    runs = {out / run["model"] / run["method"] / f"seed{run['seed']}": run for run in result["runs"]}
    trials = {out / "search" / t["model"] / t["method"] / t["trial"]: t for t in result["trials"]}
    tuned = {choice["method"] for choice in result["search"]}
    for folder, record in (runs | trials).items():
        method = record["method"]
        stages = [method + suffix for suffix in SECOND_STAGES if method + suffix in methods]
        if "trial" in record:
            needed = any(stage not in tuned for stage in stages)
        else:
            needed = any(folder.parent.with_name(stage) / folder.name not in runs for stage in stages)
        if method not in methods or needed or (folder / RECORD_FILE).is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT_FILE).write_text(json.dumps({key: record[key] for key in ("metrics", "per_class_iou")}))
        configuration = {"trainer.max_steps": record["steps"]}
        kept = {key: record[key] for key in ("metrics", "cost", "seconds", "hashes")}
        (folder / RECORD_FILE).write_text(json.dumps({**kept, "fingerprints": {"configuration": configuration}}))


def _measured(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text(encoding="utf-8"))
    result = json.loads((path.parent / RESULT_FILE).read_text(encoding="utf-8"))
    return {
        "steps": record["fingerprints"]["configuration"]["trainer.max_steps"],
        "metrics": rounded(record["metrics"]),
        "per_class_iou": rounded(result.get("per_class_iou", {})),
        "cost": record["cost"],
        "seconds": record["seconds"],
        "hashes": record["hashes"],
    }


if __name__ == "__main__":
    sys.exit(main())
