"""What users set and a plan computes with: checked at once, as the checks of the run itself come after the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


_COUNT = "a whole number of at least 1", _is_count
_NUMBER = "a number", _is_number
_NUMBER_OR_NULL = "a number or null", _or_none(_is_number)
_SIZE = "two whole numbers, such as [256, 512]", _is_size
_SIZE_OR_NULL = "two whole numbers, such as [1024, 512], or null", _or_none(_is_size)
_OPTIONS = "a mapping, such as '{name: value}', or null", _or_none(_is_mapping)
# What each setting must be, in words, and whether a value is that.
_SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "data.batch_size": _COUNT,
    "data.eval_batch_size": _COUNT,
    "data.num_workers": ("a whole number, not negative", lambda value: value == 0 or _is_count(value)),
    "data.crop_size": _SIZE,
    "data.base_size": _SIZE_OR_NULL,
    "data.eval_base_size": _SIZE_OR_NULL,
    "data.scale": (
        "two numbers, such as [0.5, 2.0]",
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)),
    ),
    "data.held_out_share": ("a share below 1, or null", _or_none(lambda value: _is_number(value) and 0 <= value < 1)),
    "data.fold": (
        "[number, how many], such as [0, 5], the number from 0, or null",
        _or_none(
            lambda value: (
                isinstance(value, list) and len(value) == 2 and _is_count(value[1]) and value[0] in range(value[1])
            )
        ),
    ),
    "data.sampler_options": _OPTIONS,
    "data.sampler_options.threshold": _NUMBER,
    "trainer.max_steps": _COUNT,
    "trainer.num_nodes": _COUNT,
    "trainer.accumulate_grad_batches": _COUNT,
    "trainer.max_epochs": ("a whole number of at least 1", lambda value: value in (None, -1) or _is_count(value)),
    "trainer.val_check_interval": (
        "a number above 0, or null",
        _or_none(lambda value: _is_number(value) and value > 0),
    ),
    "trainer.check_val_every_n_epoch": ("a whole number of at least 1, or null", _or_none(_is_count)),
    "model.model": ("a name, such as smp/fpn", lambda value: isinstance(value, str)),
    "model.model_options": _OPTIONS,
    "model.loss_options": _OPTIONS,
    "model.loss_options.auc_weight": _NUMBER,
    "model.bank": _OPTIONS,
    "model.bank.presence_target": _NUMBER_OR_NULL,
    "model.bank.max_factor": _NUMBER_OR_NULL,
    "model.learning_rate": _NUMBER,
    "model.head_rate_factor": _NUMBER,
}


def check_given(given: Mapping[str, Any]) -> None:
    """Refuses values that a plan cannot compute with.

    Args:
        given: Settings of the user's, by their names with dots.

    Raises:
        ValueError: One of them; the message says what it must be.

    Example:
        >>> check_given({"data.batch_size": 0})
        Traceback (most recent call last):
        ValueError: --data.batch_size must be a whole number of at least 1, got 0
    """
    for name, value in _with_parts(given):
        wanted, fits = _SETTINGS.get(name, ("", None))
        if fits is not None and not fits(value):
            raise ValueError(f"--{name} must be {wanted}, got {value!r}")


def _with_parts(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings, and those within mappings by their names with dots."""
    for name, value in given.items():
        yield name, value
        if isinstance(value, Mapping):
            yield from _with_parts({f"{name}.{key}": item for key, item in value.items()})
