"""A plan: the settings of a run, each with its reason, as lines for a terminal and as a commented configuration."""

from __future__ import annotations

import copy
import math
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from aucseg.statistics.advice import BankAdvice

_SECTIONS = ("seed_everything", "trainer", "model", "data")
_WIDTH = 118
# Entries of a mapping that are written in one line.
_MAX_IN_LINE = 2


@dataclass(frozen=True)
class Choice:
    """One line of a plan.

    Attributes:
        topic: A word: what is chosen.
        text: What was chosen.
        reason: Why.
        settings: The names of the settings that it decides, with dots.
    """

    topic: str
    text: str
    reason: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a run is to be.

    Attributes:
        title: The data and the machine, in a line.
        settings: The value of each setting, by its name with dots, as `aucseg fit` takes it.
        choices: What was decided, and why.
        given: The names of the settings that the user has set.
        seconds: How long training and validation will take, None where the speed was not measured.
        bank_advice: What the counts say of a bank.
        bank_to_try: `model.bank` to try, whatever the plan says; empty where there is nothing to paste.
    """

    title: str
    settings: Mapping[str, Any]
    choices: tuple[Choice, ...]
    given: frozenset[str]
    seconds: float | None
    bank_advice: BankAdvice
    bank_to_try: Mapping[str, Any]

    def with_bank_to_try(self) -> Plan:
        """The same plan with a bank, for those methods of a comparison that have one, where there is one to try."""
        if self.settings["model.bank"] is not None or not self.bank_to_try:
            return self
        text = f"for the methods with one: {_flow(dict(self.bank_to_try))}"
        choices = tuple(
            Choice(choice.topic, text, self.bank_advice.summary, choice.settings) if choice.topic == "bank" else choice
            for choice in self.choices
        )
        return replace(self, settings={**self.settings, "model.bank": dict(self.bank_to_try)}, choices=choices)

    @property
    def configuration(self) -> dict[str, Any]:
        """The settings as a nested mapping, as a configuration of `aucseg fit` has them."""
        return nested(self.settings)

    def describe(self) -> str:
        """Returns the plan for a terminal: a line each, with the reason, and what was set by the user marked."""
        width = max(len(choice.topic) for choice in self.choices) + 2
        lines = [self.title]
        for choice in self.choices:
            indent = " " * (width + 2)
            start = f"  {choice.topic:<{width}}"
            lines += textwrap.wrap(self._line(choice), _WIDTH, initial_indent=start, subsequent_indent=indent)
        decided = {name for choice in self.choices for name in choice.settings}
        others = sorted(name for name in self.given if not _is_in(name, decided))
        if others:
            lines.append(f"  {'other':<{width}}set by you: {', '.join(others)}")
        return "\n".join(lines)

    def to_yaml(self) -> str:
        """Returns the plan as a configuration, the reason beside each setting."""
        configuration = self.configuration
        lines = [f"# {line}" for line in textwrap.wrap(self.title, _WIDTH)]
        for section in (*_SECTIONS, *(key for key in configuration if key not in _SECTIONS)):
            if section not in configuration:
                continue
            value = configuration[section]
            if not isinstance(value, dict):
                lines += ["", _dumped({section: value})]
                continue
            lines += ["", f"{section}:"]
            keys = [
                dict.fromkeys(_key(name) for name in choice.settings if name.startswith(f"{section}."))
                for choice in self.choices
            ]
            # What no rule has decided, such as the names of the data, comes first.
            if others := {key: item for key, item in value.items() if not any(key in mine for mine in keys)}:
                lines.append(textwrap.indent(_dumped(others), "  "))
            for choice, own in zip(self.choices, keys, strict=True):
                if mine := {key: value[key] for key in own if key in value}:
                    comment = f"{choice.topic}: {self._line(choice)}"
                    lines += textwrap.wrap(comment, _WIDTH, initial_indent="  # ", subsequent_indent="  # ")
                    lines.append(textwrap.indent(_dumped(mine), "  "))
        return "\n".join(lines).lstrip("\n") + "\n"

    def _line(self, choice: Choice) -> str:
        mine = [name for name in sorted(self.given) if _is_in(name, choice.settings)]
        mark = f" [set by you: {', '.join(mine)}]" if mine else ""
        return f"{choice.text}{mark}" + (f": {choice.reason}" if choice.reason else "")


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with dots in their names as a nested mapping.

    Example:
        >>> nested({"data.card": "camvid", "data.batch_size": 8, "seed_everything": 0})
        {'data': {'card': 'camvid', 'batch_size': 8}, 'seed_everything': 0}
    """
    result: dict[str, Any] = {}
    for name, value in settings.items():
        *parents, last = name.split(".")
        place = result
        for parent in parents:
            inner = place.setdefault(parent, {})
            if not isinstance(inner, dict):  # a setting below one that is null
                inner = place[parent] = {}
            place = inner
        place[last] = copy.deepcopy(value)
    return result


class Draft:
    """Settings in the making: what the user has given stands, whatever a rule would choose.

    Args:
        given: The user's settings, by their names with dots.

    Example:
        >>> draft = Draft({"data.batch_size": 2})
        >>> draft.set("data.batch_size", 8), draft.set("data.flip", 0.5), draft.settings
        (2, 0.5, {'data.batch_size': 2, 'data.flip': 0.5})
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = dict(given)
        self.settings: dict[str, Any] = {}
        self.choices: list[Choice] = []

    def set(self, name: str, value: Any) -> Any:
        """Sets one, and returns what it is in the end; what the user gave below it is merged into a mapping."""
        if name in self.given:
            value = self.given[name]
        below = {key.removeprefix(f"{name}."): given for key, given in self.given.items() if key.startswith(f"{name}.")}
        if below:
            value = {**(value or {}), **nested(below)}
        self.settings[name] = value
        return value

    def decide(self, topic: str, text: str, reason: str, names: Iterable[str]) -> None:
        """Adds a line about settings."""
        self.choices.append(Choice(topic, text, reason, tuple(names)))

    def finish(self, title: str, seconds: float | None, advice: BankAdvice, bank: Mapping[str, Any]) -> Plan:
        """Returns the plan, with what the user has given beyond the rules.

        Args:
            title: The data and the machine.
            seconds: How long it takes, or None.
            advice: What the counts say of a bank.
            bank: The bank to try, as a configuration has it.
        """
        for name, value in self.given.items():
            if not _is_in(name, self.settings):
                self.settings[name] = value
        return Plan(title, self.settings, tuple(self.choices), frozenset(self.given), seconds, advice, bank)


def _is_in(name: str, settings: Iterable[str]) -> bool:
    """Whether a setting is one of these, or below one."""
    return any(name == other or name.startswith(f"{other}.") for other in settings)


def _key(name: str) -> str:
    return name.split(".")[1]


def _dumped(value: Mapping[str, Any]) -> str:
    """Settings in YAML, lists and small mappings in one line."""
    return "\n".join(
        f"{key}:\n{textwrap.indent(_dumped(item), '  ')}"
        if isinstance(item, dict) and len(item) > _MAX_IN_LINE
        else f"{key}: {_flow(item)}"
        for key, item in value.items()
    )


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("...\n").rstrip("\n")
