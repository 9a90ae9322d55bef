"""A study whose runs several processes share: what is to do next, and how it is chosen (`benchmarks.evidence.pool`)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aucseg
from aucseg.compare.methods import Configuration, Method, load_base, load_definitions, merged, parse_methods
from aucseg.compare.search import Grid, Outcome, Point, Search, label, outcome, with_settings
from aucseg.compare.tuning import choice_of
from aucseg.safe_files import read_yaml_mapping

_HERE = Path(__file__).parent
HELD_OUT = "heldout"
RATE = "model.learning_rate"
_FIRST = "ce"
BEST_RIVAL = "BEST_RIVAL"
"""Stands for the method that is best on the held-out images of another study, of those without the AUC loss."""


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        part: `"trials"` of the search, validated on held-out images, or `"runs"`, validated on the study's split.
        method: Name in the tables.
        seed: Seed of the run.
        config: The whole configuration, but for the device.
        trial: What a trial is called, such as `learning_rate=0.004`; empty for a run.
    """

    part: str
    method: str
    seed: int
    config: Configuration
    trial: str = ""

    @property
    def steps(self) -> int:
        return int(self.config["trainer"]["max_steps"])

    @property
    def rate(self) -> float:
        return float(self.config["model"]["learning_rate"])

    @property
    def place(self) -> Path:
        """Folder below that of the study."""
        return Path("search", self.method, self.trial) if self.trial else Path(self.method, f"seed{self.seed}")

    @property
    def title(self) -> str:
        if self.trial:
            return f"{self.method}, {self.trial.replace('=', ' ').replace(',', ', ')}, search"
        return f"{self.method}, learning rate {self.rate:g}, seed {self.seed}"


