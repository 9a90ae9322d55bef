"""Checkpoints that survive a power cut: written aside, synced, renamed; checked before they are loaded."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage

from aucseg.hints import add_note
from aucseg.models.checkpoint import file_content, load_plain
from aucseg.run_files import BEST_CHECKPOINT, LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from aucseg.safe_files import replace_file
from aucseg.training.metrics_log import MetricsLog
from aucseg.training.processes import print_note


class RunInterrupted(BaseException):
    """Raised between two steps, on all processes, after a signal; the checkpoint is written.

    Like KeyboardInterrupt no `Exception`: nothing that handles errors of training should take it for one.

    Attributes:
        signal: Number of the signal.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.signal = number


def checkpoint_problem(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted: missing, cut off, or with a wrong checksum; None if it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch writes a checksum for each tensor, but does not look at it when loading.
            damaged = archive.testzip()
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place that a damaged file names and that there is not
            raise  # the disk or the permissions, not the file
        return f"it is cut off or damaged ({error})"
    except Exception as error:  # damaged bytes fail in many ways: BadZipFile, UnicodeDecodeError, struct.error, ...
        return f"it is cut off or damaged ({error})"
    return None if damaged is None else f"the checksum of {damaged} is wrong"


def newest_checkpoint(folder: Path, say: Callable[[str], object] = print_note) -> Path | None:
    """The checkpoint to go on from, or None: the last one, or the one before where the last one is damaged.

    Args:
        folder: The run's folder.
        say: Called with a sentence about each damaged checkpoint.

    Raises:
        OSError: The disk does not give one.
    """
    for path in (folder / LAST_CHECKPOINT, folder / PREVIOUS_CHECKPOINT):
        if path.exists():
            try:
                checkpoint_step(path)
                return path
            except ValueError as error:
                say(f"{error}; the file is left alone")
    return None


def refuse_damaged_run(folder: Path) -> None:
    """Refuses to start over in the folder of a run whose checkpoints are all damaged: its results would go with them.

    Raises:
        ValueError: There is a checkpoint.
    """
    damaged = [str(folder / name) for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT) if (folder / name).exists()]
    if damaged:
        best = folder / BEST_CHECKPOINT
        way_out = f"go on from the best one in another folder (--resume {best} --out DIR)" if best.is_file() else ""
        raise ValueError(
            f"no checkpoint of the run can be read ({', '.join(damaged)}): "
            f"{way_out or 'train in another folder (--out DIR)'}, or start over with --overwrite true"
        )


