"""What a run is logged to: the files in its folder always, the user's own loggers beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from aucseg.training.metrics_log import MetricsLog


def run_loggers(given: Logger | Sequence[Logger] | bool | None, folder: Path, purge_step: int | None) -> list[Logger]:
    """The loggers of a run.

    Args:
        given: Loggers of the user's own (W&B, MLflow, CSV, ...), which are added; False for no TensorBoard events.
            `metrics.csv` there is always: reports are made of it.
        folder: The run's folder.
        purge_step: First step from which a resumed run replaces earlier TensorBoard events; None for a new run.
    """
    own: list[Logger] = [MetricsLog(folder)]
    if given is not False:
        # The first one: Lightning writes config.yaml to its folder.
        own.insert(0, TensorBoardLogger(folder, name="", version="", purge_step=purge_step))
    if isinstance(given, Logger):
        given = [given]
    more = given if isinstance(given, Sequence) else []
    return [*own, *(logger for logger in more if not isinstance(logger, MetricsLog))]
