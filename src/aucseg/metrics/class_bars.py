"""Bars of the values of classes, by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from aucseg.hints import import_extra
from aucseg.runtime.plots import GROUP_COLORS, plain_label

_OTHER_COLOR = "#888888"


def draw_class_bars(
    values: Sequence[float],
    names: Sequence[str],
    groups: Mapping[str, Sequence[int]],
    score: str,
    *,
    bounds: Sequence[float] | None = None,
    axes: Any = None,
) -> tuple[Any, Any]:
    """Draws one horizontal bar a class, the first at the top, and a line at the mean.

    Args:
        values: (K,) in 0..1; NaN for a class that does not occur, which gets no bar and says so.
        names: (K,) of the classes.
        groups: Class ids by group; head, middle and tail have colours of their own.
        score: What the values are.
        bounds: (K,) how far each value can be off; None where it is exact.
        axes: Axes of matplotlib; None for a new figure.

    Returns:
        The figure, None if axes were given, and the axes.

    Raises:
        ImportError: Matplotlib is missing.
    """
    pyplot = import_extra("matplotlib.pyplot", "report")
    figure = None
    if axes is None:
        figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.24 * max(len(values), 4)), layout="constrained")
    group_of = {class_id: group for group, class_ids in groups.items() for class_id in class_ids}
    colors = [GROUP_COLORS.get(group_of.get(class_id, ""), _OTHER_COLOR) for class_id in range(len(values))]
    occurs = [not math.isnan(value) for value in values]
    lengths = [value if known else 0.0 for value, known in zip(values, occurs, strict=True)]
    errors = None if bounds is None else [b if known else 0.0 for b, known in zip(bounds, occurs, strict=True)]
    places = range(len(values))
    axes.barh(places, lengths, xerr=errors, color=colors)
    for place, known in zip(places, occurs, strict=True):
        if not known:
            axes.text(0.01, place, "does not occur", va="center", fontsize=7, color="0.4")
    if any(occurs):
        mean = sum(lengths) / sum(occurs)
        axes.axvline(mean, color="0.2", linestyle="--", linewidth=1, label=f"mean {mean:.3f}")
    for group, color in GROUP_COLORS.items():
        if groups.get(group):
            axes.barh(0, 0, color=color, label=group)  # for the legend alone
    axes.set_yticks(places, [plain_label(name) for name in names], fontsize=8)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set(xlim=(0, 1), xlabel=score)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, loc="lower right")
    return figure, axes
