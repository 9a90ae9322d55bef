"""What a method's name means: changes to a base configuration."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aucseg.configs import find_config
from aucseg.hints import closest
from aucseg.models.build import check_known
from aucseg.models.recipes import BATCH_SIZE, Recipe, recipe_of
from aucseg.runtime.import_paths import import_object
from aucseg.safe_files import read_yaml_mapping
from aucseg.training.second_stage import DISALIGN_MODEL, OFFSETS_MODEL, POSTHOC_MODEL

Configuration = dict[str, Any]

POSTHOC, DISALIGN, OFFSETS = "posthoc-la", "disalign", "offsets"
_SECOND_STAGES = (POSTHOC, DISALIGN, OFFSETS)
_SAMPLERS = {"rcs": "rare_class", "rfs": "repeat_factor"}
SUFFIX_OF_SAMPLER = {"random": "", **{sampler: f"+{suffix}" for suffix, sampler in _SAMPLERS.items()}}
"""What a method's name ends with, by the sampler that it takes."""
_SUFFIXES = ("bank", *_SAMPLERS, *_SECOND_STAGES)
# Options of `aucseg fit` that say where a run goes and what it keeps, which are the comparison's own affair.
_OF_ONE_RUN = ("out", "overwrite", "resume", "checkpoint_every", "keep_best", "ckpt_path", "weights_only")
# The second stage of DisAlign trains a few hundred parameters.
_DISALIGN_BUDGET = 4


@dataclass(frozen=True)
class Definition:
    """A method of a methods file: a method expression and what to change in its configuration."""

    method: str
    overrides: Configuration


@dataclass(frozen=True)
class Method:
    """One method to compare.

    Attributes:
        name: As given on the command line.
        loss: Name of a loss, see `aucseg.losses.build_loss`.
        bank: Whether the memory bank pastes.
        sampler: `"random"`, or `"rare_class"` or `"repeat_factor"`, which draw images of rare classes more often.
        second_stage: `"posthoc-la"`, `"disalign"`, `"offsets"` or None.
        first_stage: Name of the method whose trained model the second stage begins with, or None.
        overrides: Changes to the configuration, merged last.
    """

    name: str
    loss: str
    bank: bool = False
    sampler: str = "random"
    second_stage: str | None = None
    first_stage: str | None = None
    overrides: Configuration | None = None

    @property
    def folder(self) -> str:
        """Name of its folder; a colon, as import paths have it, is not for file names everywhere."""
        return self.name.replace(":", ".")

    @property
    def has_setting(self) -> bool:
        """Whether there is something to tune; offsets are fitted, and go with the settings of their first stage."""
        return self.second_stage != OFFSETS

    def configure(self, base: Configuration) -> Configuration:
        """The configuration of this method (of its first stage, if it has two), from one for any method.

        Options of the base's loss are kept where the method has the same loss, those of its bank where it has a bank,
        and those of its sampler where that is the same.
        """
        config = copy.deepcopy(base)
        model, data = config.setdefault("model", {}), config.setdefault("data", {})
        if model.get("loss", "aucseg") != self.loss:
            model["loss_options"] = None
        model["loss"] = self.loss
        model["bank"] = (model.get("bank") or {}) if self.bank else None
        if data.get("sampler") != self.sampler:
            data["sampler_options"] = None
        data["sampler"] = self.sampler
        return merged(config, self.overrides or {})


def parse_methods(names: Sequence[str], definitions: Mapping[str, Definition]) -> list[Method]:
    """Methods from their names.

    Args:
        names: Each `LOSS` or the name of a definition, then any of `+bank`, `+rcs` (rare-class sampling) or
            `+rfs` (repeat-factor sampling), and at last `+posthoc-la`, `+disalign`, `+offsets` or
            `+disalign+offsets`. LOSS is a name of `aucseg.losses.build_loss` (`package.module:Name` for the user's
            own), `aucseg` for AUCSegLoss with the bank, or `auc` for AUCSegLoss without.
        definitions: From `load_definitions`.

    Raises:
        ValueError: Unknown or repeated names, or a second stage whose first is not among the methods before it.
        ImportError: The import path of a loss leads nowhere.

    Example:
        >>> [m.bank for m in parse_methods(["ce", "la+bank", "auc", "aucseg"], {})]
        [False, True, False, True]
    """
    methods: list[Method] = []
    for name in names:
        method = parse_method(name, definitions)
        known = [earlier.name for earlier in methods]
        if name in known:
            raise ValueError(f"method {name!r} is listed twice")
        if method.first_stage is not None and method.first_stage not in known:
            raise ValueError(f"{name!r} starts from the models of {method.first_stage!r}: list that before it")
        methods.append(method)
    return methods


