"""Evaluation of a trained run on any split, apart from its training."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from aucseg.datasets.data_report import check_has_masks
from aucseg.run_files import existing_checkpoint
from aucseg.training.checkpoints import checkpoint_step
from aucseg.training.datamodule import SegmentationDataModule
from aucseg.training.quiet import quiet_lightning
from aucseg.training.result_writer import ResultWriter
from aucseg.training.stored_task import load_task_for, restore_parts


def run_of(path: Path) -> tuple[Path, Path]:
    """The folder of a run and the checkpoint to evaluate, given the folder or one of its checkpoints.

    Raises:
        ValueError: There is neither.
    """
    return path if path.is_dir() else path.parent.parent, existing_checkpoint(path)


def evaluate_checkpoint(
    checkpoint: Path,
    datamodule: SegmentationDataModule,
    out: Path,
    device: torch.device,
    *,
    precision: Any = None,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Validates the model of a checkpoint and writes result files as `aucseg fit` does, on one device.

    Args:
        checkpoint: Of a run; no code is imported for it, see `aucseg.training.stored_task.load_task`.
        datamodule: Its validation images are evaluated, by the groups of its card.
        out: Folder of the files.
        device: Where to.
        precision: Of the trainer, as in a run's configuration; None for float32.
        notes: More entries of `result.json`.

    Returns:
        The metrics by name; NaN for a group without a class in the images.

    Raises:
        ValueError: The data is of other classes, or has no masks.
    """
    task = load_task_for(datamodule.card, checkpoint)
    task.take_groups(datamodule.card)
    restore_parts(datamodule, checkpoint)
    if datamodule.val_shards is None:
        check_has_masks(datamodule.validation_dataset(None))
    # The model is that of the checkpoint's step, though this trainer makes none.
    writer = ResultWriter(out, entries={"step": checkpoint_step(checkpoint), **(notes or {})})
    with quiet_lightning():
        # Which device is used is the user's choice, or that of the command.
        warnings.filterwarnings("ignore", message="(GPU|MPS) available but not used")
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=[device.index] if device.index is not None else 1,
            precision=_usable(precision, device),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=sys.stderr.isatty(),
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[writer],
            default_root_dir=out,
        )
        trainer.validate(task, datamodule=datamodule, verbose=False)
    return {name.removeprefix("val/"): float(value) for name, value in trainer.callback_metrics.items()}


def _usable(precision: Any, device: torch.device) -> Any:
    """The precision of a run, unless it is one of GPUs and the evaluation is on the CPU."""
    return None if device.type == "cpu" and str(precision).startswith(("16", "transformer")) else precision
