"""``aucseg fit`` and ``aucseg validate``: LightningCLI over task and data module, one folder for each run."""

from __future__ import annotations

import aucseg.training  # isort: skip  # noqa: F401  # before Lightning, to name the extra where that is missing

import json
import logging
import os
import warnings
from argparse import ArgumentError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO

from aucseg.announce import Announcement, process_number
from aucseg.commands.end_of_fit import show_end
from aucseg.commands.endings import status_of
from aucseg.commands.option_errors import option_error
from aucseg.commands.plan import with_plan
from aucseg.commands.progress import RunProgress
from aucseg.configs import find_config
from aucseg.run_files import CONFIG_FILE, LAST_CHECKPOINT, RESULT_FILE
from aucseg.safe_files import missing_folders, read_text, remove_empty_folders
from aucseg.training.checkpoints import (
    AtomicCheckpointIO,
    RunCheckpoint,
    checkpoint_step,
    newest_checkpoint,
)
from aucseg.training.data_checks import check_data
from aucseg.training.datamodule import SegmentationDataModule
from aucseg.training.metrics_log import MetricsLog
from aucseg.training.processes import say_once
from aucseg.training.result_writer import ResultWriter, check_writable, prepare_run_folder
from aucseg.training.step_guard import StepGuard
from aucseg.training.task import SegmentationTask

if TYPE_CHECKING:
    from jsonargparse import Namespace

# What decides about the course of a training.
_LEARNING = ("seed_everything", "model", "data", "trainer")
_HARMLESS = ("data.num_workers", "data.cache", "data.root", "data.eval_batch_size")
# Models that bring weights that were trained already.
_TRAINED_MODELS = "aucseg.compare.second_stage:"
_LEARNING_TRAINER = ("max_steps", "accumulate_grad_batches", "precision", "gradient_clip_val")


class RunConfig(SaveConfigCallback):
    """Keeps a run's configuration without what concerns one start of it alone, so that it can be used again."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **options: Any) -> None:
        config = config.clone()
        config.resume, config.overwrite = "never", False
        super().__init__(parser, config, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves the configuration of a run as it was trained, where it is validated into its own folder."""
        if stage != "validate" or not Path(trainer.default_root_dir, LAST_CHECKPOINT).is_file():
            super().setup(trainer, pl_module, stage)