def parse_method(name: str, definitions: Mapping[str, Definition]) -> Method:
    """One method, see `parse_methods`."""
    from aucseg.losses.build import LOSSES

    head, *suffixes = name.split("+")
    for suffix in suffixes:
        if suffix not in _SUFFIXES:
            known = ", ".join(f"+{known}" for known in _SUFFIXES)
            raise ValueError(f"method {name!r}: there is no '+{suffix}'; known are {known}")
    if len(set(suffixes)) < len(suffixes):
        raise ValueError(f"method {name!r} names a part twice")
    second = [suffix for suffix in suffixes if suffix in _SECOND_STAGES]
    if suffixes[len(suffixes) - len(second) :] != second or (len(second) > 1 and second != [DISALIGN, OFFSETS]):
        raise ValueError(
            f"method {name!r}: +{second[0]} is a second stage: write it last, and one alone (or +disalign+offsets)"
        )
    overrides: Configuration = {}
    samplers = [_SAMPLERS[suffix] for suffix in suffixes if suffix in _SAMPLERS]
    if len(samplers) > 1:
        raise ValueError(f"method {name!r} names two samplers: +rcs or +rfs, not both")
    loss, bank, sampler = head, "bank" in suffixes, samplers[0] if samplers else "random"
    if head in definitions:
        definition = definitions[head]
        inner = parse_method(definition.method, {})
        if inner.second_stage is not None:
            raise ValueError(f"method {head!r}: define the first stage, and add +{inner.second_stage} to its name")
        loss, bank = inner.loss, inner.bank or bank
        sampler = sampler if samplers else inner.sampler
        overrides = definition.overrides
    elif head in ("auc", "aucseg"):
        loss, bank = "aucseg", bank or head == "aucseg"
    elif ":" in head:
        import_object(head)  # fails before the first run, not in it
    elif head not in LOSSES or head == DISALIGN:
        candidates = [known for known in (*LOSSES, "auc", *definitions) if known != DISALIGN]
        suffixed = ", ".join(f"+{known}" for known in _SUFFIXES)
        raise ValueError(f"unknown method {name!r}; {closest(head, candidates)} (each also with {suffixed})")
    first_stage = "+".join([head, *suffixes[:-1]]) if second else None
    return Method(name, loss, bank, sampler, second[-1] if second else None, first_stage, overrides)


def load_definitions(path: Path | None) -> dict[str, Definition]:
    """Methods of a methods file: YAML `NAME: {method: EXPRESSION, model: {...}, data: {...}, trainer: {...}}`.

    Raises:
        ValueError: The file is not of this form.
    """
    if path is None:
        return {}
    definitions = {}
    for name, entry in read_yaml_mapping(path).items():
        if not isinstance(entry, dict) or not isinstance(entry.get("method"), str):
            raise ValueError(f"{path}: {name!r} needs a 'method', such as 'method: aucseg'")
        if not re.fullmatch(r"[\w.-]+", str(name)):
            raise ValueError(f"{path}: the name {name!r} may hold letters, digits, '_', '-' and '.' only")
        overrides = {key: value for key, value in entry.items() if key != "method"}
        _check_sections(overrides, f"{path}: {name!r}", ("model", "data", "trainer"))
        definitions[str(name)] = Definition(entry["method"], overrides)
    return definitions


def load_base(path: Path) -> Configuration:
    """The base configuration, as `aucseg fit --config` takes it, and as it lies in the folder of a run.

    Raises:
        ValueError: Unknown sections, or no `trainer.max_steps`.
    """
    config = read_yaml_mapping(find_config(path))
    for name in _OF_ONE_RUN:
        config.pop(name, None)
    _check_sections(config, str(path), ("seed_everything", "trainer", "model", "data", "guard"))
    if not isinstance((config.get("trainer") or {}).get("max_steps"), int):
        raise ValueError(f"{path}: set trainer.max_steps, the budget of every run")
    if not (config.get("data") or {}).get("card"):
        raise ValueError(f"{path}: set data.card, the name of a data set card or the path of one")
    return config


def load_models(items: Sequence[str], base: Configuration) -> dict[str, Configuration]:
    """The base configuration of each model, by a short name.

    Args:
        items: Names of `aucseg.build_model`, or YAML files of changes; none for the base's own model.
        base: The base configuration, whose `model_options` belong to its own model: another begins without.

    Raises:
        ValueError: Two models of the same name, an unknown one, or a training that may end before its steps are made.
        ImportError: The extra that a model needs is missing, or an import path leads nowhere.
    """
    own = str((base.get("model") or {}).get("model", "smp/fpn"))
    models: dict[str, Configuration] = {}
    for item in items or [own]:
        if item.endswith((".yaml", ".yml")):
            name, change = Path(item).stem, read_yaml_mapping(Path(item))
            _check_sections(change, item, ("model", "data", "trainer"))
        else:
            name, change = item, {"model": {"model": item}}
        if name in models:
            raise ValueError(f"two models are called {name!r}")
        is_own = (change.get("model") or {}).get("model", own) == own
        start = base if is_own else merged(base, {"model": {"model_options": None}})
        models[name] = merged(start, change)
        check_known((models[name].get("model") or {}).get("model", own))
        _check_budget(models[name]["trainer"], name)
    return models


def budget_of(steps: int, trainer: Mapping[str, Any]) -> Configuration:
    """The trainer's settings of a run of a number of steps, with one validation, at the end.

    Example:
        >>> budget_of(100, {"accumulate_grad_batches": 4})  # Lightning counts batches there
        {'max_steps': 100, 'val_check_interval': 400}
    """
    return {"max_steps": steps, "val_check_interval": steps * int(trainer.get("accumulate_grad_batches") or 1)}


