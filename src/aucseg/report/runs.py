"""What run folders hold, read into plain data: metrics, curves, confusion, class order."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aucseg.hints import counted
from aucseg.report.history import read_history
from aucseg.report.text import percent
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
from aucseg.statistics.groups import groups_by_share


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


@dataclass(frozen=True)
class Comparison:
    """Runs on one data set, the baseline first, with what they have in common.

    Attributes:
        runs: The runs, the baseline first.
        class_names: Class names by id; empty where no run was validated.
        palette: Colour of each class.
        groups: Class ids of head, middle and tail, or None.
        counts: Pixels of each class, or None where nothing tells.
        num_images: Images that hold each class, or None.
        counts_source: What was counted, in words.
        order: Class ids by falling count, or in the card's order without counts.
        method: Title of the run that is to be set against the baseline, or None for the best other one.
    """

    runs: tuple[Run, ...]
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    groups: dict[str, list[int]] | None
    counts: tuple[float, ...] | None
    num_images: tuple[int, ...] | None
    counts_source: str
    order: tuple[int, ...]
    method: str | None = None

    @property
    def baseline(self) -> Run:
        """The run that the others are compared with."""
        return self.runs[0]

    @property
    def challenger(self) -> Run | None:
        """The run asked for, or the best other one by overall mIoU (the last, if none is validated).

        None with one run, and where all others were validated on other images.
        """
        others = [run for run in self.rivals if self.method in (None, run.title)]
        validated = [run for run in others if "miou" in run.metrics]
        if validated:
            return max(validated, key=lambda run: run.metrics["miou"])
        return others[-1] if others else None

    @property
    def rivals(self) -> tuple[Run, ...]:
        """The other runs whose numbers compare with those of the baseline."""
        return tuple(run for run in self.runs[1:] if self.has_same_images(run))

    def has_same_images(self, run: Run) -> bool:
        """Whether a run was validated on the images of the baseline, as far as the two tell on which they were."""
        return not (run.images and self.baseline.images) or run.images.keys() == self.baseline.images.keys()

    @property
    def image_notes(self) -> tuple[str, ...]:
        """A sentence about each run that was validated on other images than the baseline."""
        own = self.baseline.images.keys()
        return tuple(
            f"{run.title} and {self.baseline.title} were validated on different images, {len(run.images):,} and "
            f"{len(own):,} with {len(run.images.keys() & own):,} in common: their numbers do not compare, and no "
            "difference between them is shown. Validate both on the same images (aucseg validate RUN --split NAME)"
            for run in self.runs[1:]
            if not self.has_same_images(run)
        )

    @property
    def tail(self) -> tuple[int, ...]:
        """Tail classes, the rarest first."""
        tail = set((self.groups or {}).get("tail", ()))
        return tuple(class_id for class_id in reversed(self.order) if class_id in tail)

    def group_of(self, class_id: int) -> str:
        """Name of a class's group, or ""."""
        return next((name for name, ids in (self.groups or {}).items() if class_id in ids), "")

    def share(self, class_id: int) -> float | None:
        """Share of the counted pixels that the class has, or None."""
        total = sum(self.counts) if self.counts else 0
        return self.counts[class_id] / total if self.counts and total else None

    def share_text(self, class_id: int) -> str:
        """The share in words for people."""
        share = self.share(class_id)
        return "–" if share is None else percent(share)


