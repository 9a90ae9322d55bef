"""What a run leaves of its last validation, and whether its folder can take a run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from aucseg.datasets.files import SampleError
from aucseg.hints import counted, shorten
from aucseg.loading.evaluation_batches import LEFT_OUT
from aucseg.metrics.image_iou import added_overlaps, image_scores, per_image_overlap
from aucseg.metrics.result_files import RESULT_FILES, evaluation_files, result_entries, write_results
from aucseg.run_files import (
    BEST_CHECKPOINT,
    BEST_FOLDER,
    CARD_FILE,
    CONFIG_FILE,
    LAST_CHECKPOINT,
    METRICS_FILE,
    PLAN_FILE,
    PREVIOUS_CHECKPOINT,
    REPLACED_FOLDER,
    SKIPPED_FOLDER,
    VALIDATION_PICTURE,
)
from aucseg.safe_files import missing_folders, remove_empty_folders, replace_file
from aucseg.training.processes import gathered, print_note
from aucseg.training.task import SegmentationTask


def prepare_run_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Makes the folder of a run; what an earlier run left in it is set aside until the new one has made a step.

    Raises:
        ValueError: The folder holds a run and `overwrite` is False, or nothing can be written to it.
    """
    if not overwrite:
        check_is_free(folder)
    check_writable(folder)
    old, aside = _files_of_run(folder), folder / REPLACED_FOLDER
    was_killed = aside.is_dir() and not _work(folder)  # before its first step: it is not what is to be kept
    for path in old:
        if was_killed:
            path.unlink()
        else:
            _move(path, aside / path.relative_to(folder))
    _remove_empty_parents(old, folder)


def _remove_empty_parents(paths: Iterable[Path], folder: Path) -> None:
    remove_empty_folders({path.parent for path in paths} - {folder})


def remove_run(folder: Path) -> None:
    """Deletes what a run left in a folder, and what it was to replace."""
    old = _files_of_run(folder)
    for path in old:
        path.unlink()
    _remove_empty_parents(old, folder)
    shutil.rmtree(folder / REPLACED_FOLDER, ignore_errors=True)


def put_back(folder: Path) -> None:
    """Brings back the run that one without a step was to replace."""
    aside = folder / REPLACED_FOLDER
    if not aside.is_dir() or _work(folder):
        return
    with suppress(OSError):  # the error that ended the run must be reported, whatever stays here
        for path in _marks_of_a_start(folder):
            path.unlink()
        for path in [path for path in aside.rglob("*") if path.is_file()]:
            _move(path, folder / path.relative_to(aside))
        shutil.rmtree(aside)


def _move(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)


def check_is_free(folder: Path) -> None:
    """Looks for a run in a folder, which need not be there.

    Raises:
        ValueError: The folder holds a run.
    """
    if _marks_of_a_start(folder) or _work(folder):
        raise ValueError(
            f"{folder} already holds a run: go on with it (--resume auto), give another folder with --out, or "
            "--overwrite true"
        )


def remove_failed_start(folder: Path) -> None:
    """Takes away what a run left that failed in its first step, so that the corrected one may start there."""
    if not _work(folder):
        for path in _marks_of_a_start(folder):
            with suppress(OSError):  # the error that ended the run must be reported, whatever stays here
                path.unlink()


@contextmanager
def failed_start_leaves_nothing(folder: Path) -> Iterator[Callable[[], None]]:
    """Has a folder be as it was, plan and card included, where what is done here fails before a step is made.

    Returns:
        Does the same where nothing has failed.

    Example:
        >>> home = Path(tempfile.mkdtemp())
        >>> with suppress(ValueError), failed_start_leaves_nothing(home / "runs" / "a"):
        ...     prepare_run_folder(home / "runs" / "a")
        ...     _ = (home / "runs" / "a" / PLAN_FILE).write_text("")
        ...     raise ValueError
        >>> list(home.iterdir())
        []
    """
    new = missing_folders(folder)
    before = {name: _content(folder / name) for name in (CONFIG_FILE, PLAN_FILE, CARD_FILE)}

    def undo() -> None:
        if new:
            remove_failed_start(folder)
        if _content(folder / CONFIG_FILE) == before[CONFIG_FILE]:  # no other run has begun
            with suppress(OSError):  # a file in the place of the folder: that is what failed
                for name in (PLAN_FILE, CARD_FILE):
                    data = before[name]
                    if data is None:
                        (folder / name).unlink(missing_ok=True)
                    elif data != _content(folder / name):
                        replace_file(folder / name, data)
        remove_empty_folders(new)

    try:
        yield undo
    except BaseException:
        undo()
        raise


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _files_of_run(folder: Path) -> list[Path]:
    return [*_marks_of_a_start(folder), *_work(folder), *evaluation_files(folder)]


