"""The files that an evaluation leaves in a folder, of a run's last validation or of other predictions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from aucseg.run_files import CONFUSION_FILE, CURVES_FILE, IMAGES_FILE, RESULT_FILE, run_folder_of
from aucseg.safe_files import write_json

# The result comes last: a folder that has it has the others of the same evaluation.
RESULT_FILES = (CONFUSION_FILE, IMAGES_FILE, CURVES_FILE, RESULT_FILE)


def curve_points(false_rate: Tensor, true_rate: Tensor) -> dict[str, Any]:
    """A ROC curve for `curves.json`, with no more points than a plot on a linear or logarithmic axis shows.

    Args:
        false_rate: (N,), rising from 0 to 1.
        true_rate: (N,), rising from 0 to 1.

    Returns:
        `{"fpr": list, "tpr": list, "auroc": area under all N points}`; NaN in, NaN out.

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


def step_of_result(path: Path) -> int | None:
    """The training step of a `result.json`; None without such a file, or without a step in it."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def evaluation_files(run: Path) -> list[Path]:
    """The result files that `aucseg validate` left of a run in folders inside the run's own."""
    folders = [path.parent for path in run.glob(f"evaluation-*/{RESULT_FILE}") if _is_of(run, path)]
    return [path for folder in folders for name in RESULT_FILES if (path := folder / name).is_file()]


def _is_of(run: Path, result: Path) -> bool:
    try:
        evaluated = Path(json.loads(result.read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    # A path that leads nowhere was given from another folder, or before the run was moved.
    return not evaluated.exists() or run_folder_of(evaluated).resolve() == run.resolve()


class ClassesOfCard(Protocol):
    """What a result tells of the classes; `aucseg.datasets.DatasetCard` has it."""

    @property
    def name(self) -> str:
        """Name of the data set."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes."""

    @property
    def palette(self) -> Sequence[Sequence[int]]:
        """Colour of each class, 0..255."""


def result_entries(
    card: ClassesOfCard,
    *,
    step: int | None,
    metrics: Mapping[str, float],
    per_class_iou: Sequence[float],
    groups: Mapping[str, Sequence[int]] | None,
) -> dict[str, Any]:
    """The entries that every `result.json` has.

    Args:
        card: Of the data.
        step: Steps of the training, None where it is not known.
        metrics: Scores by name.
        per_class_iou: (K,), NaN for classes that do not occur.
        groups: Class ids by group, or None.
    """
    return {
        "step": step,
        "card": card.name,
        "metrics": dict(metrics),
        "per_class_iou": dict(zip(card.class_names, per_class_iou, strict=True)),
        "groups": groups,
        "class_names": list(card.class_names),
        "palette": [list(color) for color in card.palette],
    }


def write_results(
    folder: Path,
    result: Mapping[str, Any],
    *,
    confusion: Sequence[Sequence[int]],
    images: Mapping[str, Mapping[int, Sequence[int]]],
    roc_curves: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Writes `result.json`, `confusion.json`, `images.json` and `curves.json`, see `aucseg.run_files`.

    Args:
        folder: Where to; it is made.
        result: The entries of `result.json`.
        confusion: Pixels by true class (row) and predicted class.
        images: For each image what `per_image_overlap` returns.
        roc_curves: False and true positive rates by class name; None for a prediction without scores.
    """
    for name in (RESULT_FILE, CURVES_FILE):  # of an earlier evaluation
        (folder / name).unlink(missing_ok=True)
    write_json(folder / CONFUSION_FILE, {"counts": confusion})
    write_json(folder / IMAGES_FILE, dict(sorted(images.items())))
    if roc_curves is not None:
        curves = {name: curve_points(*rates) for name, rates in roc_curves.items()}
        write_json(folder / CURVES_FILE, {n: c for n, c in curves.items() if c["auroc"] == c["auroc"]})  # not NaN
    write_json(folder / RESULT_FILE, result, indent=2)
