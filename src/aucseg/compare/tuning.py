"""The trials of a comparison: runs what a search wants to know, and keeps what it has chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aucseg.compare.runner import PlannedRun, RunIsBusy, Runner
from aucseg.compare.search import Outcome, Point, label, outcome, trial_config, trial_folder, with_settings
from aucseg.compare.tables import Tuned
from aucseg.run_files import RECORD_FILE
from aucseg.safe_files import write_json

if TYPE_CHECKING:
    from aucseg.compare.comparison import Comparison
    from aucseg.compare.methods import Method
    from aucseg.compare.search import Grid, Search

SEARCH_FILE = "search.json"


def tune(comparison: Comparison) -> None:
    """Chooses the settings of every method, and leaves out methods of which not one trial gave a result.

    What is chosen is in `comparison.chosen` and `search.json`, the trial that won in `comparison.winners`.
    """
    search = comparison.search
    assert search is not None
    failed: set[str] = set()
    tuned: set[tuple[str, str, int]] = set()

    def attempt(item: tuple[str, Method, int]) -> bool:
        model, method, seed = item
        if method.first_stage is not None and (model, method.first_stage, seed) not in tuned:
            return False
        first = None if method.first_stage is None else comparison.winners.get((model, method.first_stage, seed))
        problem = None
        if method.first_stage is not None and first is None:
            problem = f"it starts from {method.first_stage}, which is"
        elif method.has_setting:
            try:
                problem = _tune_method(comparison, search, model, method, seed, first)
            except RunIsBusy:
                return False
        if problem is not None:
            print(f"{method.name} is left out: {problem}")
            failed.add(method.name)
        tuned.add((model, method.name, seed))
        return True

    seeds = list(dict.fromkeys(map(comparison.tuned_with, comparison.seeds)))
    order = [(model, method, seed) for seed in seeds for model in comparison.models for method in comparison.methods]
    comparison.share(order, attempt)
    comparison.methods = [method for method in comparison.methods if method.name not in failed]
    choices = []
    for model, method, seed in order:
        if method.name not in failed and (choice := comparison.chosen.get((model, method.name, seed))) is not None:
            fold = {} if comparison.folds is None else {"fold": seed}
            choices.append({"model": model, "method": method.name, **fold, **choice})
    with comparison.alone():
        write_json(comparison.out / SEARCH_FILE, choices, indent=1)


def _tune_method(
    comparison: Comparison, search: Search, model: str, method: Method, seed: int, first: PlannedRun | None
) -> str | None:
    """Chooses the settings of a method; returns why there is nothing to choose from, or None."""
    grids = search.grids_of(method, comparison.models[model])
    folder, name = comparison.search_folder(model, method), f"{model}, {method.name}"
    if comparison.folds is not None:
        folder, name = folder / f"fold{seed}", f"{name}, fold {seed}"
    if first is None:
        own = comparison.config_of(model, method, seed)
        plain = trial_config(own, comparison.search_share, comparison.search_steps)
    else:
        plain = comparison.second_config(method, first)
    trials: dict[Point, PlannedRun] = {}
    scores: dict[Point, float | None] = {}
    num_finished = 0
    while wanted := (found := outcome(grids, search.limit, scores)).wanted:
        for point in wanted:
            title = f"{name}, {label(grids, point).replace('=', ' ').replace(',', ', ')}"
            config = with_settings(plain, _settings(grids, point))
            trials[point] = comparison.make_run(title, trial_folder(folder, grids, point), method, config, first)
        records = _run_trials(comparison.runner, {point: trials[point] for point in wanted})
        num_finished += sum(record is not None for record in records.values())
        for point, record in records.items():
            score = None if record is None else record["metrics"].get(comparison.search_metric)
            scores[point] = None if score is None else float(score)
    if comparison.discard_checkpoints:
        starts_another = any(other.first_stage == method.name for other in comparison.methods)
        for point, trial in trials.items():
            if not (starts_another and point == found.point):
                trial.discard_model()
    if found.point is None:
        return f"no trial has a value of {comparison.search_metric}" if num_finished else "all trials have failed"
    comparison.winners[model, method.name, seed] = trials[found.point]
    comparison.chosen[model, method.name, seed] = choice_of(grids, found, scores)
    shown = "; ".join(f"{label(grids, tried)}: {100 * score:.1f}" for tried, score in _by_value(scores))
    edge = "".join(
        f", {path} at the edge of its grid" for path in comparison.chosen[model, method.name, seed]["at_edge"]
    )
    chosen = ", ".join(f"{grid.path} = {value}" for grid, value in zip(grids, found.point, strict=True))
    print(f"{name}: {chosen}{edge}  ({comparison.search_metric} on held-out images: {shown})")
    return None


def choice_of(grids: Sequence[Grid], found: Outcome, scores: Mapping[Point, float | None]) -> dict[str, Any]:
    """What a search has chosen, for JSON: `settings`, `tried` and `at_edge` by the dotted names of the settings.

    `scores` has every trial by its label; None for one that failed.
    """
    assert found.point is not None
    return {
        "settings": _settings(grids, found.point),
        "tried": {grid.path: list(values) for grid, values in zip(grids, found.tried, strict=True)},
        "at_edge": [grid.path for grid, is_at_edge in zip(grids, found.at_edge, strict=True) if is_at_edge],
        "scores": {label(grids, point): score for point, score in scores.items()},
    }


def tuned_settings(chosen: Mapping[tuple[str, str, int], Mapping[str, Any]]) -> dict[tuple[str, str], list[Tuned]]:
    """What was tuned, by (model, method), for the tables; values of several folds stand side by side."""
    result: dict[tuple[str, str], list[Tuned]] = {}
    for model, method in dict.fromkeys((model, method) for model, method, _ in chosen):
        choices = [choice for (m, name, _), choice in chosen.items() if (m, name) == (model, method)]
        result[model, method] = [
            Tuned(
                path.rpartition(".")[2],
                tuple(choice["settings"][path] for choice in choices),
                tuple(dict.fromkeys(value for choice in choices for value in choice["tried"][path])),
                any(path in choice["at_edge"] for choice in choices),
            )
            for path in choices[0]["settings"]
        ]
    return result


def seed_of_trials(out: Path) -> int | None:
    """The seed of the trials that a comparison over seeds has made so far; None if there are none."""
    for path in sorted((out / "search").glob(f"*/*/*/{RECORD_FILE}")):
        record = json.loads(path.read_text(encoding="utf-8"))
        return int(record["fingerprints"]["configuration"]["seed_everything"])
    return None


def read_choices(path: Path, seed: int) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What `search.json` says was chosen, by (model, method, fold); `seed` where there are no folds."""
    choices = json.loads(path.read_text(encoding="utf-8"))
    return {(choice["model"], choice["method"], choice.get("fold", seed)): choice for choice in choices}


def _settings(grids: Sequence[Grid], point: Point) -> dict[str, Any]:
    return {grid.path: value for grid, value in zip(grids, point, strict=True)}


def _by_value(scores: Mapping[Point, float | None]) -> list[tuple[Point, float]]:
    known = [(point, score) for point, score in scores.items() if score is not None and not math.isnan(score)]
    with suppress(TypeError):  # names and numbers have no order
        known.sort(key=lambda item: item[0])
    return known


def _run_trials(runner: Runner, trials: Mapping[Point, PlannedRun]) -> dict[Point, dict[str, Any] | None]:
    """The records of trials, None for those that failed.

    Raises:
        RunIsBusy: Other processes are at some of them; all others are done.
    """
    records: dict[Point, dict[str, Any] | None] = {}
    for point, trial in trials.items():
        if trial.title in runner.failures:
            records[point] = None
            continue
        if runner.record(trial) is None and not runner.is_busy(trial):
            print(f"[trial] {trial.title} ...", flush=True)
        with suppress(RunIsBusy):
            records[point] = runner.execute(trial)
    if len(records) < len(trials):
        raise RunIsBusy
    return records
