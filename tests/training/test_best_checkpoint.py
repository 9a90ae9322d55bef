"""The checkpoint that was best in a metric."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aucseg import SegmentationTask
from aucseg.training.best_checkpoint import BestCheckpoint
from tests.training.tiny_tasks import TinyNetwork


def test_a_metric_without_a_value_is_told_once_with_its_reason(
    tiny_card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = SegmentationTask(str(tiny_card), TinyNetwork(), loss="ce")
    trainer: Any = SimpleNamespace(
        callback_metrics={"val/tail": math.nan, "val/loss": math.nan},
        state=SimpleNamespace(fn="fit"),
        sanity_checking=False,
        is_global_zero=True,
        global_step=4,
    )
    for metric, reason in (
        ("val/tail", ": no class of the group 'tail' (gem) occurs in the validation images"),
        ("val/loss", ""),
    ):
        best = BestCheckpoint(tmp_path, metric)
        for _ in range(2):
            best.on_validation_end(trainer, task)
        said = capsys.readouterr().err
        assert said == (
            f"aucseg: --keep_best {metric}: the validation of step 4 gives no value, and its checkpoint is not kept"
            f"{reason}\n"
        )
    assert not list(tmp_path.iterdir())
