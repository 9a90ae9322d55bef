"""What a run leaves of its last validation, and whether its folder can take a run."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from aucseg.run_files import (
    BEST_CHECKPOINT,
    BEST_FOLDER,
    CONFIG_FILE,
    CONFUSION_FILE,
    CURVES_FILE,
    IMAGES_FILE,
    LAST_CHECKPOINT,
    METRICS_FILE,
    PREVIOUS_CHECKPOINT,
    RESULT_FILE,
    SKIPPED_FOLDER,
)
from aucseg.safe_files import replace_file
from aucseg.training.task import SegmentationTask


def prepare_run_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Makes the folder of a run, without what an earlier run left in it.

    Raises:
        ValueError: the folder holds a run and ``overwrite`` is False, or nothing can be written to it.
    """
    check_writable(folder)
    leftovers = [*_marks_of_a_start(folder), *_work(folder)]
    if leftovers and not overwrite:
        raise ValueError(
            f"{folder} already holds a run: go on with it (--resume auto), give another folder with --out, or "
            "--overwrite true"
        )
    for path in leftovers:
        path.unlink()


def remove_failed_start(folder: Path) -> None:
    """Takes away what a run left that failed in its first step, so that the corrected one may start there."""
    if not _work(folder):
        for path in _marks_of_a_start(folder):
            with suppress(OSError):  # what ended the run is to be said, whatever stays here
                path.unlink()


def _marks_of_a_start(folder: Path) -> list[Path]:
    return _existing(folder, CONFIG_FILE, METRICS_FILE, "hparams.yaml", "events.out.tfevents.*")


def _work(folder: Path) -> list[Path]:
    return _existing(
        folder,
        *(RESULT_FILE, CONFUSION_FILE, IMAGES_FILE, CURVES_FILE, str(LAST_CHECKPOINT), str(PREVIOUS_CHECKPOINT)),
        *(str(BEST_CHECKPOINT), f"{BEST_FOLDER}/*.json", f"{BEST_FOLDER}/{CONFIG_FILE}"),
        *(f"{LAST_CHECKPOINT.parent}/*.tmp", f"{SKIPPED_FOLDER}/step-*.pt"),
    )


def _existing(folder: Path, *patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern)]


def check_writable(folder: Path) -> None:
    """Makes the folder and writes a file in it, to say at once what a run would find out after hours.

    Raises:
        ValueError: the folder cannot be made, or nothing can be written to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"aucseg")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ValueError(
            f"nothing can be written to {folder} ({error.strerror}): give another folder with --out, or correct its "
            "permissions or the disk's space"
        ) from error


def per_image_overlap(predicted: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> dict[int, list[int]]:
    """Intersection and union of each class that occurs in the truth or the prediction of one image.

    Args:
        predicted: (H, W) integer labels.
        target: (H, W) integer labels; pixels of ``ignore_index`` do not count.
        num_classes: K.
        ignore_index: the ignore label.

    Returns:
        ``{class id: [pixels of the intersection, pixels of the union]}``.

    Example:
        >>> per_image_overlap(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), 3, 255)
        {0: [1, 2], 1: [0, 1]}
    """
    predicted, target = predicted.long(), target.long()
    valid = target != ignore_index
    predicted, target = predicted[valid], target[valid]
    intersection = torch.bincount(target[target == predicted], minlength=num_classes)
    union = torch.bincount(target, minlength=num_classes) + torch.bincount(predicted, minlength=num_classes)
    union -= intersection
    return {int(c): [int(intersection[c]), int(union[c])] for c in union.nonzero().flatten()}


def curve_points(false_rate: Tensor, true_rate: Tensor) -> dict[str, Any]:
    """A ROC curve for ``curves.json``, with no more points than a plot on a linear or logarithmic axis shows.

    Args:
        false_rate: (N,), rising from 0 to 1.
        true_rate: (N,), rising from 0 to 1.

    Returns:
        ``{"fpr": list, "tpr": list, "auroc": area under all N points}``; NaN in, NaN out.

    Example:
        >>> curve_points(torch.tensor([0.0, 0.0, 0.5, 1.0]), torch.tensor([0.0, 0.5, 1.0, 1.0]))
        {'fpr': [0.0, 0.0, 0.5, 1.0], 'tpr': [0.0, 0.5, 1.0, 1.0], 'auroc': 0.875}
    """
    false_rate, true_rate = false_rate.cpu().double(), true_rate.cpu().double()
    cells = torch.stack([(false_rate.clamp(min=1e-6).log10() * 100).round(), (true_rate * 200).round()], 1)
    first = torch.ones(len(cells), dtype=torch.bool)
    first[1:-1] = (cells[1:-1] != cells[:-2]).any(1)
    area = float(torch.trapezoid(true_rate, false_rate))
    return {
        "fpr": [round(value, 7) for value in false_rate[first].tolist()],
        "tpr": [round(value, 5) for value in true_rate[first].tolist()],
        "auroc": area,
    }


class ResultWriter(Callback):
    """Writes the last validation of a run into the run's folder, see the table in `aucseg.run_files`.

    Args:
        folder: the run's folder.
        entries: more entries of ``result.json``; those of the same name go first.

    Attributes:
        last_step: optimizer step of the last validation, or None.
        entries: see above.
    """

    def __init__(self, folder: Path, entries: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.entries = dict(entries or {})
        self.last_step: int | None = None
        self._images: dict[str, dict[int, list[int]]] = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves an empty folder where a wrong option, say, ended a training before its first step."""
        if trainer.state.fn == TrainerFn.FITTING and trainer.global_step == 0 and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # or they would do so afterwards
            remove_failed_start(self.folder)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the images of the validation before."""
        self._images = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Notes the overlap of each image."""
        assert isinstance(pl_module, SegmentationTask)
        card = pl_module.card
        for name, predicted, target in zip(batch["name"], outputs["predicted"], batch["mask"], strict=True):
            self._images[name] = per_image_overlap(predicted, target, card.num_classes, card.ignore_index)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the images of all processes and writes the files, on the first process alone."""
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, SegmentationTask)
        self.last_step = trainer.global_step
        parts: list[Any] = [self._images]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self._images)
        if not trainer.is_global_zero:
            return
        images = {name: overlaps for part in parts for name, overlaps in part.items()}
        card, metrics = pl_module.card, trainer.callback_metrics
        result = {
            "step": trainer.global_step,
            "card": card.name,
            "metrics": {key.removeprefix("val/"): float(metrics[key]) for key in metrics if key.startswith("val/")},
            "per_class_iou": dict(zip(card.class_names, pl_module.per_class_iou, strict=True)),
            "groups": pl_module.groups,
            "class_names": list(card.class_names),
            "palette": [list(color) for color in card.palette],
            **self.entries,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / CONFUSION_FILE, {"counts": pl_module.confusion})
        write_json(self.folder / IMAGES_FILE, dict(sorted(images.items())))
        if pl_module.auroc is not None:
            curves = {name: curve_points(*rates) for name, rates in pl_module.roc_curves.items()}
            write_json(self.folder / CURVES_FILE, {n: c for n, c in curves.items() if not math.isnan(c["auroc"])})
        # The result comes last: a folder that has it has the others of the same validation.
        write_json(self.folder / RESULT_FILE, result, indent=2)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Writes JSON with null for NaN (a class that a split does not hold)."""
    # Replaced as a whole: a report on a running run never meets half a file.
    replace_file(path, (json.dumps(_nan_to_none(value), indent=indent) + "\n").encode())


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
