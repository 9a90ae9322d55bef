"""``aucseg fit`` and ``aucseg validate``: LightningCLI over the task and the data module, with one folder for each run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from aucseg.datamodule import SegmentationDataModule
from aucseg.task import SegmentationTask

try:
    from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
except ImportError as error:  # pragma: no cover - depends on the environment
    raise ImportError('aucseg fit and validate need Lightning: pip install "aucseg[train]"') from error

CONFIG_FILE = "config.yaml"
RESULT_FILE = "result.json"
METRICS_FILE = "metrics.csv"
LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")


class ResultWriter(Callback):
    """Writes the last validation of a run to ``result.json``: overall and group mean IoU, and the IoU of each class."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file, on the first process alone."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, SegmentationTask)
        metrics = {name.removeprefix("val/"): float(value) for name, value in trainer.callback_metrics.items()
                   if name.startswith("val/")}
        result = {
            "step": trainer.global_step,
            "metrics": metrics,
            "per_class_iou": dict(zip(pl_module.card.class_names, pl_module.per_class_iou, strict=True)),
            "groups": pl_module.card.groups,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        # NaN (a class that the split does not hold) is not JSON: written as null.
        text = json.dumps(_nan_to_none(result), indent=2)
        (self.folder / RESULT_FILE).write_text(text + "\n", encoding="utf-8")


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    return None if isinstance(value, float) and value != value else value


class _SaveConfig(SaveConfigCallback):
    """Saves the whole configuration, defaults included, into the run's folder."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            folder = Path(self.config.out)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(
                self.config, folder / CONFIG_FILE, skip_none=False, overwrite=True, multifile=False
            )


class AUCSegCLI(LightningCLI):
    """LightningCLI that keeps everything about a run in the folder ``--out``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--out`` and gives the model the card of the data."""
        parser.add_argument("--out", type=str, default="runs/default", help="folder of the run")
        parser.link_arguments("data.card", "model.card")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds loggers, checkpoints and the result file to the configured trainer."""
        config = self.config[str(self.subcommand)]
        out = Path(config.out)
        trainer_config = config.trainer
        if trainer_config.default_root_dir is None:
            trainer_config.default_root_dir = str(out)
        if trainer_config.logger is None or trainer_config.logger is True:
            kwargs["logger"] = [
                CSVLogger(out, name="", version=""),
                TensorBoardLogger(out, name="", version=""),
            ] if self.subcommand == "fit" else False
        callbacks: list[Callback] = [ResultWriter(out), TQDMProgressBar(leave=True)]
        if self.subcommand == "fit":
            callbacks += [
                ModelCheckpoint(out / LAST_CHECKPOINT.parent, filename="last", enable_version_counter=False),
                LearningRateMonitor("step"),
            ]
        self.config_init[str(self.subcommand)]["trainer"]["callbacks"] = [
            *callbacks, *(self.config_init[str(self.subcommand)]["trainer"]["callbacks"] or [])
        ]
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Evaluates the final weights, unless the last training step did."""
        writer = next(callback for callback in self.trainer.callbacks if isinstance(callback, ResultWriter))
        path = writer.folder / RESULT_FILE
        if path.exists() and json.loads(path.read_text())["step"] == self.trainer.global_step:
            return
        self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)


def run(command: str, arguments: list[str]) -> int:
    """Runs ``fit`` or ``validate`` with Lightning's options."""
    run_lightning(command, arguments)
    return 0


def run_lightning(command: str, arguments: list[str]) -> AUCSegCLI:
    """Like `run`, but returns the command line object with its trainer, model and data module."""
    return AUCSegCLI(
        SegmentationTask,
        SegmentationDataModule,
        args=[command, *arguments],
        seed_everything_default=0,
        save_config_callback=_SaveConfig,
        trainer_defaults={
            "max_epochs": -1,
            "check_val_every_n_epoch": None,
            "val_check_interval": 1000,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "log_every_n_steps": 10,
        },
        parser_kwargs={"prog": "aucseg", "parser_mode": "yaml"},
    )
