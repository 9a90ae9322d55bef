"""The main result as one picture for a README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aucseg.report.compared_runs import ComparedRuns, load_comparison
from aucseg.report.encode import Color
from aucseg.report.examples import Example
from aucseg.report.text import points
from aucseg.runtime.plots import check_picture, plain_label
from aucseg.safe_files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe-Ito, as in the page's style sheet.
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
_MARKERS = ("o", "D", "s", "^", "v", "*", "P")
_BANDS = {"head": "#f2f0ea", "middle": "#e9eef3", "tail": "#fbeee3"}
_INK, _SOFT = "#1b1d21", "#5d626b"
_LABEL_STRENGTH = 0.65


def readme_figure(
    run_folders: Sequence[str | Path],
    out: str | Path,
    *,
    titles: Sequence[str] | None = None,
    baseline: str | None = None,
    samples: Sequence[Example] = (),
    statistics: Any = None,
    num_examples: int = 2,
    dpi: int = 150,
) -> Path:
    """Draws the IoU of each class by frequency rank, all runs, above a strip of example images.

    Args:
        run_folders: Folders of validated runs, all on one data set.
        out: File to write; its ending (.png, .svg, .pdf) is its format.
        titles: A name for each run, by default the folder names.
        baseline: Title of the run to draw first, by default the first.
        samples: Images with predictions, from `collect_examples`; those with the largest gain come first.
        statistics: Pixel counts of the training split, as `ClassStatistics` or K numbers.
        num_examples: Rows of the strip.
        dpi: Dots per inch of a PNG.

    Returns:
        The path of the file.

    Raises:
        ValueError: No run has a validation, or what `build_report` refuses.
        ImportError: Without matplotlib.
    """
    out = Path(out)
    check_picture(out)
    from matplotlib.figure import Figure

    comparison = load_comparison(run_folders, titles=titles, baseline=baseline, statistics=statistics)
    if not any(run.per_class_iou for run in comparison.runs):
        raise ValueError("no run has result.json yet: there is no IoU to draw")
    shown = sorted(samples, key=lambda example: example.role != "gain")[:num_examples]
    # A figure of its own, not pyplot's: nothing global is touched and no window system is asked for.
    num_columns = 2 + len(comparison.runs)
    strip = 0.0
    if shown:
        strip = sum(10.0 / num_columns * example.truth.shape[0] / example.truth.shape[1] for example in shown) + 0.4
    figure = Figure(figsize=(10.5, 4.6 + strip), facecolor="white", layout="constrained")
    if shown:
        upper, lower = figure.subfigures(2, 1, height_ratios=[4.6, strip], squeeze=False)[:, 0]
        _draw_strip(lower.subplots(len(shown), num_columns, squeeze=False), comparison, shown)
        axes = upper.subplots()
    else:
        axes = figure.subplots()
    _draw_classes(axes, comparison)
    # Without the date the same results give the same file.
    metadata: dict[str, Any] = {"metadata": {"Date": None}} if out.suffix.lower() == ".svg" else {}
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=dpi, **metadata)
    return out


def _draw_classes(axes: Axes, comparison: ComparedRuns) -> None:
    names = [comparison.class_names[class_id] for class_id in comparison.order]
    ranks = np.arange(len(names))
    groups = [comparison.group_of(class_id) for class_id in comparison.order]
    start = 0
    for rank in range(1, len(groups) + 1):
        if rank == len(groups) or groups[rank] != groups[start]:
            if groups[start] in _BANDS:
                axes.axvspan(start - 0.5, rank - 0.5, color=_BANDS[groups[start]], lw=0, zorder=0)
                axes.text((start + rank - 1) / 2, 101, groups[start], ha="center", va="bottom", color=_SOFT, fontsize=9)
            start = rank
    ious = np.array([[_number(run.per_class_iou.get(name)) for name in names] for run in comparison.runs]) * 100
    for rank, column in enumerate(ious.T):
        known = column[~np.isnan(column)]
        if len(known) > 1:
            axes.vlines(rank, known.min(), known.max(), color=_SOFT, alpha=0.45, lw=2, zorder=2)
    for index, (run, row) in enumerate(zip(comparison.runs, ious, strict=True)):
        means = [f"{name} {points(run.metrics[name])}" for name in ("head", "middle", "tail") if name in run.metrics]
        if "miou" in run.metrics:
            means.insert(0, f"mIoU {points(run.metrics['miou'])}")
        axes.plot(
            ranks, row, _MARKERS[index % len(_MARKERS)], color=OKABE_ITO[index % len(OKABE_ITO)], ms=6, mec="white",
            mew=0.8, zorder=3, clip_on=False, label=f"{run.title}  ({', '.join(means)})" if means else run.title,
        )  # fmt: skip
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(0, 100)
    axes.set_xticks(ranks, [plain_label(name) for name in names], rotation=90, fontsize=8 if len(names) <= 60 else 4)
    source = f" ({comparison.counts_source})" if comparison.counts else ""
    axes.set_xlabel(f"classes, most frequent first{source}" if comparison.counts else "classes", color=_SOFT)
    axes.set_ylabel("IoU, %", color=_SOFT)
    axes.grid(axis="y", color="#d8d6d0", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=2, frameon=False, fontsize=10)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _draw_strip(grid: NDArray[Any], comparison: ComparedRuns, examples: Sequence[Example]) -> None:
    for row, example in zip(grid, examples, strict=True):
        pictures: dict[str, NDArray[np.uint8] | None] = {"input": example.image}
        pictures["truth"] = overlay(example.image, example.truth, comparison.palette)
        for run in comparison.runs:
            labels = example.predictions.get(run.title)
            pictures[run.title] = None if labels is None else overlay(example.image, labels, comparison.palette)
        for axes, (title, picture) in zip(row, pictures.items(), strict=True):
            axes.set_axis_off()
            if picture is not None:
                axes.imshow(picture)
            if example is examples[0]:
                axes.set_title(title, fontsize=10, color=_INK)


def overlay(image: NDArray[np.uint8], labels: NDArray[Any], palette: Sequence[Color]) -> NDArray[np.uint8]:
    """The image with the classes' colours over it; ignored pixels show the image alone."""
    valid = (labels >= 0) & (labels < len(palette))
    colors = np.array(palette, dtype=np.float64)[np.where(valid, labels, 0)]
    strength = _LABEL_STRENGTH * valid[..., None]
    mixed: NDArray[np.uint8] = (image * (1 - strength) + colors * strength).round().astype(np.uint8)
    return mixed
