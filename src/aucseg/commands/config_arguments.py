"""Configurations among the arguments of `aucseg fit`: those of the package by name, and lists that stay lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from aucseg.configs import find_config
from aucseg.runtime.import_paths import Entries
from aucseg.safe_files import parse_yaml, read_text


def entries(value: Any) -> Entries:
    """What the parser makes of a list in a configuration, or of its text on the command line."""
    value = parse_yaml(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise ValueError(f"expected a list, got {value!r}")
    return Entries(value)


def with_shipped_configs(arguments: list[str]) -> list[str]:
    """Replaces the value of each `--config` that names a configuration of the package by its path."""
    out: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option in ("--config", "-c") and equals:
            argument = f"{option}={_readable_config(value)}"
        elif out and out[-1] in ("--config", "-c"):
            argument = _readable_config(argument)
        out.append(argument)
    return out


def _readable_config(name: str) -> str:
    """The path of a configuration, which the parser does not name when it cannot read it."""
    path = find_config(name)
    try:
        content = yaml.compose(read_text(Path(path)))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, yaml.MappingNode):
        raise ValueError(f"{path} holds no settings: a configuration has sections such as data and model")
    keys = {key.value for key, _ in content.value}
    if {"classes", "splits"} <= keys:
        raise ValueError(f"{path} is the card of a data set, not a configuration: aucseg fit {path} --root FOLDER")
    return str(path)
