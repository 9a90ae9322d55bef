"""``aucseg compare --config base.yaml --methods ce,la,aucseg --seeds 0,1,2``."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aucseg.compare.methods import (
    POSTHOC,
    Configuration,
    Method,
    at_path,
    load_base,
    load_definitions,
    load_models,
    merged,
    parse_methods,
    second_stage_config,
)
from aucseg.compare.runner import Run, Runner, locked, write_atomically
from aucseg.compare.search import Search, parse_search, scores_of, trial_config, trial_folder
from aucseg.compare.tables import METRICS, csv_text, latex_text, make_tables, markdown_text, terminal_text
from aucseg.datasets.data_report import describe_data
from aucseg.run_files import LAST_CHECKPOINT, RECORD_FILE, run_folder_of

_EPILOG = """methods: a loss (ce, wce-inverse, focal, cb-focal, ohem, ldam, la, vs, balanced-softmax, blv, seesaw, dice,
lovasz, ...), 'aucseg' (AUCSegLoss and the bank) or 'auc' (AUCSegLoss alone), with
  +bank        the tail memory bank, with the base configuration's options
  +rcs         rare-class sampling
  +posthoc-la  logit adjustment of the trained model (ce+posthoc-la after ce)
  +disalign    DisAlign's second stage on the trained model (ce+disalign after ce), a quarter of the steps
or a name of --methods-file: YAML 'NAME: {method: aucseg, model: {loss_options: {surrogate: hinge}}}'.

examples:
  aucseg compare --config base.yaml --methods ce,la,la+bank,aucseg --seeds 0,1,2,3,4
  aucseg compare --config base.yaml --methods ce,la,aucseg --seeds 0,1,2 --search auto
  aucseg compare --config base.yaml --methods ce,aucseg --search auc_weight=0.5,1,2,4 --models smp/fpn,segnext.yaml

Stop it at any time and call it again: finished runs are not repeated, the one that was cut off goes on from its last
checkpoint. Exit status 1: some runs failed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.epilog = _EPILOG
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="base configuration, as for fit")
    parser.add_argument("--methods", required=True, metavar="A,B,...", help="what to compare, see below")
    parser.add_argument("--seeds", default="0,1,2,3,4", metavar="0,1,...", help="one run each (default: %(default)s)")
    parser.add_argument("--models", default="", metavar="M,N,...", help="names of models, or YAML files of changes to "
                        "the base configuration (default: the base's model)")  # fmt: skip
    parser.add_argument("--methods-file", type=Path, metavar="FILE", help="more methods, defined in YAML")
    parser.add_argument(
        "--baseline", metavar="METHOD", help="method to take differences to (default: ce, or the first)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder (default: %(default)s)")
    parser.add_argument("--root", metavar="DIR", help="folder of the data, instead of the configuration's")
    parser.add_argument("--steps", type=_positive, metavar="N", help="training steps, instead of the configuration's")
    search = parser.add_argument_group("tuning, on training images that are held out and not trained on")
    search.add_argument("--search", action="append", default=[], metavar="SPEC", help="auto, SETTING=V1,V2,... or "
                        "METHOD:DOTTED.NAME=V1,V2,...; every method gets as many trials of its main setting; may be "
                        "repeated")  # fmt: skip
    search.add_argument("--search-steps", type=_positive, metavar="N", help="steps of a trial (default: of a run)")
    search.add_argument("--search-metric", default="miou", choices=("miou", "head", "middle", "tail"),
                        help="what the best trial is best in (default: %(default)s)")  # fmt: skip
    search.add_argument("--search-share", type=_share, default=0.25, metavar="S",
                        help="share of the training images to hold out (default: %(default)s)")  # fmt: skip
    parser.add_argument("--redo", action="store_true", help="repeat runs made with other code, data or configuration")
    parser.add_argument("--discard-checkpoints", action="store_true",
                        help="keep the trained models of the first seed alone")  # fmt: skip
    parser.add_argument("--no-report", action="store_true", help="no HTML report of the first seed at the end")
    parser.add_argument("--dry-run", action="store_true", help="list the runs: finished, to do or differing (refused)")