def load_comparison(
    run_folders: Sequence[str | Path],
    *,
    titles: Sequence[str] | None = None,
    baseline: str | None = None,
    statistics: Any = None,
    method: str | None = None,
) -> Comparison:
    """Reads run folders and puts their classes in order of frequency.

    Args:
        run_folders: The folders.
        titles: A name for each, by default the folder names.
        baseline: Title of the run that the others are compared with, by default the first.
        statistics: Pixel counts of the training split, as a `ClassStatistics` or K
            numbers. Without them the truth of the validation split is counted.
        method: Title of the run that is set against the baseline in the headline and the pictures, by default the best
            other one.

    Raises:
        ValueError: No folder, titles that do not fit, an unknown baseline or method, runs with different classes,
            statistics of another number of classes.
    """
    if isinstance(run_folders, (str, Path)) or not run_folders:
        raise ValueError("run_folders must be a list of at least one run folder")
    if titles is None:
        titles = default_titles([Path(folder) for folder in run_folders])
    if len(titles) != len(run_folders) or len(set(titles)) != len(titles):
        raise ValueError(
            f"{counted(len(run_folders), 'run')}, but titles {list(titles)}: give each run one of its own (--titles)"
        )
    runs = [read_run(folder, title) for folder, title in zip(run_folders, titles, strict=True)]
    if baseline is not None:
        if baseline not in titles:
            raise ValueError(f"no run is called {baseline!r}; there are {', '.join(map(repr, titles))}")
        runs.sort(key=lambda run: run.title != baseline)
    others = [run.title for run in runs[1:]]
    if method is not None and method not in others:
        raise ValueError(f"no run beside the baseline is called {method!r}; there are {', '.join(map(repr, others))}")
    validated = [run for run in runs if run.class_names]
    first = validated[0] if validated else runs[0]
    for run in validated:
        if run.class_names != first.class_names:
            raise ValueError(
                f"{run.folder} (card {run.card!r}) and {first.folder} (card {first.card!r}) have different classes: "
                "a report compares runs on one data set"
            )
    num_classes = len(first.class_names)
    counts, num_images, source = _class_counts(statistics, runs, num_classes)
    groups = first.groups
    if groups is None and counts is not None and any(counts):
        groups = groups_by_share(counts)
    runs = [_with_group_means(run, groups or {}) for run in runs]
    order = sorted(range(num_classes), key=lambda class_id: -counts[class_id] if counts else class_id)
    palette = first.palette if len(first.palette) == num_classes else tuple(map(_spread_color, range(num_classes)))
    names = first.class_names
    return Comparison(tuple(runs), names, palette, groups, counts, num_images, source, tuple(order), method)


def _with_group_means(run: Run, groups: Mapping[str, Sequence[int]]) -> Run:
    """The run with means that others have and it lacks, such as those of groups that its own card does not name."""
    means = (
        known_group_means([run.per_class_iou.get(name) for name in run.class_names], groups) if run.class_names else {}
    )
    for score in ("precision", "recall"):
        if run.per_class and "tail" in groups:
            values = [run.per_class.get(name, {}).get(score) for name in run.class_names]
            of_groups = known_group_means(values, {"tail": groups["tail"]})
            means |= {f"{name}_{score}": value for name, value in of_groups.items()}
    return replace(run, metrics=means | run.metrics)


def default_titles(folders: Sequence[Path]) -> list[str]:
    """Names of runs: those of their folders, with the folders above where names are equal."""
    resolved = [folder.resolve() for folder in folders]
    names = [folder.name for folder in resolved]
    if len(set(names)) < len(names):
        names = [f"{folder.parent.name}/{folder.name}" for folder in resolved]
    return names


def _class_counts(
    statistics: Any, runs: Sequence[Run], num_classes: int
) -> tuple[tuple[float, ...] | None, tuple[int, ...] | None, str]:
    if statistics is None:
        confusion = next((run.confusion for run in runs if run.confusion is not None), None)
        if confusion is None:
            return None, None, ""
        return tuple(map(float, confusion.sum(axis=1).tolist())), None, "validation pixels"
    counts = tuple(float(count) for count in getattr(statistics, "pixel_counts", statistics))
    if num_classes and len(counts) != num_classes:
        raise ValueError(f"the statistics count {len(counts)} classes, the runs have {num_classes}")
    names = getattr(statistics, "class_names", None) or ()
    known = next((run.class_names for run in runs if run.class_names), ())
    if names and known and tuple(names) != tuple(known) and set(names) == set(known):
        raise ValueError(
            "the statistics count the classes of the runs in another order: count with the card of the runs"
        )
    images = getattr(statistics, "image_counts", None)
    return counts, None if images is None else tuple(int(count) for count in images), "training pixels"


def _spread_color(class_id: int) -> tuple[int, int, int]:
    # Golden-ratio steps around the colour circle keep neighbours apart.
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb(class_id * 0.61803 % 1, 0.65, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def known_group_means(values: Sequence[float | None], groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Mean of each group over the classes that have a value; without the groups in which none has.

    Example:
        >>> known_group_means([0.5, None, 0.25, 0.75], {"head": [0], "middle": [1], "tail": [1, 2, 3]})
        {'head': 0.5, 'tail': 0.5}
    """
    known = {name: [value for i in ids if (value := values[i]) is not None] for name, ids in groups.items()}
    return {name: sum(found) / len(found) for name, found in known.items() if found}
