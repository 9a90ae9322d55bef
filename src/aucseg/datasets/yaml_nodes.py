"""YAML values that know their place in the file, so that a message about a card can say `file:line`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NoReturn

import yaml

from aucseg.safe_files import read_text


class YamlValue:
    """One value of a YAML file with its line; the methods check its type and convert it."""

    def __init__(self, node: yaml.Node, source: str, what: str) -> None:
        self._node = node
        self._source = source
        self.what = what

    @classmethod
    def read(cls, path: Path) -> YamlValue:
        """Parses a file (safe tags only, nothing is constructed); `ValueError` names file and line."""
        return cls.parse(read_text(path), str(path))

    @classmethod
    def parse(cls, text: str, source: str) -> YamlValue:
        """Parses YAML text like `read`; `source` stands for the file in messages."""
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise ValueError(f"{source}:{line}: not valid YAML: {error.problem or error.context}") from error
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{source}: not valid YAML: {error}") from error
        if node is None:
            raise ValueError(f"{source}:1: the file is empty; a data set card needs at least name, classes and splits")
        return cls(node, source, "the card")

    def error(self, message: str) -> NoReturn:
        """Raises `ValueError` with the file and the line of this value in front."""
        raise ValueError(f"{self._source}:{self._node.start_mark.line + 1}: {message}")

    @property
    def is_sequence(self) -> bool:
        """Whether the value is a list."""
        return isinstance(self._node, yaml.SequenceNode)

    def mapping(
        self, required: Collection[str] = (), optional: Collection[str] | None = None
    ) -> Mapping[str, YamlValue]:
        """Returns the entries; unknown (unless `optional` is None), doubled and missing keys are errors."""
        if not isinstance(self._node, yaml.MappingNode):
            self.error(f"{self.what} must be a mapping (key: value), got {self._kind()}")
        entries: dict[str, YamlValue] = {}
        for key_node, value_node in self._node.value:
            key = YamlValue(key_node, self._source, f"a key of {self.what}")
            name = key.string()
            if name in entries:
                key.error(f"{name!r} occurs twice in {self.what}; keep one")
            if optional is not None and name not in required and name not in optional:
                hint = "; a configuration is given with --config" if name in ("data", "model", "trainer") else ""
                key.error(f"unknown key {name!r} in {self.what}; known are {', '.join([*required, *optional])}{hint}")
            entries[name] = YamlValue(value_node, self._source, f"{name!r}")
        for name in required:
            if name not in entries:
                self.error(f"{self.what} lacks the key {name!r}")
        return entries

    def sequence(self) -> list[YamlValue]:
        """Returns the entries of a list."""
        if not isinstance(self._node, yaml.SequenceNode):
            self.error(f"{self.what} must be a list, got {self._kind()}")
        return [YamlValue(node, self._source, f"an entry of {self.what}") for node in self._node.value]

    def string(self) -> str:
        """Returns a non-empty text; a bare `yes` or `12` is not text in YAML and must be quoted."""
        value = self._scalar("str", "text")
        if not value.strip():
            self.error(f"{self.what} is empty")
        # Names reach terminals, where an escape sequence would be obeyed.
        if not value.replace("\n", "").isprintable():
            self.error(f"{self.what} holds a control character: {value[:50]!r}")
        return value

    def integer(self, low: int, high: int) -> int:
        """Returns an integer in `low..high`."""
        text = self._scalar("int", "an integer")
        try:
            value = int(text.replace("_", ""), 0)
        except ValueError:
            self.error(f"{self.what} must be a plain decimal integer, got {text[:50]!r}")
        if not low <= value <= high:
            self.error(f"{self.what} must lie in {low}..{high}, got {text[:50]}")
        return value

    def number(self) -> float:
        """Returns a finite number, whole or not."""
        node = self._node
        tag = node.tag.rpartition(":")[2] if isinstance(node, yaml.ScalarNode) else ""
        text = self._scalar("float" if tag == "float" else "int", "a number")
        try:
            value = float(text.replace("_", ""))
        except ValueError:
            self.error(f"{self.what} must be a plain decimal number, got {text[:50]!r}")
        if not math.isfinite(value):
            self.error(f"{self.what} must be finite, got {text[:50]}")
        return value

    def integers(self, low: int, high: int) -> list[int]:
        """Returns a list of integers in `low..high`."""
        return [entry.integer(low, high) for entry in self.sequence()]

    def share(self) -> float:
        """Returns a number between 0 and 1, neither included."""
        value = float(self._scalar("float", "a number between 0 and 1"))
        if not 0 < value < 1:
            self.error(f"{self.what} must lie between 0 and 1, got {value}")
        return value

    def boolean(self) -> bool:
        """Returns true or false."""
        return self._scalar("bool", "true or false").lower() in ("true", "yes", "on")

    def choice(self, choices: Collection[str]) -> str:
        """Returns one of the given words."""
        value = self.string()
        if value not in choices:
            self.error(f"{self.what} must be one of {', '.join(choices)}, got {value!r}")
        return value

    def color(self) -> tuple[int, int, int]:
        """Returns a colour `[r, g, b]` with parts in 0..255."""
        parts = self.integers(0, 255)
        if len(parts) != 3:
            self.error(f"{self.what} must be three numbers [red, green, blue], got {len(parts)}")
        return parts[0], parts[1], parts[2]

    def _scalar(self, tag: str, expected: str) -> str:
        node = self._node
        if not isinstance(node, yaml.ScalarNode) or node.tag != f"tag:yaml.org,2002:{tag}":
            hint = "; put it in quotes" if tag == "str" and isinstance(node, yaml.ScalarNode) and node.value else ""
            self.error(f"{self.what} must be {expected}, got {self._kind()}{hint}")
        return str(node.value)

    def _kind(self) -> str:
        if isinstance(self._node, yaml.MappingNode):
            return "a mapping"
        if isinstance(self._node, yaml.SequenceNode):
            return "a list"
        return f"{self._node.value[:50]!r}"
