"""The classes of a validation as a table for a terminal: IoU, precision and recall, by group."""

from __future__ import annotations

import shlex

from aucseg.report.runs import Run
from aucseg.report.text import points

# With more classes than these, the worst of them are shown.
_MAX_CLASSES, _NUM_WORST = 20, 10
_MAX_NAME = 32


def class_table(run: Run) -> str:
    """A line for each class, head first, then those that stand in no group; the worst ten where there are many.

    IoU, precision (the share of the pixels predicted as the class that are of it) and recall (the share of its pixels
    that are predicted as it) in percent. A dash stands for a class that is neither in the truth nor predicted.

    Args:
        run: Of `aucseg.report.runs.read_run`.

    Returns:
        The table, or "" for a run without a validation.

    Example:
        >>> from pathlib import Path
        >>> scores = {"per_class_iou": {"road": 0.8}, "per_class": {"road": {"precision": 1.0, "recall": 0.8}}}
        >>> print(class_table(Run("a", Path("a"), class_names=("road",), **scores)))
        class  group   IoU %  precision %  recall %
        road            80.0        100.0      80.0
    """
    if not run.class_names:
        return ""
    iou = [run.per_class_iou.get(name) for name in run.class_names]
    groups = run.groups or {}
    group_of = {class_id: group for group, ids in groups.items() for class_id in ids}
    order = [*group_of, *(c for c in range(len(run.class_names)) if c not in group_of)]
    shown, title = order, ""
    if len(order) > _MAX_CLASSES:
        known = [c for c in order if iou[c] is not None]
        shown = sorted(known, key=lambda c: iou[c] or 0.0)[:_NUM_WORST]
        all_of_them = f"aucseg report {shlex.quote(str(run.folder))}"
        title = f"the {len(shown)} worst of {len(order)} classes (all of them: {all_of_them}):\n"
    names = [run.class_names[c][:_MAX_NAME] for c in shown]
    width = max(map(len, ("class", *names)))
    lines = [f"{'class':{width}}  {'group':6}  {'IoU %':>5}  precision %  recall %"]
    for class_id, name in zip(shown, names, strict=True):
        scores = run.per_class.get(run.class_names[class_id], {})
        precision, recall = (points(scores.get(key)) for key in ("precision", "recall"))
        group = group_of.get(class_id, "")
        lines.append(f"{name:{width}}  {group:6}  {points(iou[class_id]):>5}  {precision:>11}  {recall:>8}")
    means = [(name, run.metrics.get(key)) for key, name in (("miou", "all"), *((g, g) for g in groups))]
    if run.metrics:
        lines += ["", "mean IoU in %: " + ", ".join(f"{name} {points(value)}" for name, value in means)]
    return title + "\n".join(lines)
