"""What `benchmarks.on_gpu` runs, each with a time limit: tests, benchmarks, studies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.on_gpu import outcomes
from benchmarks.on_gpu.packs import DATA
from benchmarks.on_gpu.wheels import PINNED, SITE

_TESTS = {
    "cuda": (
        *("tests/test_gpu.py", "tests/test_gpu_training.py", "tests/memory_bank", "tests/metrics"),
        *("tests/loading/test_photometric_on_device.py", "tests/inference/test_predictor.py"),
        "tests/benchmarks/test_offsets.py",
    ),
    # A rehearsal: no GPU, few tests.
    "cpu": ("tests/test_gpu.py", "tests/losses/test_aucseg.py", "tests/memory_bank/test_inputs.py"),
}
# The most telling ones: loss and gradient, the bank, whole runs in three precisions, the metrics; then all others.
_TESTS_FIRST = (
    "tests/test_gpu.py::test_value_and_gradient_equal_those_of_the_cpu",
    "tests/test_gpu.py::test_many_pixels_keep_their_digits",
    "tests/memory_bank",
    "tests/test_gpu_training.py",
    "tests/test_gpu.py::test_fit_stops_goes_on_and_predicts",
    "tests/metrics",
)
_BENCHMARKS = ("loss", "paths", "step", "bank", "metrics", "labels")
_LINES_OF_A_FAILURE = 4


@dataclass(frozen=True)
class Setting:
    """Where everything is, and which studies to run.

    Attributes:
        device: `"cuda"` or `"cpu"`.
        out: Folder of all results.
        studies: Names of the studies, in their order.
        processes: Runs at a time.
    """

    device: str
    out: Path
    studies: tuple[str, ...]
    processes: int

    @property
    def log(self) -> Path:
        """What all commands say; one file, as some machines give back few."""
        return self.out / "log.txt"

    def environment(self, *, pinned: bool) -> dict[str, str]:
        """Environment in which the package is that of the commit (`pinned`) or that of the checkout."""
        package = PINNED if pinned else Path("src")
        before = [part for part in (os.environ.get("PYTHONPATH"),) if part]
        path = os.pathsep.join([str(package.resolve()), str(SITE.resolve()), *before])
        return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


@dataclass
class Outcome:
    """What a slice has found.

    Attributes:
        passed: Things that did what they should.
        failed: Name of each thing that did not, and the first lines that it said.
        did_not_fit: Things for which there was no time.
        skipped: Things that cannot be done here.
        seconds: How long it took.
        notes: What else is to be told.
    """

    passed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    did_not_fit: int = 0
    skipped: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def run_for(
    command: list[str], seconds: float, log: Path, environment: Mapping[str, str], seconds_to_end: float = 15.0
) -> int | None:
    """Runs a command, its output appended to `log`; returns its exit status, None where the time was up.

    A command whose time is up is asked to end, and after `seconds_to_end` ended with everything that it started.
    """
    with log.open("ab") as file:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=dict(environment),
            start_new_session=True,
        )  # fmt: skip
        try:
            return child.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT if "pytest" in command else signal.SIGTERM)
                try:
                    child.wait(seconds_to_end)
                except subprocess.TimeoutExpired:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()


def tests(setting: Setting, seconds: float) -> Outcome:
    """The tests that need a GPU."""
    record, log = setting.out / "tests.jsonl", setting.log
    record.unlink(missing_ok=True)
    start = _size(log)
    marker = ["-m", "gpu"] if setting.device == "cuda" else ["-m", "not slow"]
    options = ["--maxfail=20", "-p", outcomes.__name__, "-p", "no:cacheprovider", "--tb=short", *marker]
    command = [sys.executable, "-m", "pytest", *options, *_TESTS[setting.device]]
    environment = setting.environment(pinned=False) | {
        outcomes.FILE_VARIABLE: str(record.resolve()),
        outcomes.FIRST_VARIABLE: ",".join(_TESTS_FIRST),
    }
    status = run_for(command, seconds, log, environment)
    return outcome_of_tests(record, _text(log, start), status)


def outcome_of_tests(record: Path, said: str, status: int | None) -> Outcome:
    """What the plugin has written so far, and how pytest ended."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    records = [json.loads(line) for line in lines]
    number = sum(entry.get("tests", 0) for entry in records)
    ran = {entry["test"]: entry for entry in records if "test" in entry}
    outcome = Outcome()
    for name, entry in ran.items():
        if entry["outcome"] == "failed":
            outcome.failed[name] = _first_lines(entry["reason"])
        elif entry["outcome"] == "skipped":
            outcome.skipped += 1
        else:
            outcome.passed += 1
    outcome.did_not_fit = number - len(ran)
    if not records:
        outcome.failed["pytest"] = _last_lines(said) if status is not None else "no test was collected in time"
    elif status not in (None, 0, 1, 5) and not outcome.failed:
        outcome.failed["pytest"] = f"exit status {status}: {_last_lines(said)}"
    return outcome


