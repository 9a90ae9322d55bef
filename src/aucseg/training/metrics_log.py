"""`metrics.csv`: what was logged, a line a time, that a resumed run continues."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from aucseg.run_files import METRICS_FILE
from aucseg.safe_files import replace_file


class MetricsLog(Logger):
    """Appends to `metrics.csv`, on the first process alone.

    The columns are the sorted names of all that was logged; where a new one turns up, the whole file is written again.

    Args:
        folder: The run's folder.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> log = MetricsLog(folder)
        >>> log.log_metrics({"train/loss": 0.5}, step=0)
        >>> log.log_metrics({"val/miou": 0.25}, step=1)
        >>> log.sync()
        2
        >>> print((folder / "metrics.csv").read_text())
        step,train/loss,val/miou
        0,0.5,
        1,,0.25
        <BLANKLINE>
        >>> log.rewind(1)
        >>> (folder / "metrics.csv").read_text().splitlines()[1:]
        ['0,0.5']
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / METRICS_FILE
        self._columns: list[str] = []
        self._num_rows = 0
        self._pending: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """No subfolder."""
        return ""

    @property
    def version(self) -> str:
        """No subfolder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration is in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Adds one line."""
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self._pending.append({**row, "step": step})

    @rank_zero_only
    def save(self) -> None:
        """Writes the lines that were added."""
        if not self._pending:
            return
        new = {name for row in self._pending for name in row} - set(self._columns)
        if new or not self.path.is_file():
            self._rewrite([*self._read(), *self._pending])
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerows(self._pending)
            self._num_rows += len(self._pending)
        self._pending = []

    @rank_zero_only
    def sync(self) -> int:
        """Makes sure that all lines are on the disk; returns their number."""
        self.save()
        if self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        return self._num_rows

    @rank_zero_only
    def rewind(self, num_rows: int) -> None:
        """Keeps the first `num_rows` lines and goes on after them."""
        self._pending = []
        self._rewrite(self._read()[:num_rows])

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes what is left."""
        self.save()

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            # A line that a kill cut short lacks values; it lies beyond what any checkpoint counts.
            return [{k: v for k, v in row.items() if k and v not in ("", None)} for row in csv.DictReader(file)]

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        self._columns = sorted({name for row in rows for name in row})
        self._num_rows = len(rows)
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        replace_file(self.path, text.getvalue().encode())