@dataclass(frozen=True)
class SharedStudy:
    """Methods that are all tuned alike on held-out images, and then run with some seeds.

    First the learning rate of cross-entropy is found. Then each method's main settings are tuned at this rate, and its
    own rate, by the rules of `aucseg.compare.search`.

    Attributes:
        title: Heading in the results.
        text: What is compared.
        card: Name of a card of this folder; its split `heldout` chooses, and nothing is trained on it.
        config: Name of the base configuration.
        methods: In the order in which they are run.
        rates: Learning rates that cross-entropy begins with.
        search_steps: Steps of a trial.
        steps: Steps of a run.
        seeds: Number of seeds.
        num_trials: Values that every setting begins with.
        limit: Most trials of any method.
        tunes_rates: Whether methods have learning rates of their own, or that of cross-entropy.
        embedded: Whether the images are part of the package.
        change: Name of a file of changes to the base configuration, for another model.
        rival_of: Study whose held-out images choose `BEST_RIVAL`.
        settings_of: Study of another budget whose trials choose the settings here, too; this one then has no trials.
        frequent: Classes over which the mean IoU is reported as well, where others have too few images.
        options: Changes to the base configuration.
        trials: Those of `settings_of`, as `resolved` finds them.
    """

    title: str
    text: str
    card: str
    config: str
    methods: tuple[str, ...]
    rates: tuple[float, ...]
    search_steps: int
    steps: int
    seeds: int = 3
    num_trials: int = 3
    limit: int = 7
    tunes_rates: bool = True
    embedded: bool = False
    change: str | None = None
    rival_of: str | None = None
    settings_of: str | None = None
    frequent: tuple[str, ...] = ()
    options: Configuration = field(default_factory=dict)
    trials: tuple[Mapping[str, Any], ...] = ()

    def resolved(self, results: Path) -> SharedStudy:
        """The study with what it takes from others: the method that `BEST_RIVAL` stands for, and trials.

        Args:
            results: Folder of the JSON files.

        Raises:
            ValueError: The other study has not been run yet.
        """
        study = self
        if self.settings_of is not None:
            study = replace(study, trials=tuple(_records(results, self.settings_of, "trials")))
        if BEST_RIVAL not in self.methods:
            return study
        rivals = best_methods([run for run in _records(results, self.rival_of, "runs") if is_rival(run["method"])])
        if not rivals:
            raise ValueError(f"'{self.title}' takes the best rival of the study {self.rival_of!r}: run that first")
        return replace(study, methods=tuple(rivals[0] if name == BEST_RIVAL else name for name in self.methods))

    def only(self, methods: Sequence[str]) -> SharedStudy:
        """The study with some of its methods; cross-entropy, whose learning rate they need, is always among them.

        Raises:
            ValueError: The study has no such method.
        """
        unknown = [name for name in methods if name not in self.methods]
        if unknown:
            raise ValueError(f"'{self.title}' has no method {', '.join(unknown)}; there are {', '.join(self.methods)}")
        return replace(self, methods=tuple(name for name in self.methods if name in (_FIRST, *methods)))

    @property
    def card_path(self) -> Path:
        return _HERE / "cards" / f"{self.card}.yaml"

    def data_root(self, given: Path | None) -> Path:
        """The folder of the images.

        Raises:
            ValueError: None is given, but the images are not part of the package.
        """
        if given is not None:
            return given
        if not self.embedded:
            raise ValueError(f"the data of '{self.title}' are not part of the package: give their folder with --root")
        return Path(aucseg.__file__).parent / "datasets" / "freedoom_lt"

    def splits(self) -> tuple[str, ...]:
        """The splits of the card that the study reads."""
        return ("train", HELD_OUT, str(self._base()["data"].get("val_split", "val")))

    def jobs(self, result: Mapping[str, Any], failed: frozenset[Path] = frozenset()) -> list[Job]:
        """What is to do next, in its order: of each method the trials that are wanted now, or its runs.

        Args:
            result: Finished `trials` and `runs`.
            failed: Places of jobs that failed: nobody waits for them.

        Raises:
            ValueError: The trials of the study that chooses the settings are not finished.
        """
        done = {Path(run["method"], f"seed{run['seed']}") for run in result["runs"]} | failed
        jobs: list[Job] = []
        rate = None
        for method in self._parsed():
            if rate is None and method.name != _FIRST:
                break  # the learning rate of cross-entropy comes first
            grids = self._grids(method, rate)
            found, _ = self._search(method, grids, result, failed)
            if found.wanted:
                if self.settings_of is not None:
                    raise ValueError(
                        f"'{self.title}' takes the settings of the study {self.settings_of!r}, whose trials of "
                        f"{method.name} are not finished: run that first"
                    )
                trials = [self._job("trials", method, 0, grids, point) for point in found.wanted]
                jobs += [job for job in trials if not _is_done(job, result) and job.place not in failed]
            elif found.point is not None:
                if method.name == _FIRST:
                    rate = found.point[-1]
                runs = [self._job("runs", method, seed, grids, found.point) for seed in range(self.seeds)]
                jobs += [job for job in runs if job.place not in done]
        return jobs

    def choices(self, result: Mapping[str, Any], failed: frozenset[Path] = frozenset()) -> list[dict[str, Any]]:
        """What was chosen for the methods whose trials are done, as `search.json` of a comparison has it."""
        choices = []
        rate = None
        for method in self._parsed():
            trials = [trial for trial in (*self.trials, *result["trials"]) if trial["method"] == method.name]
            if not trials or (rate is None and method.name != _FIRST):
                continue
            grids = self._grids(method, rate)
            found, scores = self._search(method, grids, result, failed)
            if found.wanted or found.point is None:
                continue
            if method.name == _FIRST:
                rate = found.point[-1]
            choice = choice_of(grids, found, scores)
            choices.append({"model": trials[0]["model"], "method": method.name, **choice})
        return choices

    def _parsed(self) -> list[Method]:
        return parse_methods(self.methods, load_definitions(_HERE / "configs" / "methods.yaml"))

    def _grids(self, method: Method, rate: float | None) -> tuple[Grid, ...]:
        if rate is None or method.name == _FIRST:
            return (Grid(RATE, self.rates),)
        search = Search(self.num_trials, {}, {}, self.limit, rates=self.tunes_rates)
        grids = search.grids_of(method, {**self._base(), "model": {**self._base()["model"], "learning_rate": rate}})
        return grids if any(grid.path == RATE for grid in grids) else (*grids, Grid(RATE, (rate,)))

    def _search(
        self, method: Method, grids: tuple[Grid, ...], result: Mapping[str, Any], failed: frozenset[Path] = frozenset()
    ) -> tuple[Outcome, dict[Point, float | None]]:
        known_trials = [trial for trial in (*self.trials, *result["trials"]) if trial["method"] == method.name]
        finished = {trial["trial"]: trial["metrics"]["miou"] for trial in known_trials}
        finished |= {place.name: None for place in failed if place.parts[:2] == ("search", method.name)}
        scores: dict[Point, float | None] = {}
        while True:
            found = outcome(grids, self.limit, scores)
            known = {p: finished[label(grids, p)] for p in found.wanted if label(grids, p) in finished}
            if not known:
                return found, scores
            scores |= known

    def _base(self) -> Configuration:
        base = load_base(_HERE / "configs" / f"{self.config}.yaml")
        if self.change is not None:
            change = read_yaml_mapping(_HERE / "configs" / f"{self.change}.yaml")
            base = merged(merged(base, {"model": {"model_options": None}}), change)
        changes = {"data": {"card": str(self.card_path)}, "model": {"pixel_metrics": True}}
        return merged(merged(base, changes), self.options)

    def _job(self, part: str, method: Method, seed: int, grids: tuple[Grid, ...], point: Point) -> Job:
        is_trial = part == "trials"
        steps = self.search_steps if is_trial else self.steps
        settings = {grid.path: value for grid, value in zip(grids, point, strict=True)}
        config = merged(with_settings(method.configure(self._base()), settings), {
            "seed_everything": seed,
            "trainer": {"max_steps": steps, "val_check_interval": steps},
            "data": {"seed": seed} | ({"val_split": HELD_OUT} if is_trial else {}),
        })  # fmt: skip
        return Job(part, method.name, seed, config, label(grids, point) if is_trial else "")


def _records(results: Path, study: str | None, part: str) -> list[dict[str, Any]]:
    path = results / f"{study}.json"
    return list(json.loads(path.read_text(encoding="utf-8"))[part]) if path.is_file() else []


def _is_done(job: Job, result: Mapping[str, Any]) -> bool:
    return any((trial["method"], trial["trial"]) == (job.method, job.trial) for trial in result["trials"])


def is_rival(method: str) -> bool:
    """Whether a method is neither plain cross-entropy nor one with the AUC loss."""
    return method != _FIRST and not method.startswith("auc")


def best_methods(runs: list[dict[str, Any]]) -> list[str]:
    """The methods by their mean IoU on the held-out images, best first; those alone with as many seeds as any."""
    scores: dict[str, list[float]] = {}
    for run in runs:
        if "heldout" in run:
            scores.setdefault(run["method"], []).append(run["heldout"]["miou"])
    most = max(map(len, scores.values()), default=0)
    complete = [method for method, values in scores.items() if len(values) == most]
    return sorted(complete, key=lambda method: -statistics.mean(scores[method]))
