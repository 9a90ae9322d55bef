"""Names of the files in a run's folder, for what writes them and for what reads them.

======================  ===========================================================================================
`config.yaml`         the whole configuration, defaults included
`plan.yaml`           the plan it began with, a reason beside each setting; only of `aucseg fit FOLDER`
`card.yaml`           the card that was proposed for the folder; only of `aucseg fit FOLDER`
`metrics.csv`         what was logged, step by step
`checkpoints/`        `last.ckpt`, the one before it as `previous.ckpt`, and `best.ckpt` with `--keep_best`
`best/`               configuration and result files of the validation that `best.ckpt` is of
`skipped/`            batches of steps that were left out, see `aucseg.training.step_guard`; only if there were any
`.replaced/`          the run that `--overwrite` replaces, until the first step of the new one is made
`result.json`         the last validation: metrics, IoU of each class, groups, class names and colours
`confusion.json`      `{"counts": K x K}`, rows are the truth
`images.json`         for each validation image the pixels of intersection, union and truth of each class in it
`validation.png`      some validation images with truth and prediction, drawn at the end of a training
`curves.json`         ROC curve of each tail class against all others; only with `model.pixel_metrics`
======================  ===========================================================================================

A run of `aucseg compare` has these beside them:

======================  ===========================================================================================
`compare.json`        metrics, cost and fingerprints; a run is finished when it is there
`started.json`        what a run that has begun is made of, and how long it has run
`input.yaml`          the configuration it was started with
`cost.json`           seconds a step, memory, device
`log.txt`             what the run printed
======================  ===========================================================================================
"""

from pathlib import Path

CONFIG_FILE = "config.yaml"
PLAN_FILE = "plan.yaml"
CARD_FILE = "card.yaml"
# Beside the card that `aucseg masks` writes.
CONTACT_SHEET_FILE = "contact_sheet.png"
METRICS_FILE = "metrics.csv"
LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")
PREVIOUS_CHECKPOINT = Path("checkpoints", "previous.ckpt")
BEST_CHECKPOINT = Path("checkpoints", "best.ckpt")
BEST_FOLDER = "best"
SKIPPED_FOLDER = "skipped"
REPLACED_FOLDER = ".replaced"
RESULT_FILE = "result.json"
CONFUSION_FILE = "confusion.json"
IMAGES_FILE = "images.json"
CURVES_FILE = "curves.json"
VALIDATION_PICTURE = "validation.png"

RECORD_FILE = "compare.json"
STARTED_FILE = "started.json"
INPUT_FILE = "input.yaml"
COST_FILE = "cost.json"
LOG_FILE = "log.txt"


def run_folder_of(path: Path) -> Path:
    """The folder of a run, given that folder, the one of its best validation, or one of the run's checkpoints.

    Example:
        >>> run_folder_of(Path("runs/a/checkpoints/last.ckpt")).as_posix()
        'runs/a'
    """
    if _is_best_folder(path):
        return path.parent
    return path if path.is_dir() else path.parent.parent


def checkpoint_in(folder: Path) -> Path:
    """The checkpoint of a run's folder: the last one, or the best one for the folder of the best validation."""
    return folder.parent / BEST_CHECKPOINT if _is_best_folder(folder) else folder / LAST_CHECKPOINT


def existing_checkpoint(path: Path) -> Path:
    """The checkpoint of a run's folder, or the file itself.

    Raises:
        ValueError: There is neither.
    """
    checkpoint = checkpoint_in(path) if path.is_dir() else path
    if not checkpoint.is_file():
        folder = path.parent if path.name == LAST_CHECKPOINT.parent.name else "a run folder of 'aucseg fit'"
        raise ValueError(f"there is no checkpoint at {checkpoint}: give {folder}, or a .ckpt file")
    return checkpoint


def best_of(run: Path) -> Path:
    """The folder of a run's best validation.

    Raises:
        ValueError: The run has kept none, or `run` is not a folder.
    """
    if not run.is_dir():
        raise ValueError(f"--best needs the folder of a run; {run} is not a folder: name the checkpoint alone")
    if not (run / BEST_CHECKPOINT).is_file():
        raise ValueError(f"{run} has no {BEST_CHECKPOINT}: train with 'aucseg fit --keep_best val/tail' to have one")
    return run / BEST_FOLDER


def _is_best_folder(path: Path) -> bool:
    return path.name == BEST_FOLDER and (path.parent / BEST_CHECKPOINT).is_file()