def _marks_of_a_start(folder: Path) -> list[Path]:
    return _existing(folder, CONFIG_FILE, METRICS_FILE, "hparams.yaml", "events.out.tfevents.*")


def _work(folder: Path) -> list[Path]:
    return _existing(
        folder,
        *(*RESULT_FILES, VALIDATION_PICTURE),
        *(str(LAST_CHECKPOINT), str(PREVIOUS_CHECKPOINT)),
        *(str(BEST_CHECKPOINT), f"{BEST_FOLDER}/*.json", f"{BEST_FOLDER}/{CONFIG_FILE}"),
        *(f"{LAST_CHECKPOINT.parent}/*.tmp", f"{SKIPPED_FOLDER}/step-*.pt"),
    )


def _existing(folder: Path, *patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern)]


def check_writable(folder: Path) -> None:
    """Makes the folder and writes a file in it, to say at once what a run would find out after hours.

    Raises:
        ValueError: The folder cannot be made, or nothing can be written to it.
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


class ResultWriter(Callback):
    """Writes the last validation of a run into the run's folder, see the table in `aucseg.run_files`.

    Args:
        folder: The run's folder.
        entries: More entries of `result.json`; those of the same name take precedence.

    Attributes:
        last_step: Optimizer step of the last validation, or None.
        entries: See above.
    """

    def __init__(self, folder: Path, entries: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.entries = dict(entries or {})
        self.last_step: int | None = None
        self._has_trained = False
        self._images: dict[str, dict[int, list[int]]] = {}
        self._left_out: list[str] = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the folder as it was where a wrong option, say, ended a training before its first step."""
        if trainer.state.fn == TrainerFn.FITTING and trainer.global_step == 0 and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # or they would do so afterwards
            remove_failed_start(self.folder)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Deletes the run that this one replaces, now that it has begun."""
        if not self._has_trained and trainer.is_global_zero:
            shutil.rmtree(self.folder / REPLACED_FOLDER, ignore_errors=True)
        self._has_trained = True

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the images of the validation before."""
        self._images, self._left_out = {}, []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Notes the overlap of each image, and which ones were left out."""
        assert isinstance(pl_module, SegmentationTask)
        card = pl_module.card
        for name, predicted, target in zip(batch["name"], outputs["predicted"], batch["mask"], strict=True):
            overlap = per_image_overlap(predicted, target, card.num_classes, card.ignore_index)
            self._images[name] = added_overlaps(self._images.get(name, {}), overlap)
        self._left_out += batch.get(LEFT_OUT, [])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the images of all processes and writes the files, on the first process alone.

        Raises:
            SampleError: No image could be read.
        """
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, SegmentationTask)
        self.last_step = trainer.global_step
        own = self._images, self._left_out
        parts = gathered(own) if trainer.world_size > 1 else [own]
        if parts is None:
            return
        images: dict[str, dict[int, list[int]]] = {}
        for name, overlap in (item for part, _ in parts for item in part.items()):
            images[name] = added_overlaps(images.get(name, {}), overlap)
        left_out = sorted({name for _, names in parts for name in names})
        if left_out:
            _print_left_out(left_out, images)
        validated, metrics = pl_module.validated, trainer.callback_metrics
        scores = {key.removeprefix("val/"): float(metrics[key]) for key in metrics if key.startswith("val/")}
        result = result_entries(
            pl_module.card,
            step=trainer.global_step,
            metrics=scores | image_scores(images),
            per_class_iou=validated.per_class_iou,
            groups=pl_module.groups,
        )
        if left_out:
            result["left_out"] = left_out
        write_results(
            self.folder,
            result | self.entries,
            confusion=validated.confusion,
            images=images,
            roc_curves=validated.roc_curves,
        )


def _print_left_out(left_out: Sequence[str], evaluated: Collection[str]) -> None:
    total = len({*left_out, *evaluated})
    if not evaluated:
        raise SampleError(
            f"not one of the {counted(total, 'validation image')} can be read, such as {left_out[0]}: repair the files "
            "(data.on_error 'raise' says what is wrong with them)"
        )
    print_note(
        f"left out of the validation: {len(left_out):,} of {total:,} images, not readable: {shorten(left_out, 3)}"
    )
