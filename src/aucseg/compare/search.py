"""Each method's settings, chosen on a part of the training set: the same rules and the same number of trials for all.

A setting begins with a grid of values. As long as the best value lies at an edge, the next value beyond it is tried,
until the best one has neighbours on both sides or the method has had as many trials as any may have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aucseg.compare.methods import DISALIGN, POSTHOC, Configuration, Method, at_path, budget_of, merged, recipe_for
from aucseg.datasets import DatasetCard
from aucseg.hints import closest
from aucseg.memory_bank.paper import with_paper_settings
from aucseg.memory_bank.policy import with_default_policy
from aucseg.safe_files import parse_yaml

# Dotted name in the configuration, and values in the order in which fewer trials take them: every first part of them
# has equal ratios (of `ohem` equal differences), by which a grid goes on beyond its edge.
_CE_WEIGHT = ("model.loss_options.ce_weight", (1.0, 0.5, 2.0, 0.25, 4.0, 0.125))
_LOSS_SETTINGS: dict[str, tuple[tuple[str, tuple[float, ...]], ...]] = {
    "aucseg": (("model.loss_options.auc_weight", (1.0, 2.0, 0.5, 4.0, 0.25, 8.0)),),
    "wce-inverse": (("model.loss_options.power", (0.5, 0.25, 1.0, 0.125, 2.0, 0.0625)),),
    "wce-effective": (("model.loss_options.beta", (0.999999, 0.9999999, 0.99999, 0.99999999, 0.9999, 0.999)),),
    "focal": (("model.loss_options.gamma", (1.0, 2.0, 0.5, 4.0, 0.25, 0.125)),),
    "cb-focal": (("model.loss_options.gamma", (1.0, 2.0, 0.5, 4.0, 0.25, 0.125)),),
    "ohem": (("model.loss_options.threshold", (0.7, 0.9, 0.5, 0.3, 0.1)),),
    "ldam": (("model.loss_options.max_margin", (2.0, 8.0, 0.5, 0.125, 32.0, 0.03125)),),
    "la": (("model.loss_options.tau", (0.5, 0.25, 1.0, 0.125, 2.0, 0.0625)),),
    "vs": (
        ("model.loss_options.tau", (0.5, 0.25, 1.0, 0.125, 2.0, 0.0625)),
        ("model.loss_options.gamma", (0.15, 0.075, 0.3, 0.0375, 0.6, 0.01875)),
    ),
    "blv": (("model.loss_options.sigma", (1.0, 4.0, 0.25, 16.0, 0.0625, 64.0)),),
    "seesaw": (
        ("model.loss_options.p", (0.4, 0.8, 0.2, 0.1, 1.6, 0.05)),
        ("model.loss_options.q", (2.0, 1.0, 4.0, 0.5, 8.0, 0.25)),
    ),
    **dict.fromkeys(("ce-dice", "ce-jml", "ce-lovasz"), (_CE_WEIGHT,)),
}
_BANK_SETTINGS = {
    "presence_target": ("model.bank.presence_target", (0.15, 0.3, 0.075, 0.6, 0.0375, 0.01875)),
    "sample_ratio": ("model.bank.sample_ratio", (0.2, 0.4, 0.1, 0.05, 0.8, 0.025)),
}
_SAMPLING_SETTINGS = {
    "rare_class": ("data.sampler_options.temperature", (0.3, 0.15, 0.6, 0.075, 1.2, 0.0375)),
    "repeat_factor": ("data.sampler_options.threshold", (0.3, 0.15, 0.6, 0.075, 1.2, 0.0375)),
}
_SECOND_STAGE_SETTINGS = {
    POSTHOC: ("model.model_options.tau", (0.5, 0.25, 1.0, 0.125, 2.0, 0.0625)),
    DISALIGN: ("model.loss_options.rho", (0.3, 0.15, 0.6, 0.075, 1.2, 0.0375)),
}
# Where a setting ends, by the last part of its name; others begin at 0 and have no end.
_ENDS = {"threshold": 1.0, "sample_ratio": 1.0, "presence_target": 1.0}
# A loss without a setting of its own is tried with other learning rates; with `rates` every method is.
_RATE = "model.learning_rate"
_RATE_FACTORS = (1.0, 2.0, 0.5, 4.0, 0.25, 8.0)
DEFAULT_TRIALS = 4
# A method may have this many times the trials of its first grid, unless --search-limit says otherwise.
_LIMIT_FACTOR = 2

Point = tuple[Any, ...]
"""A value for each setting of a method, in the order of its grids."""


@dataclass(frozen=True)
class Grid:
    """Values of one setting to try.

    Attributes:
        path: Dotted name in the configuration.
        values: In ascending order, if they are numbers.
        start: The value while settings before this one are tried; None for the middle of the values.
    """

    path: str
    values: tuple[Any, ...]
    start: Any = None

    @property
    def name(self) -> str:
        """Last part of the setting's name."""
        return self.path.rpartition(".")[2]

    @property
    def first(self) -> Any:
        """The value while settings before this one are tried."""
        return self.values[len(self.values) // 2] if self.start is None else self.start


@dataclass(frozen=True)
class Outcome:
    """What a search has found for a method.

    Attributes:
        point: The best value of each setting; None if no trial has given a score.
        tried: The values of each setting that were tried in its turn; only one for a setting that had no turn.
        at_edge: Whether the best value still lies at the edge of what was tried, by setting.
        wanted: Points to try next; while there are any, the other fields are preliminary.
    """

    point: Point | None
    tried: tuple[tuple[Any, ...], ...]
    at_edge: tuple[bool, ...]
    wanted: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Search:
    """What `--search` asks for.

    Attributes:
        num_trials: Values of the first grid of every method.
        values: Given values by the last part of a setting's name, such as `{"auc_weight": (0.5, 1, 2, 4)}`.
        grids: Given grids by method.
        limit: Most trials that any method may have.
        rates: Whether the learning rate of every method is tuned, too, after its other settings.
    """

    num_trials: int
    values: Mapping[str, tuple[Any, ...]]
    grids: Mapping[str, tuple[Grid, ...]]
    limit: int
    rates: bool = False

    def grids_of(self, method: Method, base: Configuration) -> tuple[Grid, ...]:
        """What to try for a method, setting after setting.

        Raises:
            ValueError: There is no list of so many values for the method.
        """
        grids = self.grids.get(method.name) or tuple(
            self._grid(method, path, values) for path, values in _settings(method, base)
        )
        if self.rates and method.second_stage is None and all(grid.path != _RATE for grid in grids):
            grids += (self._grid(method, *_rates(base)),)
        return grids

    def check(self, methods: Sequence[Method], base: Configuration) -> None:
        """Tells before hours of runs what is wrong with what was asked for.

        Raises:
            ValueError: As `grids_of`; or values of a setting that no method is tuned by, which would be left aside.
        """
        tuned = [method for method in methods if method.has_setting]
        names = {grid.name for method in tuned for grid in self.grids_of(method, base)}
        for name in self.values:
            if name not in names:
                raise ValueError(
                    f"--search {name}: none of the methods is tuned by {name!r}; {closest(name, names)} (any other "
                    "setting is given with its method, as METHOD:DOTTED.NAME=V1,V2,...)"
                )

    def _grid(self, method: Method, path: str, values: tuple[float, ...]) -> Grid:
        name = path.rpartition(".")[2]
        if name in self.values:
            return Grid(path, _ascending(self.values[name]))
        if self.num_trials > len(values):
            raise ValueError(
                f"{self.num_trials} trials of {method.name!r}: only {len(values)} values of {path} are known; give "
                f"them as --search {method.name}:{path}=V1,V2,..."
            )
        return Grid(path, tuple(sorted(values[: self.num_trials])), values[0])


def parse_search(items: Sequence[str], methods: Sequence[Method], limit: int | None = None) -> Search | None:
    """What the `--search` options say; None for no search.

    Args:
        items: `auto`, `rates`, `SETTING=V1,V2,...` or `METHOD:DOTTED.NAME=V1,V2,...`. Several settings of one
            method are tuned one after another.
        methods: The methods of the comparison.
        limit: Most trials of any method; None for twice those of the first grid.

    Raises:
        ValueError: Another form, an unknown method, lists of unequal length, or a limit below their length.

    Example:
        >>> parse_search(["auc_weight=0.5,1,2,4"], []).limit
        8
    """
    if not items:
        return None
    values: dict[str, tuple[Any, ...]] = {}
    grids: dict[str, tuple[Grid, ...]] = {}
    for item in items:
        if item in ("auto", "rates"):
            continue
        name, equals, text = item.partition("=")
        listed = tuple(parse_yaml(f"[{text}]")) if equals else ()
        method, colon, path = name.rpartition(":")
        if not name or len(set(map(str, listed))) < 2:
            raise ValueError(
                f"--search {item}: expected 'auto', 'rates', SETTING=V1,V2,... or METHOD:DOTTED.NAME=V1,V2,... with at "
                "least two values"
            )
        if not colon:
            if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in listed):
                raise ValueError(f"--search {item}: {path} is a number, got {list(listed)}")
            values[path] = listed
        elif method in [known.name for known in methods if known.has_setting]:
            grids[method] = (*grids.get(method, ()), Grid(path, _ascending(listed)))
        else:
            raise ValueError(f"--search {item}: {method!r} is not a method with a setting")
    lengths = {len(v) for v in values.values()} | {len(grid.values) for of in grids.values() for grid in of}
    if len(lengths) > 1:
        raise ValueError(f"every method gets the same number of trials, but --search lists {sorted(lengths)} values")
    num_trials = lengths.pop() if lengths else DEFAULT_TRIALS
    if limit is not None and limit < num_trials:
        raise ValueError(f"--search-limit {limit} is below the {num_trials} values of the grids")
    return Search(num_trials, values, grids, limit or _LIMIT_FACTOR * num_trials, "rates" in items)


