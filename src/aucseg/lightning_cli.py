"""``aucseg fit`` and ``aucseg validate``: LightningCLI over task and data module, one folder for each run."""

from __future__ import annotations

import logging
import pickle
import warnings
from pathlib import Path
from typing import Any

from aucseg.datamodule import SegmentationDataModule
from aucseg.run_folder import LAST_CHECKPOINT, ResultWriter, prepare_run_folder
from aucseg.task import SegmentationTask

try:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
except ImportError as error:  # pragma: no cover - depends on the environment
    raise ImportError('aucseg fit and validate need Lightning: pip install "aucseg[train]"') from error


class AUCSegCLI(LightningCLI):
    """LightningCLI that keeps everything about a run in the folder ``--out``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--out`` and ``--overwrite``, and gives the model the card of the data."""
        parser.add_argument("--out", type=str, default="runs/default", help="folder of the run")
        parser.add_argument("--overwrite", type=bool, default=False, help="replace a run that is in the folder already")
        parser.link_arguments("data.card", "model.card")

    def _parse_ckpt_path(self) -> None:
        """The model is what the configuration says, whatever settings a checkpoint holds.

        Lightning would let the settings in the file (a stranger's file, perhaps) override the user's own, the classes
        to import included.
        """

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds loggers, checkpoints and the result file to the configured trainer."""
        assert self.subcommand is not None
        config = self.config_init[self.subcommand]
        out, trainer = Path(config.out), config.trainer
        self.result_writer = ResultWriter(out)
        callbacks: list[Callback] = [self.result_writer]
        if trainer.enable_progress_bar is not False:
            callbacks.append(TQDMProgressBar(leave=True))
        if self.subcommand == "fit":
            prepare_run_folder(out, overwrite=config.overwrite)
            callbacks += [
                ModelCheckpoint(
                    out / LAST_CHECKPOINT.parent, filename=LAST_CHECKPOINT.stem, enable_version_counter=False
                ),
                LearningRateMonitor("step"),
            ]
            if trainer.logger is None:
                trainer.logger = [TensorBoardLogger(out, name="", version=""), CSVLogger(out, name="", version="")]
        elif trainer.logger is None:
            trainer.logger = False
        trainer.default_root_dir = trainer.default_root_dir or str(out)
        trainer.callbacks = [*callbacks, *(trainer.callbacks or [])]
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Evaluates the final weights, unless the last training step did."""
        if self.result_writer.last_step == self.trainer.global_step:
            return
        self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)


def run(command: str, arguments: list[str]) -> int:
    """Runs ``fit`` or ``validate`` with Lightning's options."""
    try:
        run_lightning(command, arguments)
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except pickle.UnpicklingError as error:
        path = arguments[arguments.index("--ckpt_path") + 1] if "--ckpt_path" in arguments else "the checkpoint"
        raise ValueError(
            f"{path} holds other objects than tensors and plain values, and is not loaded because that could run code "
            f"from the file. ({str(error).splitlines()[0]})"
        ) from error
    return 0


def run_lightning(command: str, arguments: list[str]) -> AUCSegCLI:
    """Like `run`, but returns the command line object with its trainer, model and data module."""
    # What Lightning says at every start (devices found, seed, tips) is noise above the progress bar.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
        warnings.filterwarnings("ignore", message=".isinstance.treespec, LeafSpec.. is deprecated")
        # Lightning's command line still uses what the newest jsonargparse deprecates.
        deprecated = r"(?s)\s+.*(JsonargparseDeprecationWarning|was deprecated in v4)"
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=deprecated)
        # The logs of an earlier run were removed on request, see prepare_run_folder.
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        # Two loader processes suit small machines; whether more help is the user's to try.
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        return AUCSegCLI(
            SegmentationTask,
            SegmentationDataModule,
            args=[command, *arguments],
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
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
