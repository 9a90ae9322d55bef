"""What run folders hold, read into plain data: metrics, curves, confusion, class order."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aucseg.report.history import read_history
from aucseg.run_files import (
    CONFIG_FILE,
    CONFUSION_FILE,
    CURVES_FILE,
    IMAGES_FILE,
    METRICS_FILE,
    RESULT_FILE,
    run_folder_of,
)
from aucseg.safe_files import read_yaml_mapping


@dataclass(frozen=True)
class RocCurve:
    """One class against all others: rates in [0, 1] and the area under the curve."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]
    auroc: float | None


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        title: Name for people.
        folder: Where it lies.
        step: Step of the last validation, or of the last logged row where none has run.
        max_steps: Steps that the run shall take, if its configuration says so.
        metrics: Finite values of the last validation: `miou`, `head`, `middle`, `tail`, `loss`, ...
        per_class_iou: IoU in [0, 1] by class name; None where the validation split does not hold the class.
        class_names: Class names in the order of their ids; empty for a run without a validation.
        palette: Colour of each class, parts in 0..255.
        groups: Class ids of head, middle and tail, or None.
        card: Name of the data set card, or "".
        confusion: Pixel counts (K, K), [truth, prediction], or None.
        images: For each validation image `{class id: (intersection, union)}` in pixels.
        roc: ROC curves by class name.
        history: Logged values by column, each a list of (step, value) with rising steps.
        per_class: More numbers of each class, by class name and name of the number; those that are known.
        objects: By class name the objects (found, all) of the truth that are small, medium and large.
        predictions: Folder of predictions that were evaluated, "" for a run that was trained.
        split: What was evaluated, or "".
    """

    title: str
    folder: Path
    step: int | None = None
    max_steps: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    per_class_iou: dict[str, float | None] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    groups: dict[str, list[int]] | None = None
    card: str = ""
    confusion: NDArray[np.int64] | None = None
    images: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    roc: dict[str, RocCurve] = field(default_factory=dict)
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    objects: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    predictions: str = ""
    split: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether the last validation is that of the last step."""
        return bool(self.per_class_iou) and (self.max_steps is None or (self.step or 0) >= self.max_steps)

    @property
    def status(self) -> str:
        """How far the run is, in words."""
        if self.step is None and self.per_class_iou:
            split = f", split {self.split}" if self.split else ""
            return f"predictions for {len(self.images):,} images{split}"
        if self.step is None:
            return "nothing logged yet"
        if self.is_finished or self.max_steps is None:
            return f"{self.step:,} steps"
        return f"step {self.step:,} of {self.max_steps:,}"


def read_run(folder: str | Path, title: str | None = None) -> Run:
    """Reads a run folder; files that are not there yet leave their part empty.

    Args:
        folder: A folder that `aucseg fit --out` writes.
        title: Name for people, by default the folder's name.

    Raises:
        ValueError: No such folder, none of a run's files in it, or a file that cannot be read as what it should be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no run folder {folder}")
    files = (CONFIG_FILE, METRICS_FILE, RESULT_FILE)
    if not any((folder / name).is_file() for name in files):
        raise ValueError(f"{folder} is not a run folder: it has none of {', '.join(files)}")
    history = read_history(run_folder_of(folder) / METRICS_FILE)
    result = _read_json(folder / RESULT_FILE)
    try:
        run = _parse_result(result)
        confusion = _read_json(folder / CONFUSION_FILE).get("counts")
        images = {
            name: {int(class_id): (int(pixels[0]), int(pixels[1])) for class_id, pixels in classes.items()}
            for name, classes in _read_json(folder / IMAGES_FILE).items()
        }
        roc = {
            name: RocCurve(tuple(map(float, curve["fpr"])), tuple(map(float, curve["tpr"])), finite(curve["auroc"]))
            for name, curve in _read_json(folder / CURVES_FILE).items()
        }
        counts = None if confusion is None else np.asarray(confusion, dtype=np.int64)
        num_classes = len(run["class_names"])
        if counts is not None and num_classes and counts.shape != (num_classes, num_classes):
            raise ValueError(f"the confusion counts have shape {counts.shape}, the run has {num_classes} classes")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"a JSON file in {folder} does not hold what a run writes: {error!r}") from error
    if counts is not None:
        run["per_class"] = with_precision(run["per_class"], run["class_names"], counts)
    if not run["metrics"]:
        # A validation of a running run may be logged before its result file is there.
        run["metrics"] = {
            name.removeprefix("val/"): values[-1][1] for name, values in history.items() if name.startswith("val/")
        }
    if run["step"] is None and history:
        run["step"] = 1 + max(values[-1][0] for values in history.values())  # the first one is logged as 0
    return Run(
        title=folder.resolve().name if title is None else title,
        folder=folder,
        max_steps=_read_max_steps(folder / CONFIG_FILE),
        confusion=counts,
        images=images,
        roc=roc,
        history=history,
        **run,
    )


def _parse_result(result: Mapping[str, Any]) -> dict[str, Any]:
    groups = result.get("groups")
    return {
        "step": None if result.get("step") is None else int(result["step"]),
        "metrics": {k: v for k, value in result.get("metrics", {}).items() if (v := finite(value)) is not None},
        "per_class_iou": {str(name): finite(iou) for name, iou in result.get("per_class_iou", {}).items()},
        "class_names": tuple(map(str, result.get("class_names") or result.get("per_class_iou", {}))),
        "palette": tuple((int(r), int(g), int(b)) for r, g, b in result.get("palette") or ()),
        "groups": None if groups is None else {str(name): [int(i) for i in ids] for name, ids in groups.items()},
        "card": str(result.get("card") or ""),
        "per_class": {
            str(name): {str(k): v for k, value in numbers.items() if (v := finite(value)) is not None}
            for name, numbers in (result.get("per_class") or {}).items()
        },
        "objects": {
            str(name): [(int(found), int(total)) for found, total in numbers["objects"]]
            for name, numbers in (result.get("per_class") or {}).items()
            if "objects" in numbers
        },
        "predictions": str(result.get("predictions") or ""),
        "split": str(result.get("split") or ""),
    }


def with_precision(
    per_class: Mapping[str, Mapping[str, float]], class_names: Sequence[str], confusion: NDArray[np.int64]
) -> dict[str, dict[str, float]]:
    """The numbers of each class, with precision and recall from the confusion of any run.

    As `aucseg.metrics.GroupedMeanIoU` has them: 0 for a class that is never predicted, or not in the truth; none for
    one that is in neither.

    Args:
        per_class: By class name and name of the number; what it has of both stays.
        class_names: Of K classes.
        confusion: Pixel counts (K, K), [truth, prediction].

    Example:
        >>> with_precision({}, ["road", "gem", "sky"], np.array([[8, 2, 0], [0, 0, 0], [0, 0, 0]]))["gem"]
        {'precision': 0.0, 'recall': 0.0}
    """
    hits, predicted, true = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
    return {
        name: {"precision": float(hits[c] / max(predicted[c], 1)), "recall": float(hits[c] / max(true[c], 1))}
        | dict(per_class.get(name, {}))
        if predicted[c] + true[c]
        else dict(per_class.get(name, {}))
        for c, name in enumerate(class_names)
    }


def finite(value: object) -> float | None:
    """The value as a float, or None for null, NaN and infinities."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a JSON file ({error}); if its run is writing it just now, try again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def _read_max_steps(path: Path) -> int | None:
    if not path.is_file():
        return None
    config = read_yaml_mapping(path)
    steps = (config.get("trainer") or {}).get("max_steps")
    return steps if isinstance(steps, int) and steps > 0 else None
