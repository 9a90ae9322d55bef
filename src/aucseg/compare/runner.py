"""Runs, one process each, that several comparisons may share; what is finished stays finished."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aucseg.compare.fingerprints import (
    Fingerprint,
    code_fingerprint,
    configuration_fingerprint,
    data_fingerprint,
    differences,
    digest,
    named_files_fingerprint,
)
from aucseg.compare.methods import Configuration
from aucseg.metrics.result_files import step_of_result
from aucseg.models.build import is_import_path
from aucseg.models.checkpoint import TRUST_VARIABLE
from aucseg.run_files import (
    COST_FILE,
    INPUT_FILE,
    LAST_CHECKPOINT,
    LOG_FILE,
    PREVIOUS_CHECKPOINT,
    RECORD_FILE,
    RESULT_FILE,
    STARTED_FILE,
)
from aucseg.runtime.child_processes import end_child
from aucseg.safe_files import no_empty_folders, write_json
from aucseg.training.run_lock import IS_TAKEN, is_at_work, lock_if_free, remove_lone_lock

# Held by who takes care of a run; the run itself holds another, see `aucseg.training.run_lock`.
_RUNNER_LOCK = ".runner.lock"
_FAILED_FILE = "failed"
# Of the log of a run that has failed.
_NUM_LAST_LINES = 8
# Variables by which a process would take itself for one of several that train one model.
_OF_LAUNCHERS = (
    *("SLURM_", "TORCHELASTIC_", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("GROUP_RANK", "ROLE_RANK", "NODE_RANK", "PMI_", "OMPI_"),
)
COMMAND = (sys.executable, "-m", "aucseg")


class RunIsBusy(Exception):  # noqa: N818 - nothing is wrong with it
    """Somebody else is at a run."""


@dataclass(frozen=True)
class PlannedRun:
    """One training (or evaluation of a trained model).

    Attributes:
        title: What to call it in messages.
        folder: Its run folder.
        config: Its whole configuration.
        command: `"fit"` or `"validate"`.
        first_stage: The run whose model it starts from, or None.
    """

    title: str
    folder: Path
    config: Configuration
    command: str = "fit"
    first_stage: PlannedRun | None = None

    @property
    def checkpoint(self) -> Path:
        """The trained model."""
        return self.folder / LAST_CHECKPOINT

    def discard_model(self) -> None:
        """Deletes the trained model, and the one before it; that of a run which is not finished stays."""
        if (self.folder / RECORD_FILE).is_file():
            for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT):
                (self.folder / name).unlink(missing_ok=True)


@dataclass
class Runner:
    """Executes runs that are not finished, and refuses results that were made of something else.

    Args:
        redo: Whether finished runs whose code, data or configuration differ are repeated instead of refused.
        began: When this comparison began, as the file system of its folder counts; runs that others have seen fail
            since then are not tried again.
    """

    redo: bool = False
    began: float = 0.0
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _data: dict[str, Fingerprint] = field(default_factory=dict)

    def fingerprints(self, run: PlannedRun) -> dict[str, Fingerprint]:
        """What the run's result would be made of now."""
        # Of these what is hashed depends on: the files of the validation split where that is validated on alone.
        place = ("card", "root", "hf", "image_column", "mask_column", "train_split", "val_split")
        keys = (*place, "on_error", "follow_symlinks", "held_out_share", "validate_held_out", "shards", "val_shards")
        data = {key: run.config["data"].get(key) for key in keys}
        key = json.dumps({**data, "has_fold": bool(run.config["data"].get("fold"))})
        if key not in self._data:
            self._data[key] = data_fingerprint(run.config)
        first = None if run.first_stage is None else configuration_fingerprint(run.first_stage.config)
        return {
            "code": code_fingerprint(run.config),
            "data": self._data[key] | named_files_fingerprint(run.config),
            "configuration": configuration_fingerprint(run.config, first),
        }

    def record(self, run: PlannedRun) -> dict[str, Any] | None:
        """The record of a finished run; None for one that has to be run.

        Raises:
            ValueError: The run was made of other code, data or configuration, and `redo` is False.
        """
        path = run.folder / RECORD_FILE
        if not path.is_file():
            return None
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        now = self.fingerprints(run)
        changed = [part for part in now if record["hashes"].get(part) != digest(now[part])]
        if not changed:
            return record
        if self.redo:
            return None
        details = []
        for part in changed:
            all_changes = differences(record["fingerprints"].get(part, {}), now[part])
            shown = "; ".join(all_changes[:4]) + ("; ..." if len(all_changes) > 4 else "")
            details.append(f"{part} (hash {record['hashes'].get(part)} then, {digest(now[part])} now: {shown})")
        raise ValueError(
            f"{run.folder} was made with other {' and other '.join(details)}. Results of different code, data or "
            "configuration are not mixed in one table: go back to what was, repeat the runs that differ with --redo, "
            "or give a new folder with --out"
        )

    def execute(self, run: PlannedRun) -> dict[str, Any] | None:
        """The run's record, from its folder or by running it; None if it failed.

        A failure is printed and noted in `failures`; the next call tries again.

        Raises:
            RunIsBusy: Another process is at it, or a run that a killed comparison has left behind goes on.
        """
        record = self.record(run)
        if record is not None:
            return record
        with no_empty_folders(run.folder), self._alone(run) as is_ours:
            if not is_ours or is_at_work(run.folder):
                raise RunIsBusy
            # What another process has left in the meantime.
            record = self.record(run)
            if record is None and self.has_failed(run):
                self.failures.append(run.title)
                print(f"  failed in another process: {run.title}, see {run.folder / LOG_FILE}")
                return None
            return self._execute(run) if record is None else record

    @contextmanager
    def _alone(self, run: PlannedRun) -> Iterator[bool]:
        """Makes the folder and holds its lock, which goes with a run that cannot be started."""
        lock = run.folder / _RUNNER_LOCK
        run.folder.mkdir(parents=True, exist_ok=True)
        with lock_if_free(lock) as is_ours:
            try:
                yield is_ours
            except BaseException:
                if is_ours:
                    remove_lone_lock(lock)
                raise

    def has_failed(self, run: PlannedRun) -> bool:
        """Whether another process has seen a run fail since this one began."""
        path = run.folder / _FAILED_FILE
        return path.is_file() and path.stat().st_mtime >= self.began

    def is_busy(self, run: PlannedRun) -> bool:
        """Whether a process is at a run."""
        if not run.folder.is_dir():
            return False
        with lock_if_free(run.folder / _RUNNER_LOCK) as is_ours:
            return not is_ours or is_at_work(run.folder)

    def _execute(self, run: PlannedRun) -> dict[str, Any] | None:
        if run.first_stage is not None and not run.first_stage.checkpoint.is_file():
            raise ValueError(
                f"{run.title} starts from {run.first_stage.checkpoint}, which is gone: delete "
                f"{run.first_stage.folder} to have it trained again"
            )
        fingerprints = self.fingerprints(run)
        hashes = {part: digest(fingerprint) for part, fingerprint in fingerprints.items()}
        for name in (RECORD_FILE, RESULT_FILE, COST_FILE, _FAILED_FILE):
            (run.folder / name).unlink(missing_ok=True)
        self._write_input(run)
        seconds_before = _seconds_of_same(run.folder / STARTED_FILE, hashes)
        write_started(run.folder, hashes, seconds_before or 0.0)
        start = time.perf_counter()
        try:
            status = self._launch(run, goes_on=seconds_before is not None)
        finally:
            seconds = (seconds_before or 0.0) + time.perf_counter() - start
            write_started(run.folder, hashes, seconds)
        problem = _problem(run, status)
        if problem is not None and IS_TAKEN in (run.folder / LOG_FILE).read_text(encoding="utf-8", errors="replace"):
            # A run that a killed comparison has left behind had not got to its lock yet.
            raise RunIsBusy
        if problem is not None:
            self.failures.append(run.title)
            (run.folder / _FAILED_FILE).touch()
            print(f"  failed: {problem}\n{_last_lines(run.folder / LOG_FILE)}  the whole log: {run.folder / LOG_FILE}")
            return None
        cost = run.folder / COST_FILE
        record = {
            "title": run.title,
            "hashes": hashes,
            "metrics": json.loads((run.folder / RESULT_FILE).read_text(encoding="utf-8"))["metrics"],
            "cost": json.loads(cost.read_text(encoding="utf-8")) if cost.is_file() else {},
            "seconds": round(seconds, 1),
            "fingerprints": fingerprints,
        }
        write_json(run.folder / RECORD_FILE, record, indent=1)
        self.seconds.append(seconds)
        return record

    def _write_input(self, run: PlannedRun) -> None:
        config = dict(run.config)
        if run.command == "fit":
            trainer = dict(config["trainer"])
            meter = {
                "class_path": "aucseg.compare.cost.CostMeter",
                "init_args": {"file": str(run.folder / COST_FILE)},
            }
            trainer["callbacks"] = [*(trainer.get("callbacks") or []), meter]
            config["trainer"] = trainer
        (run.folder / INPUT_FILE).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def _launch(self, run: PlannedRun, *, goes_on: bool) -> int:
        arguments = [*COMMAND, run.command, "--config", str(run.folder / INPUT_FILE), "--out", str(run.folder)]
        if run.command == "fit":
            arguments += ["--resume", "auto"] if goes_on else ["--overwrite", "true"]
            if not goes_on:
                # A failed start would bring it back, and the next one take it for this run.
                from aucseg.training.result_writer import remove_run

                remove_run(run.folder)
        # A run is one process, even where this one is one of many that srun or torchrun has started.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OF_LAUNCHERS)}
        if run.first_stage is not None:
            environment |= trusting(run.first_stage.config)
        (run.folder / LOG_FILE).write_text("", encoding="utf-8")
        # What a run that is left behind still writes comes after what this one writes, not over it.
        with (run.folder / LOG_FILE).open("a", encoding="utf-8") as log:
            # Our own command, a list of arguments without a shell.
            child = subprocess.Popen(  # nosec B603
                arguments,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for this process, which asks the run to end: a second signal would deny it its checkpoint.
                start_new_session=True,
            )
            try:
                return child.wait()
            finally:
                # Reached with a living child on Ctrl-C and on SIGTERM: nothing goes on in the background.
                if child.poll() is None:
                    child.terminate()
                    end_child(child)


