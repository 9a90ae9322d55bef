"""The results of a study: records of runs, of trials and of what they chose, in one small JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What tells the records of the results apart.
KEYS = {"runs": ("model", "method", "seed"), "search": ("model", "method"), "trials": ("model", "method", "trial")}


def read_result(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def unique(part: str, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records in order; of those with the same keys the last."""
    by_key = {tuple(record[key] for key in KEYS[part]): record for record in records}
    return [by_key[key] for key in sorted(by_key)]


def rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """The values with six digits."""
    return {name: None if value is None else round(value, 6) for name, value in values.items()}
