"""One comparison: methods x seeds x models on one card and one budget, resumable, in tables with intervals."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aucseg.compare.methods import OFFSETS, POSTHOC, Configuration, Method, at_path, merged, second_stage_config
from aucseg.compare.runner import Run, Runner, write_atomically
from aucseg.compare.search import Search, scores_of, trial_config, trial_folder
from aucseg.compare.tables import METRICS, csv_text, latex_text, make_tables, markdown_text, terminal_text
from aucseg.datasets.data_report import describe_data
from aucseg.run_files import LAST_CHECKPOINT, RECORD_FILE, run_folder_of


@dataclass
class Comparison:
    """What is to run, and what has been found so far.

    Attributes:
        models: The base configuration of each model, by its name.
        methods: What is compared; a search that finds nothing for one leaves it out.
        seeds: One run of each model and method for each.
        baseline: Name of the method that differences are taken to.
        out: Folder of runs and tables.
        search: The settings to tune, or None.
        search_steps: Training steps of a trial, None for those of a run.
        search_metric: What the best trial is best in.
        search_share: Share of the training images that trials are validated on.
        report: Whether an HTML report of the first seed is written at the end.
        discard_checkpoints: Whether the trained models of later seeds are deleted.
        runner: What executes the runs.
        values: Metrics and cost by (model, method, seed).
        devices: Where the runs were trained.
        chosen: By (model, method) the setting that a search chose.
        winners: By (model, method) the trial that won.
    """

    models: dict[str, Configuration]
    methods: list[Method]
    seeds: list[int]
    baseline: str
    out: Path
    search: Search | None
    search_steps: int | None
    search_metric: str
    search_share: float
    report: bool
    discard_checkpoints: bool
    runner: Runner
    values: dict[tuple[str, str, int], dict[str, float]] = field(default_factory=dict)
    devices: set[str] = field(default_factory=set)
    chosen: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    winners: dict[tuple[str, str], Run] = field(default_factory=dict)
    _counts: dict[tuple[str, float], list[int]] = field(default_factory=dict)

    def execute(self) -> int:
        """Runs what is not finished, and prints the results after every run; returns 1 if a run failed, else 0."""
        # The models of a comparison share their data.
        print("\n".join(describe_data(next(iter(self.models.values())).get("data") or {})), flush=True)
        if self.search is None:
            self._refuse_stale_runs()
        else:
            self._tune()
        runs = list(self._plan())
        for number, (model, method, run) in enumerate(runs, 1):
            is_done = self.runner.record(run) is not None
            if not is_done:
                left = self._time_left(len(runs) - number + 1)
                print(f"[{number}/{len(runs)}] {run.title} ...{left}", flush=True)
            if run.first_stage is not None and self.runner.record(run.first_stage) is None:
                print(f"  not run: {run.first_stage.title} has failed")
                self.runner.failures.append(run.title)
                continue
            record = self.runner.execute(run)
            if record is not None:
                self._note(model, method, run, record)
                if not is_done:
                    self._write_tables()
                    print("\n" + terminal_text(self._tables(), notes=False), flush=True)
            if self.discard_checkpoints and method is self.methods[-1] and self._seed(run) != self.seeds[0]:
                self._discard(run.folder.parent.parent, self._seed(run))
        if not self.values:
            print("no run has finished")
            return 1
        report = self._write_report() if self.report else []
        self._write_tables(report)
        print("\n" + self._terminal_text())
        print(f"Tables: {self.out}/table.md, .csv, .tex; every run: {self.out / 'runs.csv'}")
        for name in report:
            print(f"Report: {self.out / name}")
        if self.runner.failures:
            print(f"Failed, and tried again at the next call: {', '.join(self.runner.failures)}")
        return 1 if self.runner.failures else 0

    def list_runs(self) -> int:
        """Prints each run as finished, to do or differing, and starts nothing; returns 0."""
        if self.search is not None and not (self.out / "search.json").is_file():
            print("the settings are not tuned yet; without them the runs are:")
        elif self.search is not None:
            choices = json.loads((self.out / "search.json").read_text(encoding="utf-8"))
            self.chosen = {(choice["model"], choice["method"]): choice for choice in choices}
        for _, _, run in self._plan():
            try:
                state = "to do" if self.runner.record(run) is None else "finished"
            except ValueError:  # of other code, data or configuration: a call without --redo refuses it
                state = "differs"
            print(f"{state:9} {run.title:40} {run.folder}")
        return 0

    def _config(self, model: str, method: Method, seed: int) -> Configuration:
        config = method.configure(self.models[model])
        choice = self.chosen.get((model, method.name))
        if choice is not None and method.second_stage is None:
            config = merged(config, at_path(choice["setting"], choice["value"]))
        return merged(config, {"seed_everything": seed, "data": {"seed": seed}})

    def _plan(self) -> Iterator[tuple[str, Method, Run]]:
        """Seed by seed, so that an early table compares like with like."""
        for seed in self.seeds:
            for model in self.models:
                done: dict[str, Run] = {}
                for method in self.methods:
                    first = None if method.first_stage is None else done[method.first_stage]
                    config = self._config(model, method, seed) if first is None else self._second(method, first)
                    choice = self.chosen.get((model, method.name))
                    if first is not None and choice is not None:
                        config = merged(config, at_path(choice["setting"], choice["value"]))
                    folder = self.out / _slug(model) / method.folder / f"seed{seed}"
                    title = f"{model}, {method.name}, seed {seed}"
                    done[method.name] = self._run(title, folder, method, config, first)
                    yield model, method, done[method.name]

    def _run(self, title: str, folder: Path, method: Method, config: Configuration, first: Run | None) -> Run:
        command = "validate" if method.second_stage in (POSTHOC, OFFSETS) else "fit"
        return Run(title, folder, config, command, first)

    def _second(self, method: Method, first: Run) -> Configuration:
        counts = self._class_counts(first.config) if method.second_stage == POSTHOC else None
        return second_stage_config(method, first.config, first.checkpoint, counts)

    def _class_counts(self, config: Configuration) -> list[int]:
        from aucseg.training.datamodule import SegmentationDataModule

        data = config["data"]
        key = (json.dumps([data.get(name) for name in ("card", "root", "train_split")]), data.get("held_out_share", 0))
        if key not in self._counts:
            self._counts[key] = SegmentationDataModule(**data).class_counts().tolist()
        return self._counts[key]

    def _refuse_stale_runs(self) -> None:
        """A result that does not fit is told before hours of runs, not after."""
        if not self.runner.redo:
            for _, _, run in self._plan():
                self.runner.record(run)

    def _tune(self) -> None:
        assert self.search is not None
        failed: set[str] = set()
        for model in self.models:
            for method in self.methods:
                first = None if method.first_stage is None else self.winners.get((model, method.first_stage))
                has_model = method.first_stage is None or first is not None
                if has_model and not method.has_setting:
                    continue
                if not has_model or not self._tune_method(self.search, model, method, first):
                    print(f"{method.name} is left out: not one trial gave a result")
                    failed.add(method.name)
        self.methods = [method for method in self.methods if method.name not in failed]
        choices = [{"model": m, "method": name, **choice} for (m, name), choice in self.chosen.items()]
        write_atomically(self.out / "search.json", json.dumps(choices, indent=1) + "\n")

    def _tune_method(self, search: Search, model: str, method: Method, first: Run | None) -> bool:
        grid = search.grid(method, self.models[model])
        folder = self.out / "search" / _slug(model) / method.folder
        if first is None:
            plain = trial_config(self._config(model, method, self.seeds[0]), self.search_share, self.search_steps)
        else:
            plain = self._second(method, first)
        trials: dict[Any, Run] = {}

        def score(value: Any) -> float | None:
            title = f"{model}, {method.name}, {grid.path.rpartition('.')[2]} {value}"
            config = merged(plain, at_path(grid.path, value))
            trials[value] = self._run(title, trial_folder(folder, grid, value), method, config, first)
            if self.runner.record(trials[value]) is None:
                print(f"[trial] {title} ...", flush=True)
            record = self.runner.execute(trials[value])
            result = None if record is None else record["metrics"].get(self.search_metric)
            return None if result is None else float(result)

        scores = scores_of(grid, score)
        if not scores:
            return False
        value = max(scores, key=lambda tried: scores[tried])
        self.winners[model, method.name] = trials[value]
        self.chosen[model, method.name] = {
            "setting": grid.path,
            "value": value,
            "scores": {str(tried): result for tried, result in scores.items()},
        }
        shown = ", ".join(f"{tried}: {100 * result:.1f}" for tried, result in scores.items())
        print(f"{model}, {method.name}: {grid.path} = {value}  ({self.search_metric} on held-out images: {shown})")
        return True

    def _note(self, model: str, method: Method, run: Run, record: dict[str, Any]) -> None:
        values = {**record["metrics"], **record["cost"]}
        self.values[model, method.name, self._seed(run)] = {
            metric.key: math.nan if values.get(metric.key) is None else float(values[metric.key]) for metric in METRICS
        }
        self.devices |= {record["cost"]["device"]} if record["cost"] else set()

    def _seed(self, run: Run) -> int:
        return int(run.config["seed_everything"])

    def _tables(self) -> Any:
        return make_tables(self.values, list(self.models), [method.name for method in self.methods], self.baseline)

    def _terminal_text(self) -> str:
        text = terminal_text(self._tables())
        if len(self.devices) > 1:
            text += f"s/step and MB come from different devices: {', '.join(sorted(self.devices))}.\n"
        return text

    def _write_tables(self, report: list[str] | None = None) -> None:
        tables = self._tables()
        links = "".join(f"\n[Report of seed {self.seeds[0]}: {name}]({name})\n" for name in report or [])
        write_atomically(self.out / "table.md", markdown_text(tables) + links)
        write_atomically(self.out / "table.csv", csv_text(tables))
        write_atomically(self.out / "table.tex", latex_text(tables))
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["model", "method", "seed", *(metric.key for metric in METRICS)])
        for key, values in self.values.items():
            writer.writerow([*key, *("" if math.isnan(value) else repr(value) for value in values.values())])
        write_atomically(self.out / "runs.csv", out.getvalue())

    def _write_report(self) -> list[str]:
        """One HTML page for each model, of the first seed; in a process of its own, as it loads trained models."""
        seed, names = self.seeds[0], []
        for model in self.models:
            titles = [method.name for method in self.methods if (model, method.name, seed) in self.values]
            if not titles:
                continue
            name = f"report-{_slug(model)}-seed{seed}.html"
            folders = [str(self.out / _slug(model) / title / f"seed{seed}") for title in titles]
            command = [sys.executable, "-m", "aucseg.cli", "report", *folders, "--out", str(self.out / name)]
            command += ["--titles", *titles, "--baseline", self.baseline if self.baseline in titles else titles[0]]
            if (root := self.models[model]["data"].get("root")) is not None:
                command += ["--root", str(root)]
            # Our own command, a list of arguments without a shell.
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # nosec B603
            if (self.out / name).is_file():
                names.append(name)
            if done.returncode != 0:
                print(f"report of {model}: {done.stderr.strip()[-500:]}", file=sys.stderr)
        return names

    def _discard(self, folder: Path, seed: int) -> None:
        for checkpoint in folder.glob(f"*/seed{seed}/{LAST_CHECKPOINT}"):
            if (run_folder_of(checkpoint) / RECORD_FILE).is_file():
                checkpoint.unlink()

    def _time_left(self, count: int) -> str:
        if not self.runner.seconds:
            return ""
        minutes = count * sum(self.runner.seconds) / len(self.runner.seconds) / 60
        return f" (about {minutes:.0f} min left)"


def _slug(model: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in model)
