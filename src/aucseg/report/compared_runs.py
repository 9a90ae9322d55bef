"""Runs that are set side by side: the order of the classes, their groups and counts, and which numbers compare."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aucseg.hints import counted
from aucseg.report.runs import Run, read_run
from aucseg.report.text import percent
from aucseg.statistics.groups import groups_by_share


@dataclass(frozen=True)
class ComparedRuns:
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
) -> ComparedRuns:
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
    return ComparedRuns(tuple(runs), names, palette, groups, counts, num_images, source, tuple(order), method)


def _with_group_means(run: Run, groups: Mapping[str, Sequence[int]]) -> Run:
    """The run with means that others have and it lacks, over the groups that all are compared by.

    Its own card may have named no groups, or others: means over these do not compare.
    """
    means = (
        known_group_means([run.per_class_iou.get(name) for name in run.class_names], groups) if run.class_names else {}
    )
    for score in ("precision", "recall"):
        if run.per_class and "tail" in groups:
            values = [run.per_class.get(name, {}).get(score) for name in run.class_names]
            of_groups = known_group_means(values, {"tail": groups["tail"]})
            means |= {f"{name}_{score}": value for name, value in of_groups.items()}
    own = run.metrics
    if run.groups is not None and run.groups != groups:
        own = {name: value for name, value in own.items() if name.partition("_")[0] not in {*groups, *run.groups}}
    return replace(run, metrics=means | own)


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
