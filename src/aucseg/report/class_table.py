"""The classes of a validation as a table for a terminal: IoU, precision and recall, by group."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aucseg.report.runs import Run
from aucseg.report.text import points

# With more classes than these, the worst of them are shown.
_MAX_CLASSES, _NUM_WORST = 20, 10
_MAX_NAME = 32


def class_table(run: Run) -> str:
    """A line for each class, head first, then those that stand in no group; the worst ten where there are many.

    IoU, precision (the share of the pixels predicted as the class that are of it) and recall (the share of its pixels
    that are predicted as it) in percent. A dash stands where there is nothing to divide by: no pixel of the class in
    truth or prediction (IoU), in the prediction (precision), in the truth (recall).

    Args:
        run: Of `aucseg.report.runs.read_run`.

    Returns:
        The table, or "" for a run without a validation.

    Example:
        >>> from pathlib import Path
        >>> counts = np.array([[8, 2], [0, 0]])
        >>> print(class_table(Run("a", Path("a"), class_names=("road", "gem"), confusion=counts)))
        class  group   IoU %  precision %  recall %
        road            80.0        100.0      80.0
        gem              0.0          0.0         –
    """
    if run.confusion is None or not run.class_names:
        return ""
    scores = class_scores(run.confusion)
    groups = run.groups or {}
    group_of = {class_id: group for group, ids in groups.items() for class_id in ids}
    order = [*group_of, *(c for c in range(len(run.class_names)) if c not in group_of)]
    shown, title = order, ""
    if len(order) > _MAX_CLASSES:
        known = [c for c in order if scores[c][0] is not None]
        shown = sorted(known, key=lambda c: scores[c][0] or 0.0)[:_NUM_WORST]
        all_of_them = f"aucseg report {shlex.quote(str(run.folder))}"
        title = f"the {len(shown)} worst of {len(order)} classes (all of them: {all_of_them}):\n"
    names = [run.class_names[c][:_MAX_NAME] for c in shown]
    width = max(map(len, ("class", *names)))
    lines = [f"{'class':{width}}  {'group':6}  {'IoU %':>5}  precision %  recall %"]
    for class_id, name in zip(shown, names, strict=True):
        iou, precision, recall = map(points, scores[class_id])
        lines.append(f"{name:{width}}  {group_of.get(class_id, ''):6}  {iou:>5}  {precision:>11}  {recall:>8}")
    means = [(name, run.metrics.get(key)) for key, name in (("miou", "all"), *((g, g) for g in groups))]
    if run.metrics:
        lines += ["", "mean IoU in %: " + ", ".join(f"{name} {points(value)}" for name, value in means)]
    return title + "\n".join(lines)


def class_scores(confusion: NDArray[np.int64]) -> Sequence[tuple[float | None, float | None, float | None]]:
    """IoU, precision and recall of each class in [0, 1] from pixel counts (K, K), rows are the truth.

    Example:
        >>> class_scores(np.array([[3, 1], [0, 0]]))
        [(0.75, 1.0, 0.75), (0.0, 0.0, None)]
    """
    counts = confusion.astype(np.float64)
    hits, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    columns = (truth + predicted - hits, predicted, truth)
    return [
        tuple(None if whole[c] == 0 else float(hits[c] / whole[c]) for whole in columns)  # type: ignore[misc]
        for c in range(len(counts))
    ]
