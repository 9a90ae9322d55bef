"""What the folder of a comparison holds already: runs that are named later are added to it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from aucseg.compare.tables import unit_of
from aucseg.run_files import RECORD_FILE

_T = TypeVar("_T")
RUNS_FILE = "runs.csv"

Key = tuple[str, str, int]
"""Model, method, and seed or fold of a run."""


def finished_runs(out: Path, folds: int | None) -> list[Key]:
    """The finished runs of a comparison, those that are in its tables first, in their order.

    Args:
        out: Folder of the comparison.
        folds: Number of folds of a cross-validation, None for seeds.

    Raises:
        ValueError: They are over seeds where folds are asked for, or the other way round.
    """
    unit, other = unit_of(folds), unit_of(None if folds else 2)
    if any(out.glob(f"*/*/{other}*/{RECORD_FILE}")):
        raise ValueError(f"the runs in {out} are of {other}s, and not of {unit}s: give another folder with --out")
    found = {_key_of(path) for path in out.glob(f"*/*/{unit}*/{RECORD_FILE}")}
    table = out / RUNS_FILE
    rows = list(csv.reader(table.read_text(encoding="utf-8").splitlines()))[1:] if table.is_file() else []
    ordered = [(model, method, int(number)) for model, method, number, *_ in rows]
    return [key for key in [*ordered, *sorted(found - set(ordered))] if key in found and (not folds or key[2] < folds)]


def added(asked: Sequence[_T], finished: Iterable[_T]) -> list[_T]:
    """Methods or seeds that are asked for, behind those that are finished, unless all of these are asked for again.

    Example:
        >>> added(["la"], ["ce", "auc"]), added(["la", "auc", "ce"], ["ce", "auc"])
        (['ce', 'auc', 'la'], ['la', 'auc', 'ce'])
    """
    known = list(dict.fromkeys(finished))
    return list(asked) if set(known) <= set(asked) else [*known, *(item for item in asked if item not in known)]


def check_models(finished: Iterable[Key], models: Iterable[str], out: Path) -> None:
    """Refuses to drop the tables of models that are not named now: what they are may be in a file.

    Raises:
        ValueError: There are finished runs of another model.
    """
    if missing := sorted({model for model, _, _ in finished}.difference(models)):
        raise ValueError(
            f"{out} would lose its table of {', '.join(missing)}: name that with --models, beside "
            f"{', '.join(models)}, or give another folder with --out"
        )


def _key_of(record: Path) -> Key:
    model, method, unit = json.loads(record.read_text(encoding="utf-8"))["title"].rsplit(", ", 2)
    return model, method, int(unit.partition(" ")[2])