def benchmarks(setting: Setting, seconds: float) -> Outcome:
    """The benchmarks, one table after the other."""
    end = time.monotonic() + seconds
    out, outcome = setting.out / "benchmarks.json", Outcome()
    small = ["--device", "cpu", "--small", "--repeats", "1"] if setting.device == "cpu" else []
    for table in _BENCHMARKS:
        left = end - time.monotonic()
        if left <= 0:
            outcome.did_not_fit += 1
            continue
        log, start = setting.log, _size(setting.log)
        command = [sys.executable, "-m", "benchmarks.gpu", "--only", table, "--out", str(out), *small]
        status = run_for(command, left, log, setting.environment(pinned=False))
        if status is None:
            outcome.did_not_fit += 1
        elif status == 0:
            outcome.passed += 1
        else:
            outcome.failed[table] = _last_lines(_text(log, start))
    return outcome


def studies(setting: Setting, seconds: float) -> Outcome:
    """Runs of studies for the rest of the time: of the second one when the first is finished."""
    end, outcome = time.monotonic() + seconds, Outcome()
    for study in setting.studies:
        minutes = (end - time.monotonic()) / 60
        if minutes <= 0:
            outcome.did_not_fit += 1
            continue
        result, log, start = setting.out / f"{study}.json", setting.log, _size(setting.log)
        earlier = Path("benchmarks/evidence/results") / result.name
        if not result.is_file() and earlier.is_file():
            shutil.copyfile(earlier, result)
        finished = _finished_runs(result)
        data = DATA / study
        command = [
            *(sys.executable, "-m", "benchmarks.evidence.run", study, "--minutes", str(minutes)),
            *("--processes", str(setting.processes), "--device", setting.device),
            *("--results", str(setting.out), "--out", ".gpu/runs"),
            *(("--root", str(data)) if data.is_dir() else ()),
        ]
        # The study ends by itself in time; this is for one that does not.
        status = run_for(command, 60 * minutes + 30, log, setting.environment(pinned=True))
        outcome.passed += _finished_runs(result) - finished
        said = _text(log, start)
        failures = _failed_runs(said)
        outcome.failed |= failures
        if status != 0 and not failures:
            outcome.failed[study] = "it did not end in time" if status is None else _last_lines(said)
        outcome.did_not_fit += "not begun, as they would not end in time" in said or "cut off" in said
        outcome.notes += [line for line in said.splitlines() if "steps a second" in line]
    return outcome


SLICES = {"tests": tests, "benchmarks": benchmarks, "studies": studies}


def _failed_runs(said: str) -> dict[str, str]:
    """The runs that a pool says have failed, and the last lines of each."""
    failures: dict[str, str] = {}
    title = None
    for line in said.splitlines():
        if line.startswith("failed (status"):
            title = line.partition(": ")[2]
            failures[title] = ""
        elif title is not None and line.startswith("  | "):
            failures[title] += line.removeprefix("  | ") + "\n"
        else:
            title = None
    return {title: "\n".join(text.splitlines()[-_LINES_OF_A_FAILURE:]) for title, text in failures.items()}


def _finished_runs(path: Path) -> int:
    if not path.is_file():
        return 0
    result = json.loads(path.read_text(encoding="utf-8"))
    return len(result["runs"]) + len(result["trials"])


def _first_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[:_LINES_OF_A_FAILURE])


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_LINES_OF_A_FAILURE:])


def _size(log: Path) -> int:
    return log.stat().st_size if log.is_file() else 0


def _text(log: Path, start: int) -> str:
    return log.read_bytes()[start:].decode(errors="replace") if log.is_file() else ""
