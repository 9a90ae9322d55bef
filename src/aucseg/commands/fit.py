"""`aucseg fit` and `aucseg validate`: LightningCLI over task and data module, one folder for each run."""

from __future__ import annotations

import aucseg.training  # isort: skip  # noqa: F401  # before Lightning, to name the extra where that is missing

import shlex
import warnings
from argparse import ArgumentError
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from jsonargparse.typing import register_type
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    LearningRateMonitor,
    ProgressBar,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO

from aucseg.commands.changed_settings import LEARNING, changed_settings
from aucseg.commands.children import signals_as_exit
from aucseg.commands.config_arguments import entries, with_shipped_configs
from aucseg.commands.end_of_fit import show_end
from aucseg.commands.endings import status_of
from aucseg.commands.option_errors import missing_package, option_error
from aucseg.commands.plan import with_plan
from aucseg.commands.plan_options import options_of, run_folder, split_request
from aucseg.commands.progress import RunProgress
from aucseg.commands.run_config import RunConfig, is_rehearsal
from aucseg.commands.trainer_defaults import steps_between_logs, use_processes_of_launcher
from aucseg.metrics.result_files import step_of_result
from aucseg.models.pretrained import with_pretrained_weights
from aucseg.run_files import CARD_FILE, CONFIG_FILE, LAST_CHECKPOINT, RESULT_FILE
from aucseg.runtime.announce import Announcement, process_number
from aucseg.runtime.import_paths import Entries, search_current_folder
from aucseg.safe_files import (
    check_folder,
    missing_folders,
    no_empty_folders,
    read_yaml_mapping,
    remove_empty_folders,
)
from aucseg.training.best_checkpoint import BestCheckpoint
from aucseg.training.checkpoints import (
    AtomicCheckpointIO,
    RunCheckpoint,
    checkpoint_step,
    newest_checkpoint,
    refuse_damaged_run,
)
from aucseg.training.data_checks import check_data
from aucseg.training.datamodule import SegmentationDataModule
from aucseg.training.epochs import EpochCount, refuse_epoch_counters
from aucseg.training.processes import print_note
from aucseg.training.quiet import quiet_lightning
from aucseg.training.result_writer import (
    ResultWriter,
    check_writable,
    failed_start_leaves_nothing,
    prepare_run_folder,
    put_back,
)
from aucseg.training.run_end import early_stop, nothing_to_train
from aucseg.training.run_lock import IS_TAKEN, RUN_LOCK, lock_if_free, remove_lone_lock
from aucseg.training.run_loggers import run_loggers
from aucseg.training.second_stage import OFFSETS_MODEL, POSTHOC_MODEL
from aucseg.training.step_guard import StepGuard
from aucseg.training.stored_task import restore_parts
from aucseg.training.task import SegmentationTask


