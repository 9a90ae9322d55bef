"""YAML files as plain values: no objects are built, and a small file cannot unfold into a large one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 10_000_000


class _PlainLoader(yaml.SafeLoader):
    """Safe tags only, and no merge keys (``<<``): nested ones double what they hold at every level."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not read", key.start_mark)
        super().flatten_mapping(node)


def read_text(path: Path) -> str:
    """The text of a file of at most 10 MB.

    Raises:
        ValueError: the file is larger, or no UTF-8 text.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path}: more than {MAX_BYTES // 10**6} MB; this is no such file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a UTF-8 text file: {error}") from error


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: there is no such file, or it is no YAML, or holds something else than a mapping.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        text = read_text(path)
        content = yaml.load(text, Loader=_PlainLoader)  # nosec B506
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping, not a {type(content).__name__}")
    return content
