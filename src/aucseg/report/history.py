"""What a run has logged, step by step."""

from __future__ import annotations

import csv
import math
from pathlib import Path


def read_history(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Reads the finite values of `metrics.csv`, also while a run writes it.

    Args:
        path: Of the file; one that is not there has none.

    Returns:
        For each column (step, value), with rising steps.
    """
    if not path.is_file():
        return {}
    columns: dict[str, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                step = int(row["step"])
            except (KeyError, TypeError, ValueError):
                continue  # the last line of a running run may be cut short
            for name, text in row.items():
                if name in (None, "step", "epoch") or not isinstance(text, str) or not text:
                    continue
                try:
                    value = float(text)
                except ValueError:
                    continue
                if math.isfinite(value):
                    # A resumed run logs some steps again: the later value counts.
                    columns.setdefault(name, {})[step] = value
    return {name: sorted(values.items()) for name, values in columns.items()}