class AUCSegCLI(LightningCLI):
    """LightningCLI that keeps everything about a run in the folder `--out`; a failed start leaves no new folder.

    Args:
        locks: Keeps other processes out of that folder as long as it is open.
        *args: Of LightningCLI.
        **kwargs: Of LightningCLI.
    """

    def __init__(self, *args: Any, locks: ExitStack, **kwargs: Any) -> None:
        self._locks = locks
        self._is_locked = False
        try:
            super().__init__(*args, **kwargs)
        except BaseException:
            if self._is_locked:
                put_back(self._folder)
                remove_lone_lock(self._folder / RUN_LOCK)
                remove_empty_folders(self._new_folders)
            raise

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Has the parser raise what is wrong, instead of printing all options and ending the process."""
        return super().init_parser(**{**kwargs, "exit_on_error": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Reads the options.

        Raises:
            ValueError: One of them is unknown, or its value is of another type; the message is a sentence.
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
        parser.add_argument(
            "--keep_best",
            type=str | None,
            default=None,
            help="metric, such as val/tail: keeps the checkpoint with its best value beside the last, for RUN --best",
        )
        parser.add_lightning_class_args(StepGuard, "guard")
        parser.link_arguments("data.card", "model.card")

    def before_instantiate_classes(self) -> None:
        """Says before the model is built what is wrong with the folder, the data, or the checkpoint to validate."""
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        if self.subcommand == "fit" and isinstance(config.model.model, str) and config.model.init_from is None:
            options = config.model.model_options
            config.model.model_options = with_pretrained_weights(config.model.model, options)
        config.data.card = config.model.card = _card_beside(config)
        if process_number() == 0 and not is_rehearsal(config.trainer):
            self._folder = Path(config.out)
            check_folder(self._folder)
            self._new_folders = missing_folders(self._folder)
            with no_empty_folders(self._folder):
                check_writable(self._folder)
                self._is_locked = self._locks.enter_context(lock_if_free(self._folder / RUN_LOCK))
            if not self._is_locked:
                raise ValueError(f"{IS_TAKEN} {config.out}: wait for it, or give another --out")
        data = SegmentationDataModule(**config.data.as_dict())
        if self.subcommand == "validate":
            self._checkpoint = _checkpoint_to_validate(config)
            check_data(data, trains=False)
        else:
            check_data(data, validates=config.trainer.limit_val_batches != 0)

    def instantiate_classes(self) -> None:
        """Says that the model is built, where its weights take a while.

        Raises:
            ValueError: A logger or another class of the configuration needs a package that is not installed.
        """
        with Announcement("building the model and loading its weights"):
            try:
                super().instantiate_classes()
            except ValueError as error:
                if (message := missing_package(str(error))) is None:
                    raise
                raise ValueError(message) from error

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
        if isinstance(trainer.callbacks, Callback):
            trainer.callbacks = [trainer.callbacks]
        if self.subcommand == "fit":
            refuse_epoch_counters(trainer.callbacks or [])
        epochs = EpochCount(trainer)
        self.result_writer = ResultWriter(out)
        callbacks: list[Callback] = [] if is_rehearsal(trainer) else [self.result_writer]
        if trainer.enable_progress_bar is not False and not _has(trainer.callbacks, ProgressBar):
            callbacks.append(RunProgress())
        trainer.plugins = list(trainer.plugins) if isinstance(trainer.plugins, (list, tuple)) else [trainer.plugins]
        trainer.plugins = [plugin for plugin in trainer.plugins if plugin is not None]
        if not _has(trainer.plugins, CheckpointIO):
            trainer.plugins.append(AtomicCheckpointIO())
        use_processes_of_launcher(trainer)
        checkpoint = None
        if self.subcommand != "fit":
            checkpoint = self._checkpoint_of_validation(config)
        elif is_rehearsal(trainer):
            trainer.logger = False
            self.config_init.fit.guard.max_saved = 0
        else:
            checkpoint = self._checkpoint_to_resume(config, out)
            callbacks = _with_checkpoints([*callbacks, LearningRateMonitor("step")], config, out)
            step = None if checkpoint is None else checkpoint_step(checkpoint) + 1
            trainer.logger = run_loggers(trainer.logger, out, step)
        if checkpoint is not None:
            restore_parts(self.datamodule, checkpoint)
        if trainer.log_every_n_steps is None:
            trainer.log_every_n_steps = steps_between_logs(trainer.max_steps)
        trainer.default_root_dir = trainer.default_root_dir or str(out)
        if not _has(trainer.callbacks, Checkpoint):
            trainer.enable_checkpointing = False  # Lightning would add one of its own, and warn of those that are there
        trainer.callbacks = [*callbacks, *(trainer.callbacks or [])]
        made = super().instantiate_trainer(**kwargs)
        if self.subcommand == "fit" and not is_rehearsal(made):
            epochs.set_steps(made, self.datamodule)
            self._prepare(made, checkpoint, config, out)
        return made

    def _checkpoint_of_validation(self, config: Any) -> Path:
        """The checkpoint that is validated; a second stage that trains nothing has steps and images of the first."""
        config.trainer.logger = False if config.trainer.logger is None else config.trainer.logger
        config.ckpt_path = self._checkpoint
        checkpoint = Path(self._checkpoint or self.config.validate.model.model_options["checkpoint"])
        # The model is that of the checkpoint's step, though this trainer makes none.
        step = self.result_writer.entries["step"] = checkpoint_step(checkpoint)
        print_note(f"validating {checkpoint}, of step {step}")
        return checkpoint

    def _checkpoint_to_resume(self, config: Any, out: Path) -> Path | None:
        """The checkpoint that training goes on from, None for a new run."""
        if config.resume == "auto":
            checkpoint = newest_checkpoint(out)
            if checkpoint is None and not config.overwrite:
                refuse_damaged_run(out)
            if checkpoint is not None:
                self._print_differences(out / CONFIG_FILE)
                return checkpoint
            for folder in _folders_of(config):
                if (folder / LAST_CHECKPOINT).is_file():  # not of the run in --out, which has none
                    print_note(
                        f"there is no checkpoint in {out}: the run starts over, although {folder}, the folder of its "
                        f"configuration, has one; --out {shlex.quote(str(folder))} goes on with that"
                    )
            return None
        if Path(config.resume).is_dir():
            raise ValueError(
                f"--resume {config.resume} is a folder: give a checkpoint, such as "
                f"{Path(config.resume) / LAST_CHECKPOINT}, or --out {config.resume} --resume auto"
            )
        if config.resume != "never" and not Path(config.resume).is_file():
            raise ValueError(f"--resume is 'auto', 'never' or a checkpoint; there is no file {config.resume}")
        return None if config.resume == "never" else Path(config.resume)

    def _prepare(self, trainer: Trainer, checkpoint: Path | None, config: Any, out: Path) -> None:
        """Prepares the folder for a new run, or for one that goes on from a checkpoint and has something to train."""
        if checkpoint is not None:
            self._is_resumed, config.ckpt_path = True, str(checkpoint)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, RunConfig):
                    callback.waits = True
            if config.resume != "auto" and checkpoint.resolve().is_relative_to(out.resolve()):
                raise ValueError(
                    f"{checkpoint} is of the run in {out}, which a new one would replace: give another folder with "
                    "--out, or go on from the last checkpoint with --resume auto"
                )
            reason = nothing_to_train(checkpoint, trainer)
            if reason is not None and config.resume != "auto":
                raise ValueError(f"{reason}; give more steps, or evaluate it with 'aucseg validate {checkpoint}'")
            if reason is not None:
                print_note(reason)
                trainer.fit_loop.epoch_loop.max_steps = checkpoint_step(checkpoint)
        if process_number() == 0 and (checkpoint is None or config.resume != "auto"):
            # A run that was to go on and was stopped before its first checkpoint starts over.
            prepare_run_folder(out, overwrite=config.overwrite or config.resume == "auto")

    def _print_differences(self, saved: Path) -> None:
        """A resumed run with other settings is allowed, but hardly ever meant."""
        if process_number() or not saved.is_file():
            return
        assert self.subcommand is not None
        then = read_yaml_mapping(saved)
        now = yaml.safe_load(self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False))
        sections = [key for key in LEARNING if key in then]
        changed = changed_settings({key: then[key] for key in sections}, {key: now.get(key) for key in sections})
        if changed:
            print_note(f"the run goes on with other settings than before: {'; '.join(changed)}")

    def after_fit(self) -> None:
        """Evaluates the final weights, unless the last training step did, and says where the run ended."""
        step = self.trainer.global_step
        if is_rehearsal(self.trainer):
            print_note(f"fast_dev_run: {step} steps and their validation went through; nothing was written")
            return
        if (reason := early_stop(self.trainer)) is not None:
            print_note(reason)
        if self.result_writer.last_step == step:
            self._print_result()
            return
        # A run that was resumed after its end has nothing left to do.
        result = self.result_writer.folder / RESULT_FILE
        is_done = self._is_resumed and step_of_result(result) == step
        if self.trainer.strategy.broadcast(is_done):
            print_note(f"{result.parent} is finished: it has the result of step {step}")
            return
        self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        self._print_result()

    def _print_result(self) -> None:
        if self.trainer.progress_bar_callback is not None:  # which has printed it, and the table follows
            return
        metrics = self.trainer.callback_metrics
        found = [f"{name} {float(metrics[f'val/{name}']):.4f}" for name in ("miou", "tail") if f"val/{name}" in metrics]
        print_note(", ".join([f"{self.result_writer.folder}: step {self.trainer.global_step}", *found]))


def _has(parts: Iterable[object] | None, kind: type) -> bool:
    return any(isinstance(part, kind) for part in parts or ())


def _with_checkpoints(callbacks: list[Callback], config: Any, out: Path) -> list[Callback]:
    """The callbacks of a training, with those that keep its checkpoints."""
    trainer = config.trainer
    if trainer.enable_checkpointing is False:
        if config.keep_best is not None:
            raise ValueError("--keep_best keeps a checkpoint, of which trainer.enable_checkpointing makes none")
        return callbacks
    best = [] if config.keep_best is None else [BestCheckpoint(out, config.keep_best)]
    # That of the run is the first of all, see there.
    return [RunCheckpoint(out, config.checkpoint_every), *callbacks, *best]


def _checkpoint_to_validate(config: Any) -> str | None:
    """The checkpoint that is named, or the last one of the run that the configuration is of, or that is in `--out`.

    None for a model that is made of a trained one and not trained itself (`aucseg.training.second_stage`).

    Raises:
        ValueError: There is none, or two runs may be meant.
    """
    if config.ckpt_path is not None:
        return str(config.ckpt_path)
    if config.model.model in (POSTHOC_MODEL, OFFSETS_MODEL):
        return None
    folders = _folders_of(config)
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


def _folders_of(config: Any) -> list[Path]:
    """The folder of the run, and those of the configurations that it was given."""
    return [Path(config.out), *(Path(str(path)).parent for path in config.config or [])]


def _card_beside(config: Any) -> str:
    """The card, or that of a planned run which lies in its folder where the folder was renamed."""
    card = str(config.data.card)
    if Path(card).name == CARD_FILE and not Path(card).is_file():
        return next((str(path) for folder in _folders_of(config) if (path := folder / CARD_FILE).is_file()), card)
    return card


def run(command: str, arguments: list[str]) -> int:
    """Runs `fit` or `validate` with Lightning's options.

    Returns:
        Exit status: 0 done, 3 stopped by a failure that is named, 128 + n stopped by signal n with a checkpoint.
    """

    def train() -> None:
        with ExitStack() as start:
            undo = None
            if command == "fit":
                start.enter_context(signals_as_exit())
                if process_number() == 0 and (planned := _planned_folder(arguments)) is not None:
                    undo = start.enter_context(failed_start_leaves_nothing(planned))
            cli = run_lightning(command, with_plan(arguments) if command == "fit" else arguments)
            if is_rehearsal(cli.trainer):
                if undo is not None:
                    undo()
                return
        if command == "fit" and cli.trainer.is_global_zero and cli.trainer.progress_bar_callback is not None:
            show_end(cli.result_writer.folder, cli.model, cli.datamodule)

    return status_of(command, train)


def _planned_folder(arguments: list[str]) -> Path | None:
    """The folder of the run that a folder or card is planned for; None with a configuration."""
    request, rest = split_request(arguments)
    return None if request is None else run_folder(request, options_of(rest))


def run_lightning(command: str, arguments: list[str]) -> AUCSegCLI:
    """Like `run`, but returns the command line object with its trainer, model and data module."""
    register_type(Entries, list, entries)
    search_current_folder()  # for the callbacks, losses and loggers that the configuration names by class path
    with quiet_lightning(), ExitStack() as locks:
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
        # Lightning's command line still uses what the newest jsonargparse deprecates.
        deprecated = r"(?s)\s+.*(JsonargparseDeprecationWarning|was deprecated in v4)"
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=deprecated)
        # The logs of an earlier run were removed on request, see prepare_run_folder.
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        # Those of model.freeze, or what the user's own model does.
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
        return AUCSegCLI(
            SegmentationTask,
            SegmentationDataModule,
            # The help of fit_help is the short one.
            locks=locks,
            args=[command, *("--help" if a == "--help.all" else a for a in with_shipped_configs(arguments))],
            seed_everything_default=0,
            save_config_callback=RunConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "max_epochs": -1,
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 2,
                "use_distributed_sampler": False,
                "sync_batchnorm": True,
                "enable_model_summary": False,  # a table of modules that no user wrote, above everything else
                "log_every_n_steps": None,
            },
            auto_configure_optimizers=False,  # model.optimizer and model.schedule keep the rates of encoder and head
            parser_kwargs={"prog": "aucseg", "parser_mode": "yaml"},
        )