def _check_budget(trainer: Mapping[str, Any], name: str) -> None:
    """Refuses what ends a run early: one of another budget would be thrown away when it has been trained."""
    ends = [key for key, none in (("max_epochs", -1), ("max_time", None)) if trainer.get(key) not in (None, none)]
    callbacks = trainer.get("callbacks") or []
    paths = [entry.get("class_path") for entry in callbacks if isinstance(entry, Mapping)]
    ends += [str(path) for path in paths if str(path).rpartition(".")[2] == "EarlyStopping"]
    if ends:
        named = ", ".join(ends)
        raise ValueError(
            f"{name}: every run of a comparison makes trainer.max_steps steps; leave {named} out of trainer"
        )


def check_folds(models: Mapping[str, Configuration]) -> None:
    """Says before the first run what is wrong with a cross-validation.

    Args:
        models: The base configuration of each, with a fold.

    Raises:
        ValueError: The base validates on images that it holds out; the data are shards; there are fewer images or
            sequences than folds.
    """
    from aucseg.loading.held_out import validates_held_out
    from aucseg.training.datamodule import SegmentationDataModule

    for config in models.values():
        if validates_held_out(config["data"]):
            raise ValueError("--folds validates on each fold in turn: leave out data.held_out_share")
        SegmentationDataModule(**config["data"]).validation_dataset(None)


def holding_out(base: Configuration, share: float) -> Configuration:
    """A base configuration that keeps training images for offsets to be fitted on; the validation split stays as it is.

    Args:
        base: The base configuration; a share of its own is kept.
        share: Of the training images.

    Raises:
        ValueError: The base validates on images that it holds out.
    """
    from aucseg.loading.held_out import validates_held_out

    data = base.get("data") or {}
    if data.get("card") and validates_held_out(data):
        raise ValueError(
            "the base configuration validates on the training images that it holds out (held_out_share, in it or in "
            "the card), which +offsets would be fitted on: leave that out, or give the data a validation split and set "
            "data.validate_held_out to false"
        )
    changes = {"held_out_share": data.get("held_out_share") or share, "validate_held_out": False}
    return merged(base, {"data": changes})


def recipe_for(config: Configuration) -> Recipe:
    """The rates that go with the model and the batch of a configuration."""
    model, data = config.get("model") or {}, config.get("data") or {}
    batch_size = int(data.get("batch_size", BATCH_SIZE))
    return recipe_of(model.get("model", "smp/fpn"), model.get("model_options"), batch_size=batch_size)


def second_stage_config(
    method: Method, first: Configuration, checkpoint: Path, class_counts: Sequence[int] | None
) -> Configuration:
    """The configuration of a second stage, from that of the first and its checkpoint."""
    config = copy.deepcopy(first)
    options: Configuration = {"checkpoint": str(checkpoint)}
    if method.second_stage == POSTHOC:
        options["class_counts"] = list(class_counts or [])
        config["model"].update(model=POSTHOC_MODEL, model_options=options, bank=None)
        return config
    if method.second_stage == OFFSETS:
        options["data"] = copy.deepcopy(config["data"])
        config["model"].update(model=OFFSETS_MODEL, model_options=options, bank=None)
        return config
    steps = max(1, config["trainer"]["max_steps"] // _DISALIGN_BUDGET)
    config["trainer"].update(budget_of(steps, config["trainer"]))
    warmup = config["model"].get("warmup_steps")
    recipe = recipe_for(first)
    for name, value in (("learning_rate", recipe.learning_rate), ("head_rate_factor", recipe.head_rate_factor)):
        if config["model"].get(name) is None:  # else the second stage would take that of its own, unknown model
            config["model"][name] = value
    config["model"].update(
        model=DISALIGN_MODEL, model_options=options, loss=DISALIGN, loss_options=None, bank=None,
        warmup_steps=None if warmup is None else warmup // _DISALIGN_BUDGET,
    )  # fmt: skip
    config["data"].update(sampler="random", sampler_options=None)
    return config


def merged(config: Configuration, changes: Mapping[str, Any]) -> Configuration:
    """A copy of `config` with `changes`: mappings are merged, everything else replaces.

    Example:
        >>> merged({"model": {"loss": "ce", "bank": None}}, {"model": {"bank": {"capacity": 3}}})
        {'model': {'loss': 'ce', 'bank': {'capacity': 3}}}
    """
    result = dict(config)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else copy.deepcopy(value)
    return result


def at_path(path: str, value: Any) -> Configuration:
    """A change of one value.

    Example:
        >>> at_path("model.loss_options.tau", 0.5)
        {'model': {'loss_options': {'tau': 0.5}}}
    """
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def _check_sections(config: Mapping[str, Any], where: str, known: Sequence[str]) -> None:
    for key, value in config.items():
        if key not in known:
            raise ValueError(f"{where}: unknown section {key!r}; expected {', '.join(known)}")
        if key != "seed_everything" and not isinstance(value, dict):
            raise ValueError(f"{where}: section {key!r} must hold a mapping")
