"""What the sections of the page show: numbers and charts of the runs, ready for the template."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aucseg.report import charts
from aucseg.report.bootstrap import paired_bootstrap
from aucseg.report.compared_runs import ComparedRuns
from aucseg.report.encode import Color, css_color
from aucseg.report.text import points, signed_points

_METRIC_TITLES = {
    # The tail stands where a phone still shows it.
    "miou": "Overall mIoU",
    "tail": "Tail mIoU",
    "middle": "Middle mIoU",
    "head": "Head mIoU",
    "image_miou": "By image",
    "image_worst": "Worst tenth of images",
    "boundary_iou": "Boundary IoU",
    "tail_boundary_iou": "Tail boundary IoU",
    "precision": "Precision",
    "tail_precision": "Tail precision",
    "recall": "Recall",
    "tail_recall": "Tail recall",
    "f1": "F1",
    "auroc": "Pixel AUC",
    "tail_ap": "Tail AP",
    "tail_found": "Tail objects found",
    "found_small": "Small objects found",
    "found_medium": "Medium objects found",
    "found_large": "Large objects found",
    "loss": "Validation loss",
}
# Curves in this order; the losses first.
_PANELS = {"train/loss": "Training loss", "val/loss": "Validation loss"} | {
    f"val/{name}": _METRIC_TITLES[name] for name in ("miou", "tail", "middle", "head", "auroc", "tail_ap")
}
_MAIN = ("miou", "tail", "middle", "head")
_OF_CLASS = {
    "precision": "Precision",
    "recall": "Recall",
    "boundary_iou": "Boundary IoU",
    "average_precision": "AP",
    "auroc": "AUC",
}
_LOWER_IS_BETTER = ("loss",)
_NUM_MISTAKES = 3


def headline(comparison: ComparedRuns) -> str:
    """The result in one sentence, or "" where nothing can be compared."""
    baseline, other = comparison.baseline, comparison.challenger
    if other is None:
        return ""
    parts = []
    for name, words in (("tail", "tail mIoU"), ("miou", "overall"), ("head", "head"), ("middle", "middle")):
        if name in baseline.metrics and name in other.metrics:
            before, after = baseline.metrics[name], other.metrics[name]
            parts.append(f"{words} {points(after)} against {points(before)} ({signed_points(after - before)})")
    num_others = len(comparison.rivals)
    is_chosen = comparison.method is None and num_others > 1
    where = "on the same images" if comparison.image_notes else "overall"
    who = f"{other.title}, the best of the {num_others} others {where}," if is_chosen else other.title
    return f"{who} compared with {baseline.title}: {', '.join(parts)}." if parts else ""


def tiles(comparison: ComparedRuns) -> list[dict[str, Any]]:
    """Bars of the four main numbers."""
    tiles = []
    for name in _MAIN:
        values = [run.metrics.get(name) for run in comparison.runs]
        known = [value for value in values if value is not None]
        if not known:
            continue
        challenger = comparison.challenger
        gain = None
        if challenger is not None and name in challenger.metrics and values[0] is not None:
            gain = challenger.metrics[name] - values[0]
        ids = range(len(comparison.class_names)) if name == "miou" else (comparison.groups or {}).get(name, ())
        # A class that is in neither the masks nor the predictions has no IoU and no part in the mean.
        names = {comparison.class_names[class_id] for class_id in ids}
        num_counted = max(sum(run.per_class_iou.get(each) is not None for each in names) for run in comparison.runs)
        counted = f"{num_counted} of " if 0 < num_counted < len(names) else ""
        tiles.append(
            {
                "title": _METRIC_TITLES[name].removesuffix(" mIoU"),
                "num_classes": len(names),
                "classes": f"{counted}{len(names)} {'class' if len(names) == 1 else 'classes'}",
                "gain": gain,
                "rows": [(run.title, value) for run, value in zip(comparison.runs, values, strict=True)],
            }
        )
    return tiles


@dataclass(frozen=True)
class Column:
    """One metric of all runs.

    Attributes:
        title: For people.
        is_share: Whether the values are shares, shown in per cent.
        values: Of each run, None where it has none.
        compares: Whether each run was validated on the images of the first.
        best: The best of those that were, None where that says nothing.
    """

    title: str
    is_share: bool
    values: tuple[float | None, ...]
    compares: tuple[bool, ...]
    best: float | None

    def text(self, value: float | None) -> str:
        """A value as the table shows it."""
        if value is None:
            return "–"
        return points(value) if self.is_share else f"{value:.3f}"

    def difference(self, index: int) -> str:
        """The difference of a run's value to the first run's, "" where there is none."""
        value, before = self.values[index], self.values[0]
        if not (self.is_share and index and self.compares[index]) or value is None or before is None:
            return ""
        return signed_points(value - before)


def metric_columns(comparison: ComparedRuns) -> list[Column]:
    """The columns of the table of results, in their usual order."""
    names = {name for run in comparison.runs for name in run.metrics}
    compares = tuple(map(comparison.has_same_images, comparison.runs))
    ordered = [name for name in _METRIC_TITLES if name in names] + sorted(names - _METRIC_TITLES.keys())
    columns = []
    for name in ordered:
        values = tuple(run.metrics.get(name) for run in comparison.runs)
        known = [value for value, does in zip(values, compares, strict=True) if does and value is not None]
        is_share = name in _METRIC_TITLES and name not in _LOWER_IS_BETTER
        column = Column(_METRIC_TITLES.get(name, name), is_share, values, compares, None)
        # The losses of different methods are different functions: none is the best. Nor is one of several equals.
        if name not in _LOWER_IS_BETTER and len(known) > 1:
            best = max(known)
            is_alone = [column.text(value) for value in known].count(column.text(best)) == 1
            column = replace(column, best=best if is_alone else None)
        columns.append(column)
    return columns


def differences(comparison: ComparedRuns) -> list[dict[str, Any]]:
    """The differences to the baseline with their 95 % intervals over the images, a row for each other run on these."""
    rows = []
    for index, run in enumerate(comparison.runs[1:], start=1):
        if not comparison.has_same_images(run):
            continue
        groups = comparison.groups or {}
        found = paired_bootstrap(comparison.baseline.images, run.images, len(comparison.class_names), groups)
        if found is not None and found.differences:
            cells = [found.differences.get(name) for name in _MAIN]
            rows.append({"index": index, "title": run.title, "cells": cells, "drawn": found})
    return rows


def class_details(comparison: ComparedRuns) -> dict[str, Any]:
    """What is known of each class beside its IoU, a row for each class and run; empty where nothing is."""
    keys = [key for key in _OF_CLASS if any(key in n for run in comparison.runs for n in run.per_class.values())]
    has_objects = any(run.objects for run in comparison.runs)
    rows = []
    for class_id in comparison.order:
        name = comparison.class_names[class_id]
        for index, run in enumerate(comparison.runs):
            numbers, objects = run.per_class.get(name, {}), run.objects.get(name, [])
            if numbers or objects:
                values = [run.per_class_iou.get(name), *(numbers.get(key) for key in keys)]
                rows.append(
                    {
                        "name": name,
                        "group": comparison.group_of(class_id),
                        "index": index,
                        "title": run.title,
                        "values": values,
                        "objects": [(found / total if total else None, found, total) for found, total in objects],
                    }
                )
    sizes = ["Small objects", "Medium objects", "Large objects"] if has_objects else []
    return {"columns": ["IoU", *(_OF_CLASS[key] for key in keys)], "sizes": sizes, "rows": rows} if rows else {}


def class_rows(comparison: ComparedRuns, palette: Sequence[Color]) -> list[dict[str, Any]]:
    """The rows of the table of classes, the commonest first."""
    rows = []
    for rank, class_id in enumerate(comparison.order, start=1):
        name = comparison.class_names[class_id]
        ious = [run.per_class_iou.get(name) for run in comparison.runs]
        gains = [
            None if iou is None or ious[0] is None or not comparison.has_same_images(run) else iou - ious[0]
            for run, iou in zip(comparison.runs[1:], ious[1:], strict=True)
        ]
        rows.append(
            {
                "rank": rank,
                "name": name,
                "color": css_color(palette[class_id]),
                "group": comparison.group_of(class_id),
                "share": comparison.share(class_id),
                "share_text": comparison.share_text(class_id),
                "ious": ious,
                "gains": gains,
            }
        )
    return rows


def confusions(comparison: ComparedRuns) -> list[dict[str, Any]]:
    """For each tail class and run: the shares of its pixels that went to itself, to the main mistakes, to the rest."""
    rows = []
    for class_id in comparison.tail:
        bars = []
        for index, run in enumerate(comparison.runs):
            if run.confusion is None or not run.confusion[class_id].sum():
                continue
            shares = run.confusion[class_id] / run.confusion[class_id].sum()
            mistakes = [i for i in np.argsort(-shares, kind="stable").tolist() if i != class_id and shares[i] > 0]
            segments = [
                {"name": "right", "kind": f"right m{index % charts.NUM_STYLES}", "share": float(shares[class_id])}
            ]
            for i in mistakes[:_NUM_MISTAKES]:
                kind = f"wrong {comparison.group_of(i) or 'other'}"
                segments.append({"name": comparison.class_names[i], "kind": kind, "share": float(shares[i])})
            rest = sum(float(shares[i]) for i in mistakes[_NUM_MISTAKES:])
            segments.append({"name": "other classes", "kind": "wrong rest", "share": rest})
            bars.append({"index": index, "title": run.title, "segments": [s for s in segments if s["share"]]})
        if bars:
            counts = next(run.confusion for run in comparison.runs if run.confusion is not None)
            pixels = int(counts[class_id].sum())
            rows.append({"name": comparison.class_names[class_id], "pixels": pixels, "bars": bars})
    return rows


def roc_panels(comparison: ComparedRuns) -> list[dict[str, Any]]:
    """A chart of ROC curves for each class that has any, those of the tail first."""
    names = [comparison.class_names[class_id] for class_id in comparison.tail]
    names += sorted({name for run in comparison.runs for name in run.roc} - set(names))
    rates = [rate for run in comparison.runs for curve in run.roc.values() for rate in curve.fpr if rate > 0]
    # From the smallest rate on, but at least two decades and at most five.
    low = 10.0 ** min(max(math.floor(math.log10(min(rates, default=1.0))), -5), -2)
    panels = []
    for name in names:
        curves = [(i, run.title, run.roc[name]) for i, run in enumerate(comparison.runs) if name in run.roc]
        curves = [curve for curve in curves if len(curve[2].fpr) > 1 and len(curve[2].fpr) == len(curve[2].tpr)]
        if not curves:
            continue
        chart = charts.line_chart(
            [(i, title, charts.roc_points(curve.fpr, curve.tpr, low)) for i, title, curve in curves],
            label=f"ROC curves of {name}",
            x_label="false positive rate (log scale)",
            y_range=(0.0, 1.0),
            log_x=True,
            format_x=charts.rate_text,
            format_y=lambda value: f"{100 * value:.0f} %",
        )
        values = [(i, title, "–" if c.auroc is None else f"{c.auroc:.3f}") for i, title, c in curves]
        panels.append({"title": name, "chart": chart, "values": values})
    return panels


def curve_panels(comparison: ComparedRuns) -> list[dict[str, Any]]:
    """A chart by step for each loss and metric that was logged."""
    panels = []
    for column, title in _PANELS.items():
        runs = [(i, run) for i, run in enumerate(comparison.runs) if run.history.get(column)]
        if not runs:
            continue
        is_share = "loss" not in column
        format_y: Callable[[float], str] = points if is_share else lambda value: f"{value:.3g}"
        highest = max(value for _, run in runs for _, value in run.history[column])
        options: dict[str, Any] = {
            # Shares start at 0, so that heights compare; losses use the room they need.
            "y_range": (0.0, min(1.0, 1.1 * highest) or 1.0) if is_share else None,
            "format_y": format_y,
            "format_tick": (lambda value: f"{100 * value:g}") if is_share else None,
        }
        if all(len(run.history[column]) == 1 for _, run in runs):
            bars = [(i, run.title, run.history[column][0][1]) for i, run in runs]
            chart = charts.bar_chart(bars, label=f"{title}, measured once", **options)
        else:
            lines = [(i, run.title, charts.thin(run.history[column])) for i, run in runs]
            chart = charts.line_chart(lines, label=f"{title} by step", x_label="step", **options)
        values = [(i, run.title, format_y(run.history[column][-1][1])) for i, run in runs]
        panels.append({"title": title + (", %" if is_share else ""), "chart": chart, "values": values})
    return panels
