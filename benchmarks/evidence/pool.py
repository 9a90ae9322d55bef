"""Several processes on one device share the runs of a study, for some minutes.

Each run is a process of its own (`benchmarks.evidence.one_run`) that holds the lock of its folder, so that two pools
may work on one study. What is finished is merged into `STUDY.json` at once; the next pool, also on another machine,
takes it from there. A run that cannot end in the time that is left is not begun: its length is known from those before.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.evidence.one_run import BUSY, JOB_FILE, LOG_FILE, MEASURED_FILE
from benchmarks.evidence.records import read_result, unique
from benchmarks.evidence.shared_study import Job, SharedStudy
from filelock import FileLock

import aucseg
from aucseg.compare.fingerprints import code_fingerprint, configuration_fingerprint, data_fingerprint, digest
from aucseg.compare.methods import Configuration, merged
from aucseg.datasets import SegmentationDataset
from aucseg.safe_files import replace_file
from aucseg.statistics.class_statistics import ClassStatistics

# A run takes this much longer than the longest like it, or it is not begun.
_MARGIN = 1.1
# So long before the end, runs are asked to stop.
_SECONDS_TO_END = 10.0
_POLL_SECONDS = 1.0
_SECONDS_TO_TRY_AGAIN = 10.0


def commit_of_code() -> str | None:
    """The commit that the package in use was built from (its version ends in `+gCOMMIT`); None for another."""
    _, plus, commit = aucseg.__version__.partition("+g")
    return commit if plus else None


def on_machine(config: Configuration, root: Path, device: str, loaders: int) -> Configuration:
    """A configuration for this machine: where the data are, what computes, how many processes load."""
    trainer: Configuration = {"accelerator": "cpu" if device == "cpu" else "gpu", "devices": 1}
    trainer["precision"] = "32-true" if device == "cpu" else config["trainer"].get("precision", "bf16-mixed")
    return merged(config, {"trainer": trainer, "data": {"root": str(root), "num_workers": loaders}})


@dataclass
class Pool:
    """Runs a study.

    Attributes:
        name: The study's name.
        study: The study.
        root: Folder of its data.
        out: Folder of the runs.
        results: Folder of the JSON files.
        device: `"cuda"` or `"cpu"`.
        processes: Runs at a time.
        loaders: Loader processes of each.
        minutes: None for as long as it takes.
        command: What makes a run, to be followed by its folder; the job comes through its standard input.
        failed: Places of the runs that failed.
    """

    name: str
    study: SharedStudy
    root: Path
    out: Path
    results: Path
    device: str
    processes: int
    loaders: int
    minutes: float | None = None
    command: tuple[str, ...] = (sys.executable, "-m", "benchmarks.evidence.one_run")
    failed: set[Path] = field(default_factory=set)
    _running: dict[Path, tuple[Job, subprocess.Popen[bytes]]] = field(default_factory=dict)
    # When somebody else was found to be at a run.
    _busy: dict[Path, float] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)

    @property
    def json_path(self) -> Path:
        """The study's results."""
        return self.results / f"{self.name}.json"

    def run(self) -> int:
        """Runs what is not finished; returns 0, or 1 if a run failed.

        Raises:
            ValueError: The results are of other code or data.
        """
        start = time.monotonic()
        end = math.inf if self.minutes is None else start + 60 * self.minutes
        result = self._begin()
        steps_before = _steps(result)
        too_long: list[Job] = []
        wanted = self.study.jobs(result)
        try:
            while time.monotonic() < end - _SECONDS_TO_END:
                if self._reap():
                    result = self._merge()
                    wanted = self.study.jobs(result, frozenset(self.failed))
                left = end - _SECONDS_TO_END - time.monotonic()
                jobs = [job for job in wanted if job.place not in self._running]
                too_long = [job for job in jobs if self.expected_seconds(result, job.steps) > left]
                pending = [job for job in jobs if job not in too_long]
                now = time.monotonic()
                free = [j for j in pending if now - self._busy.get(j.place, -math.inf) > _SECONDS_TO_TRY_AGAIN]
                for job in free[: self.processes - len(self._running)]:
                    self._start(job)
                if not self._running and not pending:
                    break
                time.sleep(_POLL_SECONDS)
        finally:
            self._stop()
            result = self._merge()
        self._report(result, _steps(result) - steps_before, time.monotonic() - start, too_long)
        return 1 if self.failed else 0

    def expected_seconds(self, result: Mapping[str, Any], steps: int) -> float:
        """How long a run of so many steps takes here at most, from those that are finished; 0 if none is."""
        known = self._alike(result)
        lengths = []
        for record in known:
            pace = record["cost"]["seconds_per_step"]
            rest = max(0.0, record["seconds"] - pace * record["steps"])
            lengths.append(rest + pace * steps)
        return _MARGIN * max(lengths, default=0.0)

    def _alike(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What is finished on this device, if possible with as many processes."""
        records = [*result["runs"], *result["trials"]]
        here = [r for r in records if r["cost"].get("device") == self._device_name() and r["cost"]["seconds_per_step"]]
        return [record for record in here if record["processes"] == self.processes] or here

    def _device_name(self) -> str:
        if self.device == "cpu":
            return "cpu"
        import torch

        return torch.cuda.get_device_name()

    def _begin(self) -> dict[str, Any]:
        """Reads what is there, and counts the classes once for all runs."""
        example = self.study.jobs({"trials": [], "runs": []})[0].config
        data = {
            f"{split}: {key}": value
            for split in self.study.splits()[1:]
            for key, value in data_fingerprint(self._prepared(merged(example, {"data": {"val_split": split}}))).items()
        }
        recipe = configuration_fingerprint(self._prepared(example)) | {"steps of a run": self.study.steps}
        self._hashes = {"code": digest(code_fingerprint(example)), "data": digest(data), "recipe": digest(recipe)}
        result = self._merge()
        if not self._statistics.is_file():
            training = SegmentationDataset(self.study.card_path, self.root, "train")
            counted = ClassStatistics.from_dataset(training, num_workers=self.loaders)
            self._statistics.parent.mkdir(parents=True, exist_ok=True)
            counted.save(self._statistics)
        return result

    @property
    def _statistics(self) -> Path:
        return self.out / f"statistics-{self._hashes['data']}.json"

    def _prepared(self, config: Configuration) -> Configuration:
        return on_machine(config, self.root, self.device, self.loaders)

    def _start(self, job: Job) -> None:
        config = self._prepared(job.config)
        hashes = {**self._hashes, "configuration": digest(configuration_fingerprint(config))}
        description = {
            "config": merged(config, {"data": {"statistics": str(self._statistics)}}),
            "offsets": job.part == "runs",
            "part": job.part,
            "record": {
                "model": str(config["model"]["model"]).rpartition("/")[2],
                "method": job.method,
                **({"trial": job.place.name} if job.part == "trials" else {"seed": job.seed}),
                "steps": job.steps,
                "learning_rate": job.rate,
                "processes": self.processes,
                "hashes": hashes,
            },
        }
        folder = self.out / job.place
        folder.mkdir(parents=True, exist_ok=True)
        # Many processes with many threads each wait for each other.
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        with (folder / LOG_FILE).open("ab") as log:
            child = subprocess.Popen(
                [*self.command, str(folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which asks the runs to end
            )
        assert child.stdin is not None
        with child.stdin as pipe:
            pipe.write(json.dumps(description).encode())
        self._running[job.place] = job, child
        print(f"begun: {job.title}", flush=True)

    def _reap(self) -> bool:
        """Takes note of runs that have ended; returns whether what is to do next may have changed."""
        is_changed = any((self.out / place / MEASURED_FILE).is_file() for place in self._busy)
        for place, (job, child) in list(self._running.items()):
            status = child.poll()
            if status is None:
                continue
            del self._running[place]
            self._busy.pop(place, None)
            if status == 0:
                print(f"finished: {job.title}", flush=True)
                is_changed = True
            elif status == BUSY:
                self._busy[place] = time.monotonic()
            else:
                self.failed.add(place)
                is_changed = True
                log = (self.out / place / LOG_FILE).read_text(encoding="utf-8", errors="replace")
                last = "".join(f"  | {line}\n" for line in log.splitlines()[-8:])
                print(f"failed (status {status}): {job.title}\n{last}", flush=True)
        return is_changed

    def _stop(self) -> None:
        """Ends what is running; a run keeps its checkpoint."""
        for _, child in self._running.values():
            child.terminate()
        deadline = time.monotonic() + _SECONDS_TO_END
        for job, child in self._running.values():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            print(f"cut off: {job.title}", flush=True)
        self._running.clear()

    def _merge(self) -> dict[str, Any]:
        """Adds the finished runs in the folder to the JSON file, and returns its content."""
        self.results.mkdir(parents=True, exist_ok=True)
        with FileLock(merge_lock(self.json_path)):
            result = read_result(self.json_path) or {"study": self.name, "commit": commit_of_code()}
            self._check_origin(result)
            for part in ("runs", "trials"):
                found = [*result.get(part, []), *self._finished(part)]
                result[part] = unique(part, found)
            result["search"] = self.study.choices(result, frozenset(self.failed))
            if result["runs"] or result["trials"]:
                _write(self.json_path, result)
        return result

    def _check_origin(self, result: Mapping[str, Any]) -> None:
        for record in (*result.get("runs", []), *result.get("trials", [])):
            for part, value in self._hashes.items():
                if record["hashes"][part] != value:
                    raise ValueError(
                        f"{self.json_path} holds runs of another {part} (of commit {result.get('commit')}; this is "
                        f"commit {commit_of_code()}). A study keeps to one of each: go back to it (a commit's code: "
                        "--code), or give another folder with --results"
                    )
            device = record["cost"].get("device")
            if device is not None and (device == "cpu") != (self.device == "cpu"):
                raise ValueError(
                    f"{self.json_path} holds runs on {device}, and a table never mixes a CPU with a GPU: give another "
                    "folder with --results"
                )

    def _finished(self, part: str) -> list[dict[str, Any]]:
        records = []
        for path in sorted(self.out.rglob(MEASURED_FILE)):
            job = json.loads((path.parent / JOB_FILE).read_text(encoding="utf-8"))
            is_same = all(job["record"]["hashes"][key] == value for key, value in self._hashes.items())
            if job["part"] == part and is_same:
                records.append(job["record"] | json.loads(path.read_text(encoding="utf-8")))
        return records

    def _report(self, result: dict[str, Any], steps: int, seconds: float, too_long: list[Job]) -> None:
        print(f"{len(result['trials'])} trials, {len(result['runs'])} runs: {self.json_path}")
        print(
            f"in {seconds:.0f} s {steps} steps of finished runs: {steps / seconds:.1f} steps a second with "
            f"{self.processes} processes on {self.device}"
        )
        paces = [record["cost"]["seconds_per_step"] for record in self._alike(result)]
        if paces:
            print(f"in the midst of training {self.processes / statistics.median(paces):.1f} steps a second over all")
        if too_long:
            print(f"not begun, as they would not end in time: {', '.join(job.title for job in too_long)}")
        if self.failed:
            print(f"failed, and tried again next time: {', '.join(map(str, sorted(self.failed)))}")
        print(table(result))


def merge_lock(path: Path) -> Path:
    """The lock of a study's results."""
    # Not beside the results: these are to be a few files.
    return Path(tempfile.gettempdir(), f"aucseg-study-{digest({'results': str(path.resolve())})}.lock")


def table(result: Mapping[str, Any]) -> str:
    """Means over the seeds, in %: as trained, and with the offsets of the classes."""
    lines = [f"{'method':24} seeds  rate       mIoU   tail   with offsets: mIoU   tail"]
    for method in dict.fromkeys(run["method"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["method"] == method]
        plain, fitted = [run["metrics"] for run in runs], [run["with_offsets"]["metrics"] for run in runs]
        means = [
            100 * statistics.mean(scores[key] or 0 for scores in kind)
            for kind in (plain, fitted)
            for key in ("miou", "tail")
        ]
        lines.append(
            f"{method:24} {len(runs):5}  {runs[0]['learning_rate']:<9g} {means[0]:5.1f}  {means[1]:5.1f}  "
            f"{means[2]:18.1f}  {means[3]:5.1f}"
        )
    return "\n".join(lines)


def _steps(result: Mapping[str, Any]) -> int:
    return sum(record["steps"] for record in (*result["runs"], *result["trials"]))


def _write(path: Path, content: Any) -> None:
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())