def checkpoint_step(path: Path) -> int:
    """Optimizer steps that a checkpoint has behind it; checks the whole file, and loads none of its tensors.

    Raises:
        ValueError: The file is not a checkpoint of a training.
    """
    problem = checkpoint_problem(path)
    if problem is not None:
        raise ValueError(f"{path} is not a readable checkpoint: {problem}")
    try:
        content = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} holds objects that could run code; a checkpoint of 'aucseg fit' has tensors and plain containers"
        ) from error
    except Exception as error:  # right checksums in an archive that torch cannot read
        raise ValueError(f"{path} is not a readable checkpoint: it is damaged ({error})") from error
    _check_training(content, path)
    try:
        return int(content["global_step"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: its step is {content['global_step']!r}") from error


def _check_training(content: Any, path: Path) -> None:
    if not isinstance(content, dict) or "global_step" not in content:
        raise ValueError(
            f"{path} holds no training, but weights at most: give a checkpoint of 'aucseg fit' "
            "(aucseg.models.load_checkpoint reads bare weights, for a new training)"
        )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints as whole files only, the one before kept; loads tensors and plain containers only."""

    def __init__(self) -> None:
        super().__init__()
        self._has_saved = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint; `last.ckpt` leaves the one before as `previous.ckpt`."""
        path = Path(path)
        data = file_content(checkpoint)
        keep = path.with_name(PREVIOUS_CHECKPOINT.name) if path.name == LAST_CHECKPOINT.name else None
        try:
            # A damaged checkpoint must not take the place of a good one; those written here are whole.
            if not self._has_saved and keep is not None and keep.exists() and checkpoint_problem(path) is not None:
                keep = None
            self._has_saved = True
            replace_file(path, data, keep)
        except OSError as error:
            size = data.nbytes / 1e6
            raise OSError(
                error.errno,
                f"{error.strerror}: the checkpoint of step {checkpoint.get('global_step')} ({size:.1f} MB) was not "
                "written; the one before is whole. Make room (or correct the permissions) and go on with "
                "'--resume auto'",
                str(path),
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads a checkpoint after checking that it is whole.

        Raises:
            ValueError: It is not there or damaged, or holds other objects than tensors and plain values.
        """
        path = Path(path)
        problem = checkpoint_problem(path)
        if problem is not None:
            raise ValueError(f"{path} is not a readable checkpoint: {problem}")
        checkpoint: dict[str, Any] = load_plain(path)
        _check_training(checkpoint, path)
        return checkpoint


_AGREEMENT_STEPS, _AGREEMENT_SECONDS = 10, 0.5
"""Optimizer steps between the moments at which processes ask each other whether one was told to stop, if a step takes
less than so many seconds; else they ask in every step."""


class RunCheckpoint(Callback):
    """Saves `checkpoints/last.ckpt` at regular steps, before each validation, at the end, and on a signal.

    Checkpoints are taken where a step begins: logs and validation of the step before are done, so that a resumed run
    repeats none of it and misses none. Those before a validation say so, and a run that goes on from one begins with
    that validation. Whatever ends a run is given a note (PEP 678) that names the checkpoint and the command that goes
    on. It must be the first callback. SIGTERM and Ctrl-C let the step (or the
    validation, with several processes) end, save, and raise `RunInterrupted`; a second one ends the process at once.

    Args:
        folder: The run's folder.
        every: Optimizer steps between checkpoints.

    Raises:
        ValueError: A number of steps below 1.
    """

    def __init__(self, folder: Path, every: int = 500) -> None:
        if every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, got {every}")
        self.folder = folder
        self.every = every
        self._signal = 0
        self._agreed = 0, 0.0  # step and time at which the processes last asked each other whether to stop
        self._next_agreement = 0
        self._last_saved = 0
        self._handlers: dict[int, Any] = {}
        self._num_log_steps: int | None = None
        self._num_metrics_rows: int | None = None
        self._is_before_validation = False
        self._has_started = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over SIGTERM and SIGINT; a run that ended in a validation begins with it."""
        self._rewind_metrics(trainer)
        # A checkpoint from before a validation is not yet that of its step.
        self._last_saved = -1 if self._is_before_validation else trainer.global_step
        self._has_started = True
        self._agreed, self._next_agreement = (trainer.global_step, time.monotonic()), trainer.global_step
        if self._is_before_validation:
            trainer.fit_loop.epoch_loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
            self._is_before_validation = False
        if threading.current_thread() is not threading.main_thread():
            return
        # Lightning's own handler of SIGTERM calls a collective wherever the process happens to be.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signal = number
        print_note("stopping after this step, with a checkpoint; press again to stop at once")

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Saves if it is time to, and stops if a process was asked to."""
        step = trainer.global_step
        if self._num_log_steps is not None:
            # What Lightning makes of this counter on resuming depends on its version and on where it was saved.
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._num_log_steps
            self._num_log_steps = None
        if batch_idx % trainer.accumulate_grad_batches:
            return
        stop = self._agree(trainer, step)
        if stop or (step > self._last_saved and (step % self.every == 0 or _validates_within_step(trainer))):
            self._save(trainer)
        if stop:
            raise RunInterrupted(stop, step)

    def _agree(self, trainer: Trainer, step: int) -> int:
        if trainer.world_size == 1:
            return self._signal
        if step < self._next_agreement:
            return 0
        then, at = self._agreed
        seconds = (time.monotonic() - at) / max(1, step - then)
        largest = torch.tensor([float(self._signal), seconds], device=trainer.strategy.root_device)
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
        told_to_stop, slowest = largest.tolist()
        # To ask makes the host wait for the device; a launcher kills what has not ended after some 30 seconds.
        between = min(_AGREEMENT_STEPS, self.every) if step > then and slowest < _AGREEMENT_SECONDS else 1
        self._agreed, self._next_agreement = (step, time.monotonic()), step + between
        return int(told_to_stop)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves before a validation; the gradients of a step that is half done are in no checkpoint, see above."""
        if not trainer.sanity_checking:
            self._rewind_metrics(trainer)  # of one after the training, too
        loop = trainer.fit_loop.epoch_loop
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not loop._should_accumulate():
            self._is_before_validation = True
            trainer.save_checkpoint(self.folder / LAST_CHECKPOINT, weights_only=False)
            self._is_before_validation = False

    def on_validation_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stops in the middle of a validation; what it had is measured again after the last checkpoint."""
        if self._signal and trainer.world_size == 1 and trainer.state.fn == "fit":
            raise RunInterrupted(self._signal, trainer.global_step)

    def _save(self, trainer: Trainer) -> None:
        self._last_saved = trainer.global_step
        trainer.save_checkpoint(self.folder / LAST_CHECKPOINT, weights_only=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the end of the run."""
        self._restore_handlers()
        if trainer.global_step != self._last_saved:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the signals back, and notes what there is to go on from."""
        self._restore_handlers()
        if trainer.sanity_checking:
            where = "this was in the trial validation before the first step"
            if not isinstance(exception, KeyboardInterrupt):
                where += ", of the largest image (trainer.num_sanity_val_steps): nothing has been trained yet"
            add_note(exception, where)
        elif self._has_started or trainer.state.fn == "validate":
            path = newest_checkpoint(self.folder, lambda _: None)
            if path is not None:
                place = "in the validation " if trainer.validating else ""
                where = f"this was {place}after step {trainer.global_step}; {path} holds step {checkpoint_step(path)}, "
                # An interruption says itself after which step it came.
                where = "" if isinstance(exception, RunInterrupted) else f"{where}and "
                folder = shlex.quote(str(self.folder))
                command = f"aucseg fit --config {folder}/config.yaml --out {folder} --resume auto"
                add_note(exception, f"{where}'{command}' goes on from there")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds how much of `metrics.csv` belongs to it, and tells Lightning that no batch is under way."""
        loop = trainer.fit_loop.epoch_loop
        checkpoint["num_log_steps"] = loop._batches_that_stepped
        if self._is_before_validation:
            # Lightning counts the step after the validation.
            checkpoint["num_log_steps"] += 1
            checkpoint["is_before_validation"] = True
        for name in ("total", "current"):
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"][name]
            progress["ready"] = progress["completed"]
        for log in metrics_logs(trainer):
            checkpoint["num_metrics_rows"] = log.sync()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes over how far the logs were."""
        if trainer.state.fn != "fit":
            return
        self._num_log_steps = checkpoint.get("num_log_steps")
        self._num_metrics_rows = checkpoint.get("num_metrics_rows")
        self._is_before_validation = checkpoint.get("is_before_validation", False)

    def _rewind_metrics(self, trainer: Trainer) -> None:
        """Drops the lines of `metrics.csv` that came after the checkpoint, when they are about to be written again.

        In a finished run they are not: the last validation may have come after the last checkpoint.
        """
        for log in metrics_logs(trainer):
            if self._num_metrics_rows is not None:
                log.rewind(self._num_metrics_rows)
        self._num_metrics_rows = None


def _validates_within_step(trainer: Trainer) -> bool:
    """Whether a validation falls between the batches whose gradients the step that now begins accumulates."""
    first, interval = trainer.fit_loop.epoch_loop.total_batch_idx + 1, trainer.val_check_batch
    inner = range(first, first + trainer.accumulate_grad_batches - 1)
    return isinstance(interval, int) and any(batch % interval == 0 for batch in inner)


def metrics_logs(trainer: Trainer) -> list[MetricsLog]:
    """The trainer's loggers that write `metrics.csv`."""
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsLog)]