def trusting(config: Configuration) -> dict[str, str]:
    """What lets a process load a checkpoint that a comparison has trained itself, where the user named its code.

    Args:
        config: The configuration that it was trained with.
    """
    model = config.get("model") or {}
    is_own = is_import_path(str(model.get("model", ""))) or ":" in str(model.get("loss", ""))
    return {TRUST_VARIABLE: "1"} if is_own else {}


def write_started(folder: Path, hashes: dict[str, str], seconds: float) -> None:
    """Notes what a run is made of and how long it has run."""
    write_json(folder / STARTED_FILE, {"hashes": hashes, "seconds": seconds})


def _seconds_of_same(path: Path, hashes: dict[str, str]) -> float | None:
    """How long a run of the same code, data and configuration has run already; None if there is none."""
    if not path.is_file():
        return None
    started = json.loads(path.read_text(encoding="utf-8"))
    return float(started["seconds"]) if started["hashes"] == hashes else None


def _problem(run: PlannedRun, status: int) -> str | None:
    if status != 0:
        return f"exit status {status}"
    step, max_steps = step_of_result(run.folder / RESULT_FILE), run.config["trainer"]["max_steps"]
    if step is None:
        return "it left no result"
    if run.command == "fit" and step != max_steps:
        return f"it ended at step {step} of {max_steps}"
    return None


def _last_lines(log: Path) -> str:
    # A progress bar rewrites its line with carriage returns.
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_NUM_LAST_LINES:]
    return "".join(f"  | {line.rpartition(chr(13))[2]}\n" for line in lines)
