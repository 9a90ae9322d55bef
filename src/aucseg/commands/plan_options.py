"""The arguments that say what to plan for, and how."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aucseg.commands.fit_help import split_words
from aucseg.planning.given import check_given
from aucseg.runtime.announce import seconds_since_start
from aucseg.runtime.durations import parse_duration
from aucseg.safe_files import parse_yaml

# Sections of a configuration: what is set in them is part of a plan.
_SECTIONS = ("trainer", "model", "data")
# Of the trainer, what names classes, and what makes a run a rehearsal.
_CLASSES = ("callbacks", "logger", "plugins", "strategy", "profiler", "fast_dev_run")


@dataclass
class Request:
    """What is to be planned.

    Attributes:
        source: Folder of images and masks, or a card.
        root: Folder of a card's data, None for what the card says.
        seconds: Time that a training may take, None for as many steps as the images ask for.
        random_weights: Whether the model is to start from random weights.
        given: Settings of the user's, by their names with dots.
        begin: When the time began to run, by `time.perf_counter`; None where it has not begun yet.
    """

    source: str
    root: str | None = None
    seconds: float | None = None
    random_weights: bool = False
    given: dict[str, Any] = field(default_factory=dict)
    begin: float | None = field(default_factory=lambda: time.perf_counter() - seconds_since_start())


def default_folder(source: str) -> str:
    """Returns where a run on a folder or card is kept.

    Example:
        >>> default_folder("data/tiles/"), default_folder("camvid")
        ('runs/tiles', 'runs/camvid')
    """
    return f"runs/{Path(source).resolve().stem if Path(source).exists() else Path(source).stem}"


def run_folder(request: Request, options: Mapping[str, str]) -> Path:
    """Returns the folder of the run that is planned for, given the options beside the request."""
    return Path(options.get("--out") or default_folder(request.source))


def split_request(arguments: Sequence[str]) -> tuple[Request | None, list[str]]:
    """Finds the folder or card among the arguments of `aucseg fit`, and what is said about the plan.

    Returns:
        The request, None where there is nothing to plan for, and the arguments that are left.

    Raises:
        ValueError: Arguments that do not go together.

    Example:
        >>> request, rest = split_request(["tiles", "--time", "20m", "--data.batch_size=4"])
        >>> request.source, request.seconds, request.given, rest
        ('tiles', 1200.0, {'data.batch_size': 4}, ['--data.batch_size=4'])
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--root")
    add_plan_arguments(parser)
    words, rest = split_words(arguments)
    try:
        own, rest = parser.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    set_plan_options = [name for name, value in vars(own).items() if value is not None]
    if not words:
        if set_plan_options:
            raise ValueError(f"--{set_plan_options[0]} goes with a folder or card to plan for: aucseg fit FOLDER")
        return None, list(arguments)
    return request_of(words[0], own, options_of(rest)), rest


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how to plan."""
    parser.add_argument(
        "--time", metavar="30m", help="time that a training may take: 90s, 30m, 2h; a number is minutes"
    )
    parser.add_argument("--weights", choices=("pretrained", "random"), help="random: no pretrained weights")


def request_of(source: str, own: argparse.Namespace, options: Mapping[str, str]) -> Request:
    """Returns what is to be planned.

    Args:
        source: Folder or card.
        own: What `add_plan_arguments` has read.
        options: The other options with their values, of which those of a section are settings.

    Raises:
        ValueError: No time, a time beside a number of steps or epochs, or a setting that no plan can be made with.

    Example:
        >>> request_of("tiles", argparse.Namespace(time="20m"), {"--trainer.max_steps": "300"})
        Traceback (most recent call last):
        ...
        ValueError: --time 20m and trainer.max_steps 300 both say how long to train: leave out one of them
    """
    given = {name.removeprefix("--"): _value(text) for name, text in options.items() if _is_planned(name)}
    check_given(given)
    for name in ("trainer.max_steps", "trainer.max_epochs"):
        if own.time is not None and given.get(name) not in (None, -1):
            raise ValueError(
                f"--time {own.time} and {name} {given[name]} both say how long to train: leave out one of them"
            )
    seconds = None if own.time is None else parse_duration(own.time)
    return Request(source, own.root, seconds, own.weights == "random", given)


def options_of(arguments: Sequence[str]) -> dict[str, str]:
    """The options among arguments, with their values; the last one counts.

    Example:
        >>> options_of(["--out", "a", "--data.fill=-1", "--data.flip", "-1", "--out=b"])
        {'--out': 'b', '--data.fill': '-1', '--data.flip': '-1'}
    """
    return {name: value for name, value, _ in _pairs(arguments)}


def without_settings(arguments: Sequence[str]) -> list[str]:
    """The arguments but those that a plan holds.

    Example:
        >>> without_settings(["--out", "a", "--model.loss=ce", "--trainer.logger", "WandbLogger", "--data.seed", "1"])
        ['--out', 'a', '--trainer.logger', 'WandbLogger']
    """
    return [word for name, _, words in _pairs(arguments) if not _is_planned(name) for word in words]


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Name, value and words of each option."""
    position = 0
    while position < len(arguments):
        name, equals, value = arguments[position].partition("=")
        length = 1 if equals else 2
        words = arguments[position : position + length]
        yield name, value if equals else "".join(words[1:]), words
        position += length


def _is_planned(option: str) -> bool:
    """Whether a plan takes up an option; what names a class of the trainer's is left to its parser."""
    section, _, name = option.removeprefix("--").partition(".")
    if option == "--seed_everything":
        return True
    if section not in _SECTIONS or not name or name.endswith(("+", ".help")):
        return False
    return section != "trainer" or ("." not in name and name not in _CLASSES)


def _value(text: str) -> Any:
    """A value as the parser of `aucseg fit` takes it: YAML, or the text as it stands."""
    try:
        return parse_yaml(text)
    except ValueError:
        return text