def check_metric(metric: str, models: Mapping[str, Configuration]) -> None:
    """Tells before the first trial that none will have a value to choose by.

    Args:
        metric: `"miou"`, or a group of classes.
        models: The base configuration of each model.

    Raises:
        ValueError: A card does not name the group.
    """
    for config in models.values():
        card = DatasetCard.load(config["data"]["card"])
        if metric not in (known := ("miou", *(card.named_groups or ()))):
            raise ValueError(
                f"--search-metric {metric}: the card {card.name!r} names no such group, so that no trial has a "
                f"value of it; choose by {' or '.join(known)}, or add 'groups' to the card"
            )


def outcome(grids: Sequence[Grid], limit: int, scores: Mapping[Point, float | None]) -> Outcome:
    """What is known of a method's settings, and what to try next.

    The first setting is tuned with the others at their first values, the second with the best value of the first, and
    so on. The best value of a setting is the one with the highest score; where it is the smallest or the largest that
    was tried, the next one beyond is tried, too. Of values with equal scores the middle one is taken. A trial that
    failed has a place in the grid but no score.

    Args:
        grids: The settings of the method.
        limit: Most trials.
        scores: Of the trials that are done; None (or NaN) for those that failed.

    Example:
        >>> grid = Grid("model.loss_options.tau", (0.25, 0.5, 1.0))
        >>> outcome([grid], 6, {}).wanted
        ((0.25,), (0.5,), (1.0,))
        >>> outcome([grid], 6, {(0.25,): 0.3, (0.5,): 0.2, (1.0,): 0.1}).wanted
        ((0.125,),)
        >>> outcome([grid], 6, {(0.25,): 0.3, (0.5,): 0.2, (1.0,): 0.1, (0.125,): 0.2}).point
        (0.25,)
        >>> outcome([grid], 3, {(0.25,): 0.3, (0.5,): 0.2, (1.0,): 0.1}).at_edge
        (True,)
    """
    best = [grid.first for grid in grids]
    tried: list[tuple[Any, ...]] = []
    at_edge: list[bool] = []
    counted: dict[Point, None] = {}
    for place, grid in enumerate(grids):
        points = {value: (*best[:place], value, *best[place + 1 :]) for value in grid.values}
        while True:
            room = limit - len(counted.keys() - points.values())
            points = dict(sorted(points.items(), key=lambda item: item[1] not in counted)[:room])
            counted |= dict.fromkeys(points.values())
            wanted = tuple(point for point in points.values() if point not in scores)
            known = {v: s for v, p in points.items() if (s := scores.get(p)) is not None and not math.isnan(s)}
            if known:
                highest = [value for value in _ascending(tuple(known)) if known[value] == max(known.values())]
                best[place] = highest[len(highest) // 2]
            if wanted:
                return Outcome(tuple(best), (*tried, tuple(points)), (*at_edge, False), wanted)
            if not known:
                return Outcome(None, (*tried, tuple(points)), (*at_edge, False))
            beyond = _beyond(tuple(points), best[place])
            value = None if beyond is None else _next_value(grid.name, tuple(points), upwards=beyond)
            if value is None or len(counted) >= limit:
                break
            points[value] = (*best[:place], value, *best[place + 1 :])
        tried.append(_ascending(tuple(points)))
        at_edge.append(value is not None)
    return Outcome(tuple(best), tuple(tried), tuple(at_edge))


def _beyond(tried: tuple[Any, ...], best: Any) -> bool | None:
    """Where a grid of numbers has to go on: upwards (True), downwards (False), or not at all."""
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in tried) or len(tried) < 2:
        return None
    return True if best == max(tried) else False if best == min(tried) else None


