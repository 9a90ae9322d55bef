"""The checkpoint that was best in a logged metric, beside the last one, with the result files of its validation."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from aucseg.hints import closest, shorten
from aucseg.metrics.result_files import RESULT_FILES
from aucseg.run_files import (
    BEST_CHECKPOINT,
    BEST_FOLDER,
    CONFIG_FILE,
    LAST_CHECKPOINT,
    RESULT_FILE,
)
from aucseg.safe_files import replacing
from aucseg.training.processes import print_note
from aucseg.training.task import SegmentationTask


def is_better(value: float, best: float, metric: str) -> bool:
    """Whether a value of a metric is better than the best so far: of a loss the smaller, of all else the larger.

    Args:
        value: Of the metric; NaN (a group without a class, say) is never better.
        best: The best so far, NaN for none.
        metric: Its name.

    Example:
        >>> is_better(0.5, 0.4, "val/tail"), is_better(0.5, 0.4, "val/loss"), is_better(0.0, math.nan, "val/tail")
        (True, False, True)
    """
    if math.isnan(value):
        return False
    return math.isnan(best) or (value < best if metric.endswith("loss") else value > best)


class BestCheckpoint(Callback):
    """Keeps `checkpoints/best.ckpt`, and in `best/` the configuration and the result files of its validation.

    `aucseg.training.checkpoints.RunCheckpoint` saves before each validation; where the validation is the best so far,
    its checkpoint is copied. A run that goes on from a checkpoint knows the best up to there. It must come after the
    callbacks that save and that write results.

    Args:
        folder: The run's folder.
        metric: Name of a logged value, such as `val/tail`.

    Attributes:
        value: The best value, NaN before the first validation.
        step: Its optimizer step.

    Raises:
        ValueError: At the first validation, if nothing is logged under that name.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self.folder = folder
        self.metric = metric
        self.value = math.nan
        self.step = 0
        self._has_warned = False

    @property
    def state_key(self) -> str:
        """Tells the best of one metric from that of another."""
        return f"BestCheckpoint[{self.metric}]"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copies the checkpoint if the validation is the best so far.

        A run that was stopped during its last validation is validated again after training, and judged then.
        """
        metrics = trainer.callback_metrics
        is_late = trainer.state.fn != "fit"
        is_of_training = self.metric.startswith("train/")
        if is_late and is_of_training:
            return
        # Training metrics are there after the first step only.
        if self.metric not in metrics and not (trainer.sanity_checking and is_of_training):
            raise ValueError(
                f"--keep_best {self.metric}: nothing of that name is logged; {closest(self.metric, metrics)}"
            )
        if trainer.sanity_checking:
            return
        if math.isnan(float(metrics[self.metric])) and not self._has_warned:
            self._has_warned = True
            print_note(
                f"--keep_best {self.metric}: the validation of step {trainer.global_step} gives no value, and its "
                f"checkpoint is not kept{_reason(self.metric, pl_module)}"
            )
        if not is_better(float(metrics[self.metric]), self.value, self.metric):
            return
        self.value, self.step = float(metrics[self.metric]), trainer.global_step
        if trainer.is_global_zero:
            _copy(self.folder / LAST_CHECKPOINT, self.folder / BEST_CHECKPOINT)
            # The result comes last: a run that goes on takes the best value from it.
            for name in (CONFIG_FILE, *RESULT_FILES):
                if (self.folder / name).is_file():
                    _copy(self.folder / name, self.folder / BEST_FOLDER / name)
        if is_late:
            self.on_fit_end(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says which step was the best."""
        if not math.isnan(self.value):
            print_note(
                f"best {self.metric}: {self.value:.4f}, of step {self.step}, kept in {self.folder / BEST_CHECKPOINT}"
            )

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"value": self.value, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the best of the run that goes on, if its file is here.

        The validation after the last step comes later than the last checkpoint, whose state does not know it: the
        result that was kept does.
        """
        if not (self.folder / BEST_CHECKPOINT).is_file():
            return
        self.value, self.step = state_dict["value"], state_dict["step"]
        # No metric of the training is in it.
        with suppress(OSError, ValueError, KeyError, TypeError):
            result = json.loads((self.folder / BEST_FOLDER / RESULT_FILE).read_text(encoding="utf-8"))
            self.value, self.step = float(result["metrics"][self.metric.removeprefix("val/")]), int(result["step"])


def _reason(metric: str, task: LightningModule) -> str:
    """Why a metric is NaN, where its name tells."""
    group = metric.removeprefix("val/").removesuffix("_ap")
    if not isinstance(task, SegmentationTask) or group not in (groups := task.groups or {}):
        return ""
    names = [task.card.class_names[class_id] for class_id in groups[group]]
    return f": no class of the group {group!r} ({shorten(names, 5)}) occurs in the validation images"


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