class AUCSegCLI(LightningCLI):
    """LightningCLI that keeps everything about a run in the folder ``--out``; a failed start leaves no new folder."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._new_folders: list[Path] = []
        try:
            super().__init__(*args, **options)
        except BaseException:
            remove_empty_folders(self._new_folders)
            raise

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Has the parser raise what is wrong, instead of printing all options and ending the process."""
        return super().init_parser(**{**kwargs, "exit_on_error": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Reads the options.

        Raises:
            ValueError: one of them is unknown, or its value is of another type; the message is a sentence.
        """
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            options = self._subcommand_parsers[args[0]]._option_string_actions
            known = [name.lstrip("-") for name in options if name.startswith("--")]
            raise ValueError(option_error(str(error), known)) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of the run's folder and of the guard, and gives the model the card of the data."""
        parser.add_argument("--out", type=str, default="runs/default", help="folder of the run")
        parser.add_argument("--overwrite", type=bool, default=False, help="replace a run that is in the folder already")
        parser.add_argument(
            "--resume",
            type=str,
            default="never",
            help="auto: go on with the run in --out, or start it; never: start it; a path: go on from this checkpoint",
        )
        parser.add_argument("--checkpoint_every", type=int, default=500, help="optimizer steps between checkpoints")
        parser.add_lightning_class_args(StepGuard, "guard")
        parser.link_arguments("data.card", "model.card")

    def before_instantiate_classes(self) -> None:
        """Says before the model is built what is wrong with the folder, the data, or the checkpoint to validate."""
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        if process_number() == 0:
            self._new_folders = missing_folders(Path(config.out))
            check_writable(Path(config.out))
        data = SegmentationDataModule(**config.data.as_dict())
        if self.subcommand == "validate":
            self._checkpoint = _checkpoint_to_validate(config)
            check_data(data, trains=False)
        else:
            check_data(data, validates=config.trainer.limit_val_batches != 0)

    def instantiate_classes(self) -> None:
        """Says that the model is built, where its weights take a while."""
        with Announcement("building the model and loading its weights"):
            super().instantiate_classes()

    def _parse_ckpt_path(self) -> None:
        """The model is what the configuration says, whatever settings a checkpoint holds.

        Lightning would let the settings in the file (a stranger's file, perhaps) override the user's own, the classes
        to import included.
        """

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds loggers, checkpoints and the result file to the configured trainer."""
        assert self.subcommand is not None
        self._is_resumed = False
        config = self.config_init[self.subcommand]
        out, trainer = Path(config.out), config.trainer
        self.result_writer = ResultWriter(out)
        callbacks: list[Callback] = [self.result_writer]
        if trainer.enable_progress_bar is not False and not any(
            isinstance(callback, ProgressBar) for callback in trainer.callbacks or []
        ):
            callbacks.append(RunProgress())
        trainer.plugins = list(trainer.plugins) if isinstance(trainer.plugins, (list, tuple)) else [trainer.plugins]
        trainer.plugins = [plugin for plugin in trainer.plugins if plugin is not None]
        if not any(isinstance(plugin, CheckpointIO) for plugin in trainer.plugins):
            trainer.plugins.append(AtomicCheckpointIO())
        _use_processes_of_launcher(trainer)
        if self.subcommand == "fit":
            checkpoint = self._checkpoint_to_resume(config, out)
            if checkpoint is not None:
                self._is_resumed, config.ckpt_path = True, str(checkpoint)
            callbacks.append(LearningRateMonitor("step"))
            if trainer.enable_checkpointing is not False:
                # The first of all, see there.
                callbacks.insert(0, RunCheckpoint(out, config.checkpoint_every))
                if not any(isinstance(callback, Checkpoint) for callback in trainer.callbacks or []):
                    trainer.enable_checkpointing = False  # Lightning would add one of its own
            if trainer.logger is None:
                step = None if checkpoint is None else checkpoint_step(checkpoint) + 1
                trainer.logger = [TensorBoardLogger(out, name="", version="", purge_step=step), MetricsLog(out)]
        else:
            trainer.logger = False if trainer.logger is None else trainer.logger
            config.ckpt_path = self._checkpoint
            if self._checkpoint is not None:
                # The model is that of the checkpoint's step, though this trainer makes none.
                step = self.result_writer.entries["step"] = checkpoint_step(Path(self._checkpoint))
                say_once(f"validating {self._checkpoint}, of step {step}")
        if trainer.log_every_n_steps is None:
            trainer.log_every_n_steps = steps_between_logs(trainer.max_steps)
        trainer.default_root_dir = trainer.default_root_dir or str(out)
        trainer.callbacks = [*callbacks, *(trainer.callbacks or [])]
        return super().instantiate_trainer(**kwargs)

    def _checkpoint_to_resume(self, config: Any, out: Path) -> Path | None:
        """The checkpoint that training goes on from, None for a new run; prepares the folder."""
        is_first = process_number() == 0
        if config.resume == "auto":
            checkpoint = newest_checkpoint(out)
            if checkpoint is not None:
                self._say_what_differs(out / CONFIG_FILE)
                return checkpoint
            if is_first:  # a run that was stopped before its first checkpoint begins anew
                prepare_run_folder(out, overwrite=True)
            return None
        if config.resume != "never" and not Path(config.resume).is_file():
            raise ValueError(f"--resume is 'auto', 'never' or a checkpoint; there is no file {config.resume}")
        if is_first:
            prepare_run_folder(out, overwrite=config.overwrite)
        return None if config.resume == "never" else Path(config.resume)

    def _say_what_differs(self, saved: Path) -> None:
        """A resumed run with other settings is allowed, but hardly ever meant."""
        if process_number() or not saved.is_file():
            return
        assert self.subcommand is not None
        then = yaml.safe_load(saved.read_text(encoding="utf-8"))
        now = yaml.safe_load(self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False))
        then, now = ({key: config.get(key) for key in _LEARNING} for config in (then, now))
        changed = changed_settings(then, now)
        if changed:
            say_once(f"the run goes on with other settings than before: {'; '.join(changed)}")

    def after_fit(self) -> None:
        """Evaluates the final weights, unless the last training step did, and says where the run ended."""
        step = self.trainer.global_step
        if self.result_writer.last_step == step:
            self._say_result()
            return
        # A run that was resumed after its end has nothing left to do.
        result = self.result_writer.folder / RESULT_FILE
        is_done = (
            self._is_resumed and result.is_file() and json.loads(result.read_text(encoding="utf-8"))["step"] == step
        )
        if self.trainer.strategy.broadcast(is_done):
            say_once(f"{result.parent} is finished: it has the result of step {step}")
            return
        self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        self._say_result()

    def _say_result(self) -> None:
        metrics = self.trainer.callback_metrics
        found = [f"{name} {float(metrics[f'val/{name}']):.4f}" for name in ("miou", "tail") if f"val/{name}" in metrics]
        say_once(", ".join([f"{self.result_writer.folder}: step {self.trainer.global_step}", *found]))


def _checkpoint_to_validate(config: Any) -> str | None:
    """The checkpoint that is named, or the last one of the run that the configuration is of, or that is in ``--out``.

    None for a model that is made of a trained one (`aucseg.compare.second_stage`).

    Raises:
        ValueError: there is none, or two runs may be meant.
    """
    if config.ckpt_path is not None:
        return str(config.ckpt_path)
    if str(config.model.model).startswith(_TRAINED_MODELS):
        return None
    folders = [Path(config.out), *(Path(str(path)).parent for path in config.config or [])]
    found = {path.resolve(): path for folder in folders if (path := folder / LAST_CHECKPOINT).is_file()}
    if len(found) == 1:
        return str(next(iter(found.values())))
    if found:
        raise ValueError(f"{' and '.join(map(str, found.values()))} may both be meant: say which with --ckpt_path")
    raise ValueError(
        "without a checkpoint random weights would be validated: give the folder of a run (aucseg validate RUN), the "
        "config.yaml in it (--config RUN/config.yaml), or --ckpt_path FILE; there is no "
        f"{LAST_CHECKPOINT} in {', '.join(dict.fromkeys(map(str, folders)))}"
    )


def steps_between_logs(max_steps: int) -> int:
    """Ten, or more where a long run would log more than 10,000 times: so the logs of a run stay below about 6 MB."""
    return max(10, -(-max_steps // 10_000))


def changed_settings(then: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two configurations, leaving out how a trainer runs and keeping what it computes.

    Example:
        >>> changed_settings({"model": {"loss": "ce", "bank": None}}, {"model": {"loss": "aucseg", "bank": None}})
        ["model.loss ('ce' then, 'aucseg' now)"]
    """
    if name == "trainer" and isinstance(then, dict) and isinstance(now, dict):
        then, now = ({key: config.get(key) for key in _LEARNING_TRAINER} for config in (then, now))
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [*then, *(key for key in now if key not in then)]
        return [
            text
            for key in keys
            for text in changed_settings(then.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if then == now or name in _HARMLESS else [f"{name} ({then!r} then, {now!r} now)"]


def _use_processes_of_launcher(trainer: Any) -> None:
    """Takes the numbers of processes from torchrun, and synchronizes batch normalization where torch can."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if trainer.devices == "auto":
            trainer.devices, trainer.num_nodes = local, world // local
        if trainer.strategy == "auto" and world > 1:
            trainer.strategy = "ddp"
    # torch has no synchronized batch normalization on the CPU.
    if trainer.accelerator == "cpu" or not torch.cuda.is_available():
        trainer.sync_batchnorm = False


def run(command: str, arguments: list[str]) -> int:
    """Runs ``fit`` or ``validate`` with Lightning's options.

    Returns:
        Exit status: 0 done, 3 stopped by a failure that is named, 128 + n stopped by signal n with a checkpoint.
    """

    def train() -> None:
        cli = run_lightning(command, with_plan(arguments) if command == "fit" else arguments)
        if command == "fit" and cli.trainer.is_global_zero and cli.trainer.progress_bar_callback is not None:
            show_end(cli.result_writer.folder, cli.model, cli.datamodule)

    return status_of(command, train)


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
            # The help of fit_help is the short one.
            args=[command, *("--help" if a == "--help.all" else a for a in _with_shipped_configs(arguments))],
            seed_everything_default=0,
            save_config_callback=RunConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "max_epochs": -1,
                "check_val_every_n_epoch": None,
                "val_check_interval": 1000,
                "num_sanity_val_steps": 2,
                "use_distributed_sampler": False,
                "sync_batchnorm": True,
                "log_every_n_steps": None,
            },
            parser_kwargs={"prog": "aucseg", "parser_mode": "yaml"},
        )


def _with_shipped_configs(arguments: list[str]) -> list[str]:
    """Replaces the value of each ``--config`` that names a configuration of the package by its path."""
    out: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option in ("--config", "-c") and equals:
            argument = f"{option}={_readable_config(value)}"
        elif out and out[-1] in ("--config", "-c"):
            argument = _readable_config(argument)
        out.append(argument)
    return out


def _readable_config(name: str) -> str:
    """The path of a configuration, which the parser does not name when it cannot read it."""
    path = find_config(name)
    try:
        yaml.compose(read_text(Path(path)))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    return str(path)