def run(args: argparse.Namespace) -> int:
    """Runs what is not finished, and tells the results after every run.

    Returns:
        0, or 1 if a run failed.
    """
    comparison = _Comparison.from_arguments(args)
    if args.dry_run:
        return comparison.list_runs()
    with locked(args.out) as lock, _signals_as_exit():
        comparison.runner.lock = lock
        return comparison.execute()


@dataclass
class _Comparison:
    # The base configuration of each model.
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
    # By (model, method): the setting that a search chose, and the trial that won.
    chosen: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    winners: dict[tuple[str, str], Run] = field(default_factory=dict)
    _counts: dict[tuple[str, float], list[int]] = field(default_factory=dict)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> _Comparison:
        base = load_base(args.config)
        if args.root is not None:
            base = merged(base, at_path("data.root", args.root))
        if args.steps is not None:
            base = merged(base, {"trainer": {"max_steps": args.steps, "val_check_interval": args.steps}})
        base["model"] = {"pixel_metrics": True} | (base.get("model") or {})
        methods = parse_methods(_listed(args.methods, "--methods"), load_definitions(args.methods_file))
        names = [method.name for method in methods]
        baseline = args.baseline or ("ce" if "ce" in names else names[0])
        if baseline not in names:
            raise ValueError(f"--baseline {baseline!r} is none of the methods {', '.join(names)}")
        try:
            seeds = [int(seed) for seed in _listed(args.seeds, "--seeds")]
        except ValueError as error:
            raise ValueError(f"--seeds {args.seeds}: expected whole numbers and commas") from error
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"--seeds {args.seeds}: a seed is listed twice")
        search = parse_search(args.search, methods)
        if search is not None:
            for method in methods:
                search.grid(method, base)  # a wrong grid is told before hours of runs
        return cls(
            models=load_models([item for item in args.models.split(",") if item], base),
            methods=methods,
            seeds=seeds,
            baseline=baseline,
            out=args.out,
            search=search,
            search_steps=args.search_steps,
            search_metric=args.search_metric,
            search_share=args.search_share,
            report=not args.no_report,
            discard_checkpoints=args.discard_checkpoints,
            runner=Runner(redo=args.redo),
        )

    def execute(self) -> int:
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
                    folder = self.out / _slug(model) / method.name / f"seed{seed}"
                    title = f"{model}, {method.name}, seed {seed}"
                    done[method.name] = self._run(title, folder, method, config, first)
                    yield model, method, done[method.name]

    def _run(self, title: str, folder: Path, method: Method, config: Configuration, first: Run | None) -> Run:
        command = "validate" if method.second_stage == POSTHOC else "fit"
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
                if (method.first_stage is not None and first is None) or not self._tune_method(
                    self.search, model, method, first
                ):
                    print(f"{method.name} is left out: not one trial gave a result")
                    failed.add(method.name)
        self.methods = [method for method in self.methods if method.name not in failed]
        choices = [{"model": m, "method": name, **choice} for (m, name), choice in self.chosen.items()]
        write_atomically(self.out / "search.json", json.dumps(choices, indent=1) + "\n")

    def _tune_method(self, search: Search, model: str, method: Method, first: Run | None) -> bool:
        grid = search.grid(method, self.models[model])
        folder = self.out / "search" / _slug(model) / method.name
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


@contextmanager
def _signals_as_exit() -> Iterator[None]:
    """Ends the running child before this process ends."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return

    def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    # A closed terminal, too: the child is in a session of its own, where the system does not end it.
    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
    previous = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _slug(model: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in model)


def _listed(text: str, option: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise ValueError(f"{option} lists nothing")
    return items


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
