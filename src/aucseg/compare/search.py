"""Each method's main setting, chosen on a part of the training set, with as many trials for every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aucseg.compare.methods import DISALIGN, POSTHOC, Configuration, Method, at_path, merged
from aucseg.models.recipes import BATCH_SIZE, recipe_of

# Dotted name in the configuration, and values in the order in which fewer trials take them.
_LOSS_SETTINGS: dict[str, tuple[str, tuple[float, ...]]] = {
    "aucseg": ("model.loss_options.auc_weight", (1.0, 4.0, 2.0, 0.5, 8.0, 0.25)),
    "wce-inverse": ("model.loss_options.power", (0.5, 1.0, 0.25, 0.75, 0.125, 0.375)),
    "wce-effective": ("model.loss_options.beta", (0.9999999, 0.999999, 0.99999, 0.99999999, 0.9999, 0.999)),
    "focal": ("model.loss_options.gamma", (2.0, 1.0, 0.5, 5.0, 3.0, 0.25)),
    "cb-focal": ("model.loss_options.gamma", (2.0, 1.0, 0.5, 5.0, 3.0, 0.25)),
    "ohem": ("model.loss_options.threshold", (0.7, 0.9, 0.5, 0.3, 0.8, 0.6)),
    "ldam": ("model.loss_options.max_margin", (0.5, 1.0, 0.25, 2.0, 4.0, 0.125)),
    "la": ("model.loss_options.tau", (1.0, 0.5, 0.25, 0.75, 1.5, 0.125)),
    "vs": ("model.loss_options.tau", (1.25, 0.5, 0.25, 0.75, 1.0, 0.125)),
    "blv": ("model.loss_options.sigma", (4.0, 1.0, 0.5, 2.0, 8.0, 0.25)),
    "seesaw": ("model.loss_options.p", (0.8, 0.4, 0.2, 1.2, 0.6, 1.0)),
}
_BANK_SETTINGS = {
    "presence_target": ("model.bank.presence_target", (0.15, 0.3, 0.05, 0.1, 0.2, 0.5)),
    "sample_ratio": ("model.bank.sample_ratio", (0.2, 1.0, 0.05, 0.5, 0.1, 0.025)),
}
_SAMPLING_SETTING = ("data.sampler_options.temperature", (0.1, 0.05, 0.5, 0.2, 1.0, 0.02))
_SECOND_STAGE_SETTINGS = {
    POSTHOC: ("model.model_options.tau", (1.0, 0.5, 0.25, 0.75, 0.125, 1.5)),
    DISALIGN: ("model.loss_options.rho", (0.3, 0.1, 0.5, 1.0, 0.2, 0.8)),
}
# A loss without a setting of its own is tried with other learning rates.
_RATE = "model.learning_rate"
_RATE_FACTORS = (1.0, 2.0, 0.5, 4.0, 0.25, 3.0)
DEFAULT_TRIALS = 4


@dataclass(frozen=True)
class Grid:
    """Values of one setting to try."""

    path: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Search:
    """What ``--search`` asks for.

    Attributes:
        num_trials: Trials of every method.
        values: Given values by the last part of a setting's name, such as ``{"auc_weight": (0.5, 1, 2, 4)}``.
        grids: Given grids by method.
    """

    num_trials: int
    values: Mapping[str, tuple[Any, ...]]
    grids: Mapping[str, Grid]

    def grid(self, method: Method, base: Configuration) -> Grid:
        """What to try for a method.

        Raises:
            ValueError: There is no list of so many values for the method.
        """
        if method.name in self.grids:
            return self.grids[method.name]
        path, values = _main_setting(method, base)
        if path.rpartition(".")[2] in self.values:
            return Grid(path, self.values[path.rpartition(".")[2]])
        if self.num_trials > len(values):
            raise ValueError(
                f"{self.num_trials} trials of {method.name!r}: only {len(values)} values of {path} are known; give "
                f"them as --search {method.name}:{path}=V1,V2,..."
            )
        return Grid(path, tuple(sorted(values[: self.num_trials])))


def parse_search(items: Sequence[str], methods: Sequence[Method]) -> Search | None:
    """What the ``--search`` options say; None for no search.

    Args:
        items: ``auto``, ``SETTING=V1,V2,...`` or ``METHOD:DOTTED.NAME=V1,V2,...``.
        methods: The methods of the comparison.

    Raises:
        ValueError: Another form, an unknown method, or lists of unequal length.

    Example:
        >>> parse_search(["auc_weight=0.5,1,2,4"], []).num_trials
        4
    """
    if not items:
        return None
    values: dict[str, tuple[Any, ...]] = {}
    grids: dict[str, Grid] = {}
    for item in items:
        if item == "auto":
            continue
        name, equals, text = item.partition("=")
        listed = tuple(yaml.safe_load(f"[{text}]")) if equals else ()
        method, colon, path = name.rpartition(":")
        if not name or len(set(map(str, listed))) < 2:
            raise ValueError(
                f"--search {item}: expected 'auto', SETTING=V1,V2,... or METHOD:DOTTED.NAME=V1,V2,... with at "
                "least two values"
            )
        if not colon:
            values[path] = listed
        elif method in [known.name for known in methods if known.has_setting]:
            grids[method] = Grid(path, listed)
        else:
            raise ValueError(f"--search {item}: {method!r} is none of the methods that have a setting")
    lengths = {len(v) for v in values.values()} | {len(grid.values) for grid in grids.values()}
    if len(lengths) > 1:
        raise ValueError(f"every method gets the same number of trials, but --search lists {sorted(lengths)} values")
    return Search(lengths.pop() if lengths else DEFAULT_TRIALS, values, grids)


def scores_of(grid: Grid, score: Callable[[Any], float | None]) -> dict[Any, float]:
    """The score of each value of a grid; a trial that failed has none.

    Args:
        grid: Values to try.
        score: From a value to its score; None for a trial that failed.
    """
    scores: dict[Any, float] = {}
    for value in grid.values:
        result = score(value)
        if result is not None and not math.isnan(result):
            scores[value] = result
    return scores


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
        changes = merged(changes, {"trainer": {"max_steps": steps, "val_check_interval": steps}})
    return merged(config, changes)


def trial_folder(folder: Path, grid: Grid, value: Any) -> Path:
    """Where a trial of a method lies."""
    return folder / f"{grid.path.rpartition('.')[2]}={value}"


def _main_setting(method: Method, base: Configuration) -> tuple[str, tuple[float, ...]]:
    if method.second_stage is not None:
        return _SECOND_STAGE_SETTINGS[method.second_stage]
    if method.loss in _LOSS_SETTINGS:
        return _LOSS_SETTINGS[method.loss]
    if method.rare_class_sampling:
        return _SAMPLING_SETTING
    model = base.get("model") or {}
    if method.bank and method.loss == "ce":  # of any other loss the same is tuned with the bank as without it
        # With a presence target the sample ratio has no effect.
        has_target = (model.get("bank") or {}).get("presence_target") is not None
        return _BANK_SETTINGS["presence_target" if has_target else "sample_ratio"]
    rate = model.get("learning_rate")
    if rate is None:
        batch_size = int((base.get("data") or {}).get("batch_size", BATCH_SIZE))
        rate = recipe_of(model.get("model", "smp/fpn"), model.get("model_options"), batch_size=batch_size).learning_rate
    return _RATE, tuple(float(rate) * factor for factor in _RATE_FACTORS)