def _next_value(name: str, tried: tuple[Any, ...], *, upwards: bool) -> float | int | None:
    """The value beyond the edge, by the ratio or the difference of the outer two; None where the setting ends.

    Positive values stay positive: 0 is mostly another method, or no training.
    """
    values = sorted(tried, reverse=not upwards)
    before, edge = values[-2:]
    differences = [b - a for a, b in itertools.pairwise(values)]
    is_linear = len(values) > 2 and max(differences) - min(differences) <= 1e-6 * abs(differences[0])
    if name == "beta":  # 1 - beta goes by its ratio
        value = 1 - (1 - edge) ** 2 / (1 - before)
        return float(f"{value:.12g}") if 0 <= value < 1 else None
    value = edge + (edge - before)
    if min(before, edge) > 0 and (not is_linear or value <= 1e-9 * edge):
        value = edge * edge / before
    end = _ENDS.get(name, math.inf)
    value = min(max(value, 0.0) if min(values) >= 0 else value, end)
    if math.isclose(value, edge, rel_tol=1e-9):
        return None
    whole = all(isinstance(known, int) for known in values) and float(value).is_integer()
    return int(value) if whole else float(f"{value:.6g}")


def trial_config(config: Configuration, share: float, steps: int | None) -> Configuration:
    """The configuration of a trial: validates on a share of the training images, never on the validation split.

    Raises:
        ValueError: The runs validate on training images themselves, some of which a trial would choose by.
    """
    from aucseg.loading.held_out import validates_held_out

    if validates_held_out(config["data"]):
        raise ValueError(
            "the base configuration validates on training images that it holds out (held_out_share, in it or in the "
            "card), and --search would choose settings by some of them: give the data a validation split, compare "
            "without --search, or with --folds and held_out_share 0"
        )
    changes = at_path("data.held_out_share", share)
    if not config["data"].get("validate_held_out", True):  # offsets would have them, in the runs
        changes["data"]["validate_held_out"] = True
    if steps is not None:
        changes = merged(changes, {"trainer": budget_of(steps, config["trainer"])})
    return merged(config, changes)


