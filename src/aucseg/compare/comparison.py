"""One comparison: methods x seeds or folds x models on one card and budget, resumable, in tables with intervals."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from aucseg.compare.finished import RUNS_FILE, Key
from aucseg.compare.methods import OFFSETS, POSTHOC, Configuration, Method, merged, second_stage_config
from aucseg.compare.pages import write_page
from aucseg.compare.runner import PlannedRun, RunIsBusy, Runner, trusting
from aucseg.compare.search import Search, with_settings
from aucseg.compare.tables import METRICS, csv_text, latex_text, make_tables, markdown_text, terminal_text, unit_of
from aucseg.compare.tuning import SEARCH_FILE, read_choices, seed_of_trials, tune, tuned_settings
from aucseg.datasets.data_report import describe_data
from aucseg.runtime.durations import format_duration
from aucseg.safe_files import replace_file
from aucseg.training.run_lock import lock_if_free

_T = TypeVar("_T")
_POLL_SECONDS = 2.0
# Tables are written in a moment.
_SECONDS_TO_WRITE = 60.0


@dataclass
class Comparison:
    """What is to run, and what has been found so far.

    Attributes:
        models: The base configuration of each model, by its name.
        methods: What is compared; a search that finds nothing for one leaves it out.
        seeds: Seeds of the runs; in a cross-validation the numbers of the folds as well.
        keys: The runs by (model, method, seed or fold), see `aucseg.compare.finished`.
        folds: Number of folds of a cross-validation, None for none.
        baseline: Name of the method that differences are taken to.
        out: Folder of runs and tables.
        search: The settings to tune, or None.
        search_steps: Training steps of a trial, None for those of a run.
        search_metric: What the best trial is best in.
        search_share: Share of the training images that trials are validated on.
        report: Whether an HTML report of the first seed or fold is written at the end.
        discard_checkpoints: Whether the trained models of later seeds and of trials are deleted.
        runner: What executes the runs.
        values: Metrics and cost by (model, method, seed or fold).
        devices: Where the runs were trained.
        chosen: By (model, method, seed or fold of the trials) the settings that a search chose.
        winners: By the same the trial that won.
    """

    models: dict[str, Configuration]
    methods: list[Method]
    seeds: list[int]
    keys: set[Key]
    folds: int | None
    baseline: str
    out: Path
    search: Search | None
    search_steps: int | None
    search_metric: str
    search_share: float
    report: bool
    discard_checkpoints: bool
    runner: Runner
    values: dict[Key, dict[str, float]] = field(default_factory=dict)
    devices: set[str] = field(default_factory=set)
    chosen: dict[Key, dict[str, Any]] = field(default_factory=dict)
    winners: dict[Key, PlannedRun] = field(default_factory=dict)
    _counts: dict[tuple[str, float], list[int]] = field(default_factory=dict)
    _settled: set[str] = field(default_factory=set)
    _shown: str = ""
    _is_waiting: bool = False

    def execute(self) -> int:
        """Runs what is not finished, and prints the results as they change; returns 1 if a run failed, else 0.

        Other processes may execute the same comparison at the same time: each run is one's.
        """
        # The models of a comparison share their data.
        print("\n".join(describe_data(next(iter(self.models.values()))["data"])), flush=True)
        if self.search is not None:
            tune(self)
        runs = list(self._plan())
        self._note_finished(runs)
        self.share(runs, lambda item: self._attempt(*item, number=1 + runs.index(item), runs=runs))
        if not self.values:
            print("no run has finished")
            return 1
        report = self._write_report() if self.report else []
        with self.alone():
            self._write_tables(report)
        print("\n" + self._terminal_text())
        print(f"Tables: {self.out}/table.md, .csv, .tex; every run: {self.out / RUNS_FILE}")
        for name in report:
            print(f"Report: {self.out / name}")
        if self.runner.failures:
            print(f"Failed, and tried again at the next call: {', '.join(self.runner.failures)}")
        return 1 if self.runner.failures else 0

    def share(self, items: Sequence[_T], attempt: Callable[[_T], bool]) -> None:
        """Attempts what is to be done until nothing of it is another process's business."""
        pending = list(items)
        while pending:
            busy = [item for item in pending if not attempt(item)]
            if len(busy) == len(pending):
                if not self._is_waiting:
                    print(f"waiting for other processes: {len(busy)} to go", flush=True)
                self._is_waiting = True
                time.sleep(_POLL_SECONDS)
            pending = busy

    def _attempt(
        self, model: str, method: Method, run: PlannedRun, *, number: int, runs: list[tuple[str, Method, PlannedRun]]
    ) -> bool:
        """Runs one run, or finds it finished or failed; returns whether that is settled."""
        first = run.first_stage
        if first is not None and first.title not in self._settled:
            return False
        if first is not None and first.title in self.runner.failures:
            print(f"  not run: {first.title} has failed")
            self.runner.failures.append(run.title)
        else:
            is_done = self.runner.record(run) is not None
            if not is_done and not self.runner.is_busy(run):
                left = self._time_left(len(runs) - len(self._settled))
                print(f"[{number}/{len(runs)}] {run.title} ...{left}", flush=True)
            try:
                record = self.runner.execute(run)
            except RunIsBusy:
                return False
            if record is not None:
                self._note(model, method, run, record)
                with self.alone():
                    self._write_tables()
                if not is_done and len(self._settled) + 1 < len(runs):
                    self._show()
        self._settled.add(run.title)
        self._discard_settled(run, [other for _, _, other in runs])
        return True

    def _show(self) -> None:
        """Prints the table, if something has changed in it."""
        text = terminal_text(self._tables(), notes=False)
        if text != self._shown:
            print("\n" + text, flush=True)
        self._shown = text

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the lock under which the files of the comparison are written, one process at a time.

        Raises:
            ValueError: Another process holds it for long.
        """
        with lock_if_free(self.out / ".tables.lock", _SECONDS_TO_WRITE) as is_held:
            if not is_held:
                raise ValueError(
                    f"another process has been writing the tables in {self.out} for {_SECONDS_TO_WRITE:.0f} s: when it "
                    "has ended, give the same command again; what is finished is kept"
                )
            yield

    def runs_of(self, method: Method) -> list[PlannedRun]:
        """The runs of a method, seed by seed."""
        return [run for _, other, run in self._plan() if other is method]

    def list_runs(self) -> int:
        """Prints each run as finished, to do or differing, and starts nothing; returns 0."""
        if self.search is not None and not (self.out / SEARCH_FILE).is_file():
            print("the settings are not tuned yet; without them the runs are:")
        elif self.search is not None:
            self.chosen = read_choices(self.out / SEARCH_FILE, self._trial_seed)
        for _, _, run in self._plan():
            try:
                state = "to do" if self.runner.record(run) is None else "finished"
            except ValueError:  # of other code, data or configuration: a call without --redo refuses it
                state = "differs"
            if state == "to do" and self.runner.is_busy(run):
                state = "at work"
            print(f"{state:9} {run.title:40} {run.folder}")
        return 0

    def config_of(self, model: str, method: Method, seed: int) -> Configuration:
        """The configuration of a run, with the settings that a search has chosen so far."""
        config = method.configure(self.models[model])
        choice = self.chosen.get((model, method.name, self.tuned_with(seed)))
        if choice is not None and method.second_stage is None:
            config = with_settings(config, choice["settings"])
        fold = {} if self.folds is None else {"fold": [seed, self.folds]}
        return merged(config, {"seed_everything": seed, "data": {"seed": seed, **fold}})

    def tuned_with(self, seed: int) -> int:
        """The seed of the trials that chose the settings of a run; those of a fold may not see its images."""
        return self._trial_seed if self.folds is None else seed

    @cached_property
    def _trial_seed(self) -> int:
        """That of the trials which are there already, whatever seeds are named now."""
        found = seed_of_trials(self.out)
        return self.seeds[0] if found is None else found

    def _folder(self, model: str, method: Method, seed: int) -> Path:
        return self.out / _slug(model) / method.folder / f"{unit_of(self.folds)}{seed}"

    def _plan(self) -> Iterator[tuple[str, Method, PlannedRun]]:
        """Seed by seed, so that an early table compares like with like."""
        for seed in self.seeds:
            for model in self.models:
                done: dict[str, PlannedRun] = {}
                for method in self.methods:
                    first = None if method.first_stage is None else done[method.first_stage]
                    config = self.config_of(model, method, seed) if first is None else self.second_config(method, first)
                    choice = self.chosen.get((model, method.name, self.tuned_with(seed)))
                    if first is not None and choice is not None:
                        config = with_settings(config, choice["settings"])
                    title = f"{model}, {method.name}, {unit_of(self.folds)} {seed}"
                    done[method.name] = self.make_run(title, self._folder(model, method, seed), method, config, first)
                    if (model, method.name, seed) in self.keys:
                        yield model, method, done[method.name]

    def search_folder(self, model: str, method: Method) -> Path:
        """Where the trials of a method lie."""
        return self.out / "search" / _slug(model) / method.folder

    def make_run(
        self, title: str, folder: Path, method: Method, config: Configuration, first: PlannedRun | None
    ) -> PlannedRun:
        """A run of the comparison, or a trial."""
        command = "validate" if method.second_stage in (POSTHOC, OFFSETS) else "fit"
        return PlannedRun(title, folder, config, command, first)

    def second_config(self, method: Method, first: PlannedRun) -> Configuration:
        """The configuration of a second stage, before its own settings."""
        counts = self._class_counts(first.config) if method.second_stage == POSTHOC else None
        return second_stage_config(method, first.config, first.checkpoint, counts)

    def _class_counts(self, config: Configuration) -> list[int]:
        from aucseg.training.datamodule import SegmentationDataModule

        data = config["data"]
        names = ("card", "root", "hf", "train_split", "fold")
        key = (json.dumps([data.get(name) for name in names]), data.get("held_out_share", 0))
        if key not in self._counts:
            self._counts[key] = SegmentationDataModule(**data).class_counts().tolist()
        return self._counts[key]

    def _note_finished(self, runs: Sequence[tuple[str, Method, PlannedRun]]) -> None:
        """Has finished runs in every table, and reports results that do not fit before hours of training."""
        for model, method, run in runs:
            if (record := self.runner.record(run)) is not None:
                self._note(model, method, run, record)

    def _note(self, model: str, method: Method, run: PlannedRun, record: dict[str, Any]) -> None:
        values = {**record["metrics"], **record["cost"]}
        self.values[model, method.name, self._seed(run)] = {
            metric.key: math.nan if values.get(metric.key) is None else float(values[metric.key]) for metric in METRICS
        }
        self.devices |= {record["cost"]["device"]} if record["cost"] else set()

    def _seed(self, run: PlannedRun) -> int:
        return int(run.config["seed_everything"])

    def _tables(self) -> Any:
        methods = [method.name for method in self.methods]
        tuned = tuned_settings(self.chosen)
        return make_tables(self.values, list(self.models), methods, self.baseline, self.folds, tuned)

    def _terminal_text(self) -> str:
        text = terminal_text(self._tables())
        if len(self.devices) > 1:
            text += f"s/step and MB come from different devices: {', '.join(sorted(self.devices))}.\n"
        return text

    def _write_tables(self, report: list[str] | None = None) -> None:
        tables = self._tables()
        what = f"{unit_of(self.folds)} {self.seeds[0]}"
        links = "".join(f"\n[Report of {what}: {name}]({name})\n" for name in report or [])
        replace_file(self.out / "table.md", (markdown_text(tables) + links).encode())
        replace_file(self.out / "table.csv", csv_text(tables).encode())
        replace_file(self.out / "table.tex", latex_text(tables).encode())
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["model", "method", unit_of(self.folds), *(metric.key for metric in METRICS)])
        for seed, model, method in itertools.product(self.seeds, self.models, self.methods):
            if (values := self.values.get(key := (model, method.name, seed))) is not None:
                writer.writerow([*key, *("" if math.isnan(value) else repr(value) for value in values.values())])
        replace_file(self.out / RUNS_FILE, out.getvalue().encode())

    def _write_report(self) -> list[str]:
        """One HTML page for each model, of the first seed or fold; returns their names.

        Where several processes have come to the end, the first of them writes it.
        """
        with lock_if_free(self.out / ".report.lock") as is_ours:
            return [name for model in self.models if (name := self._write_page(model))] if is_ours else []

    def _write_page(self, model: str) -> str:
        seed = self.seeds[0]
        methods = [method for method in self.methods if (model, method.name, seed) in self.values]
        if not methods:
            return ""
        page = self.out / f"report-{_slug(model)}-{unit_of(self.folds)}{seed}.html"
        runs = {method.name: self._folder(model, method, seed) for method in methods}
        environment: dict[str, str] = {}
        for method in methods:
            environment |= trusting(self.config_of(model, method, seed))
        is_there = write_page(page, runs, self.baseline, self.models[model]["data"].get("root"), environment)
        return page.name if is_there else ""

    def _discard_settled(self, run: PlannedRun, runs: list[PlannedRun]) -> None:
        """Deletes the models of a later seed when no run of that seed and model is left that may start from them."""
        alike = [other for other in runs if _model_and_seed(other) == _model_and_seed(run)]
        if not self.discard_checkpoints or self._seed(run) == self.seeds[0]:
            return
        if all(other.title in self._settled for other in alike):
            for other in alike:
                other.discard_model()

    def _time_left(self, count: int) -> str:
        if not self.runner.seconds:
            return ""
        return f" (about {format_duration(count * sum(self.runner.seconds) / len(self.runner.seconds))} left)"


def _model_and_seed(run: PlannedRun) -> tuple[str, str]:
    return run.folder.parts[-3], run.folder.name


def _slug(model: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in model)
