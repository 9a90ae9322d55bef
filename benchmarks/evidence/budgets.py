"""What more training steps change: cross-entropy, the best rival and AUCSeg, on every data set that has been run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.evidence.shared_study import best_methods, is_rival

from aucseg.compare.intervals import Interval, t_interval

CE, RIVAL, OURS = "cross-entropy", "best rival", "AUCSeg"
_COLORS = {CE: "#0072b2", RIVAL: "#009e73", OURS: "#d55e00"}
_GROUPS = ("miou", "head", "middle", "tail")
# Of each data set the studies of one model and one recipe in the order of their steps; the first of the series that has
# been run counts. A series never mixes a CPU with a GPU, nor older training transforms with today's.
_SERIES: dict[str, tuple[tuple[str, ...], ...]] = {
    "Freedoom-LT": (
        ("freedoom_lt_400", "freedoom_lt_8000"),
        ("freedoom_lt_400_cpu", "freedoom_lt_2000_cpu"),
        ("main", "rivals_with_bank", "mild_weights", "steps_2000", "steps_8000"),
    ),
    "CamVid": (("camvid_heldout",), ("camvid", "camvid_1200", "camvid_2400", "camvid_4800")),
    "Cityscapes-256": (
        ("cityscapes_256",),
        ("cityscapes_256_750_cpu", "cityscapes_256_1500_cpu", "cityscapes_256_cpu"),
    ),
    "Clothing Co-Parsing": (("ccp",), ("ccp_750_cpu", "ccp_cpu")),
}
# AUCSeg in the older studies, which have no scores on held-out images: as the counts of the data advise; of several
# AUC weights the first that was run.
_OURS_BEFORE = {"Freedoom-LT": ("aucseg",), "CamVid": ("auc", "auc-1")}


@dataclass(frozen=True)
class Budget:
    """What a method reaches with a number of steps: mean IoU in % over the seeds, by group."""

    data: str
    steps: int
    role: str
    method: str
    seeds: int
    values: Mapping[str, Interval]
    ranges: Mapping[str, tuple[float, float]]


def budgets(results: Path) -> list[Budget]:
    """Of each data set and budget cross-entropy, the best rival and AUCSeg, where they have been run."""
    found = []
    for data, alternatives in _SERIES.items():
        series = ([run for name in names for run in _runs(results / f"{name}.json")] for names in alternatives)
        runs: list[dict[str, Any]] = next((runs for runs in series if any(run["method"] == "ce" for run in runs)), [])
        for steps in sorted({run["steps"] for run in runs if run["method"] == "ce"}):
            here = [run for run in runs if run["steps"] == steps]
            for role, method in _roles(data, here).items():
                metrics = [run["metrics"] for run in here if run["method"] == method]
                known = {key: [100 * m[key] for m in metrics if m.get(key) is not None] for key in _GROUPS}
                values = {key: t_interval(scores) for key, scores in known.items()}
                ranges = {key: (min(scores), max(scores)) for key, scores in known.items() if scores}
                found.append(Budget(data, steps, role, method, len(metrics), values, ranges))
    return found


def _roles(data: str, runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Which method stands for what; rivals and AUCSeg are those that are best on the held-out images."""
    rivals = [run for run in runs if is_rival(run["method"])]
    ours = [run for run in runs if run["method"].startswith("auc")]
    roles = {CE: "ce"}
    if best := best_methods(rivals):
        roles[RIVAL] = best[0]
    elif rivals:  # before there were scores on held-out images: the best by the score itself, in the rival's favour
        names = dict.fromkeys(run["method"] for run in rivals)
        roles[RIVAL] = max(
            names, key=lambda m: statistics.mean(r["metrics"]["miou"] for r in rivals if r["method"] == m)
        )
    if best := best_methods(ours):
        roles[OURS] = best[0]
    elif found := [m for m in _OURS_BEFORE.get(data, ()) if any(run["method"] == m for run in ours)]:
        roles[OURS] = found[0]
    return roles


def _runs(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text(encoding="utf-8"))["runs"]) if path.is_file() else []


def draw_budgets(rows: list[Budget], path: Path) -> None:
    """Tail and overall mean IoU against the number of steps, a column for each data set, with bars (`_bar`)."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.data for row in rows))
    if not names:
        return
    with mpl.rc_context({"svg.hashsalt": "results", "svg.fonttype": "none"}):
        figure = Figure(figsize=(max(8.0, 3.2 * len(names)), 5.2), layout="constrained")
        grid = figure.subplots(2, len(names), sharex="col", squeeze=False)
        for column, data in enumerate(names):
            for axes, key, title in zip(grid[:, column], ("tail", "miou"), ("tail", "overall"), strict=True):
                for role, color in _COLORS.items():
                    points = [row for row in rows if (row.data, row.role) == (data, role)]
                    if not points:
                        continue
                    axes.errorbar(
                        [row.steps for row in points],
                        [row.values[key].mean for row in points],
                        yerr=np.transpose([_bar(row, key) for row in points]),
                        fmt="o-",
                        color=color,
                        label=role,
                        capsize=3,
                    )
                steps = sorted({row.steps for row in rows if row.data == data})
                axes.set_xscale("log")
                axes.set_xlim(steps[0] / 1.25, 1.25 * steps[-1])
                axes.set_xticks(steps, [f"{step:,}" for step in steps])
                axes.minorticks_off()
                axes.set_ylabel(f"{title} mIoU, %")
                axes.grid(alpha=0.3)
            grid[0, column].set_title(data)
            grid[1, column].set_xlabel("training steps")
        grid[0, 0].legend(frameon=False, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _bar(row: Budget, key: str) -> tuple[float, float]:
    """How far a bar reaches below and above the mean: the 95 % interval, or from one of two seeds to the other."""
    value = row.values[key]
    if row.seeds > 2:
        return value.half_width, value.half_width
    low, high = row.ranges[key]
    return value.mean - low, high - value.mean


def budget_table(rows: list[Budget]) -> str:
    """Means at each budget: cross-entropy with its rise since the budget before, others with the difference to it."""
    baselines = {(row.data, row.steps): row for row in rows if row.role == CE}
    lines = []
    for row in rows:
        earlier = [steps for data, steps in baselines if data == row.data and steps < row.steps]
        if row.role != CE:
            other = baselines.get((row.data, row.steps))
        else:
            other = baselines[row.data, max(earlier)] if earlier else None
        cells = [
            f"{value.mean:.1f}" + (f" ({value.mean - other.values[key].mean:+.1f})" if other else "")
            for key, value in row.values.items()
        ]
        lines.append(f"| {row.data} | {row.steps:,} | {row.role} | {row.method} | {row.seeds} | {' | '.join(cells)} |")
    if not lines:
        return ""
    return "\n".join([
        "## What more steps change\n",
        "![Tail and overall mIoU against the number of training steps](../images/results-budgets.svg)\n",
        "Mean IoU in %, averaged over the seeds; bars are 95 % intervals, of two seeds from one to the other. In "
        "brackets: for cross-entropy the gain over the next smaller budget, "
        "for the other methods the difference to cross-entropy. The best rival and AUCSeg are the methods that are "
        "best on held-out training images; in the older studies, which have no such scores, AUCSeg is the variant that "
        "the counts of the data advise, and the best rival the one with the best score here, which favours it. "
        "With a single seed, differences of a point are within the spread of seeds (see the intervals of the studies). "
        "The learning rate falls to zero over each budget, so every row is a separate training.\n",
        "| data | steps | | method | seeds | overall | head | middle | tail |",
        "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *lines,
    ])  # fmt: skip