def with_settings(config: Configuration, settings: Mapping[str, Any]) -> Configuration:
    """A configuration with the values of some settings, by their dotted names."""
    for path, value in settings.items():
        if path == _BANK_SETTINGS["presence_target"][0]:  # a target given alone has no bound
            bank = with_paper_settings(config["model"].get("bank") or {})
            config = merged(config, {"model": {"bank": with_default_policy(bank)}})
        config = merged(config, at_path(path, value))
    return config


def label(grids: Sequence[Grid], point: Point) -> str:
    """What a trial is called: `tau=0.5`, or `tau=0.5,gamma=0.15`.

    Example:
        >>> label([Grid("model.loss_options.tau", (0.5, 1.0))], (0.5,))
        'tau=0.5'
    """
    return ",".join(f"{grid.name}={value}" for grid, value in zip(grids, point, strict=True))


def trial_folder(folder: Path, grids: Sequence[Grid], point: Point) -> Path:
    """Where a trial of a method lies."""
    return folder / label(grids, point)


def _ascending(values: tuple[Any, ...]) -> tuple[Any, ...]:
    is_number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return tuple(sorted(values)) if is_number else values


def _settings(method: Method, base: Configuration) -> tuple[tuple[str, tuple[float, ...]], ...]:
    if method.second_stage is not None:
        return (_SECOND_STAGE_SETTINGS[method.second_stage],)
    if method.loss in _LOSS_SETTINGS:
        return _LOSS_SETTINGS[method.loss]
    if method.sampler in _SAMPLING_SETTINGS:
        return (_SAMPLING_SETTINGS[method.sampler],)
    model = base.get("model") or {}
    if method.bank and method.loss == "ce":  # of any other loss the same is tuned with the bank as without it
        by_share = with_paper_settings(model.get("bank") or {}).get("sample_ratio") is not None
        return (_BANK_SETTINGS["sample_ratio" if by_share else "presence_target"],)
    return (_rates(base),)


def _rates(base: Configuration) -> tuple[str, tuple[float, ...]]:
    rate = (base.get("model") or {}).get("learning_rate")
    if rate is None:
        rate = recipe_for(base).learning_rate
    return _RATE, tuple(float(rate) * factor for factor in _RATE_FACTORS)
