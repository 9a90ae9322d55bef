"""Writes ``docs/results/`` and its figures from the results: ``python -m benchmarks.evidence.tables``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence.studies import BUDGETS, RESULTS, STUDIES

from aucseg.compare.intervals import Interval, paired_difference, t_interval
from aucseg.compare.tables import METRICS, Table, make_tables, markdown_text

DOCS = Path(__file__).parents[2] / "docs"
BASELINE = "ce"

_INDEX = """# Results

Does the tail get better, on which data, and with how much training? These pages show every run that was made, one page
a study. `python -m benchmarks.evidence.tables` writes them from the files in `benchmarks/evidence/results`; every
number comes from there.
[A trustworthy comparison](../compare.md) explains how the runs are made and how to read the tables.

Names of methods: `ce` is cross-entropy, `auc` cross-entropy with the AUC loss, `aucseg` the same with the memory bank;
a number behind one of them is its AUC weight. The others are [other losses](../rivals.md); `+bank` adds the bank,
`+rcs` rare-class sampling.
"""
_COLORS = {"ce": "#0072b2", "aucseg": "#d55e00", "auc": "#d55e00", "aucseg-1": "#cc79a7", "auc-1": "#cc79a7"}
_LABELS = {
    "ce": "cross-entropy",
    "aucseg": "AUCSeg, AUC weight 2",
    "aucseg-1": "AUCSeg, AUC weight 1",
    "auc": "AUC loss, weight 2",
    "auc-1": "AUC loss, weight 1",
}


@dataclass(frozen=True)
class Budget:
    """What a method reaches with a number of steps: mean IoU in % over the seeds, by group."""

    data: str
    steps: int
    method: str
    seeds: int
    values: Mapping[str, Interval]


# Digests (`hashes.code` of a run) of the code whose training images had their colour channels permuted.
_PERMUTED = {"d60d30651117", "86a5c50e945d", "8ffa47038b8b", "8b058dc8e0eb", "c057b1650ef5"}


def main() -> None:
    texts, figures = pages(RESULTS)
    folder = DOCS / "results"
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, table in figures.items():
        draw(table, DOCS / "images" / name)
    draw_budgets(budgets(RESULTS), DOCS / "images" / "results-budgets.svg")
    print(f"docs/results: {len(texts)} pages, {len(figures) + 1} figures")


def pages(results: Path) -> tuple[dict[str, str], dict[str, Table]]:
    """A page for each study and their index as Markdown, and the table behind each figure, all by file name."""
    texts, figures, listed, pending = {}, {}, [], []
    for name, study in STUDIES.items():
        if study.joins is not None:
            continue
        loaded = {n: load(results / f"{n}.json") for n, other in STUDIES.items() if name in (n, other.joins)}
        runs = [run for result in loaded.values() for run in result["runs"]]
        if not runs:
            pending.append(name)
            continue
        check_same_origin(name, runs)
        parts = [f"# {study.title}\n\n{study.text}\n\n{_state(name, runs)}"]
        for table in make_tables(values_of(runs), *_names(runs), BASELINE):
            figures[f"results-{name}-{table.model}.svg"] = table
            parts.append(
                f"![Tail and overall mIoU of each method](../images/results-{name}-{table.model}.svg)\n\n"
                + markdown_text([table]).replace("### ", "## Model ")
            )
        parts.append(_pairs(study.pairs, runs))
        parts.append(_settings([choice for result in loaded.values() for choice in result["search"]]))
        parts.append(_older_note(runs))
        texts[f"{name}.md"] = _joined(parts)
        listed.append(f"- [{study.title}]({name}.md): {_state(name, runs)}")
    index = [_INDEX, _older(results), "## Studies\n\n" + "\n".join(listed) if listed else ""]
    index += [_budget_table(budgets(results)), _pending(pending) if pending else ""]
    return {"index.md": _joined(index), **texts}, figures


def _joined(parts: list[str]) -> str:
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def _older_note(runs: list[dict[str, Any]]) -> str:
    is_older = any(run["hashes"]["code"] in _PERMUTED for run in runs)
    return "Made before the training transforms were corrected, see [Results](index.md)." if is_older else ""


def load(path: Path) -> dict[str, Any]:
    """A study's results, or none."""
    if not path.is_file():
        return {"runs": [], "search": []}
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def check_same_origin(name: str, runs: list[dict[str, Any]]) -> None:
    """ValueError where runs of one table are of different code or data."""
    for part in ("code", "data"):
        digests = {run["hashes"][part] for run in runs}
        if len(digests) > 1:
            raise ValueError(f"the runs of {name!r} are of different {part} ({', '.join(sorted(digests))})")


def values_of(runs: list[dict[str, Any]]) -> dict[tuple[str, str, int], dict[str, float]]:
    """Metrics by (model, method, seed), as `make_tables` takes them."""
    values = {}
    for run in runs:
        measured: Mapping[str, Any] = {**run["metrics"], **run["cost"]}
        values[run["model"], run["method"], run["seed"]] = {
            metric.key: math.nan if measured.get(metric.key) is None else float(measured[metric.key])
            for metric in METRICS
        }
    return values


def draw(table: Table, path: Path) -> None:
    """Tail and overall mIoU with 95 % intervals, the methods in the order of their tail."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    cells = [table.cells[key] for key in ("tail", "miou")]
    methods = sorted(table.seeds, key=lambda method: cells[0][method].mean.mean)
    with mpl.rc_context({"svg.hashsalt": "results", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 1 + 0.28 * len(methods)), layout="constrained")
        for axes, column, title in zip(figure.subplots(1, 2, sharey=True), cells, ("tail", "overall"), strict=True):
            for row, method in enumerate(methods):
                mean = column[method].mean
                half_width = 0 if math.isnan(mean.half_width) else mean.half_width
                color = "#d55e00" if method.startswith("auc") else "#0072b2"
                axes.errorbar(mean.mean, row, xerr=half_width, fmt="o", color=color, capsize=3)
            if table.baseline in column:  # the baseline may have no run yet
                axes.axvline(column[table.baseline].mean.mean, color="#777777", linewidth=0.8, linestyle=":")
            axes.set_yticks(range(len(methods)), methods)
            axes.set_ylim(-0.6, len(methods) - 0.4)
            axes.set_xlabel(f"{title} mIoU, %")
            axes.grid(axis="x", alpha=0.3)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _older(results: Path) -> str:
    """Which studies were run before the training transforms were corrected."""
    names = [
        name
        for name in STUDIES
        if any(run["hashes"]["code"] in _PERMUTED for run in load(results / f"{name}.json")["runs"])
    ]
    if not names:
        return ""
    listed = ", ".join(f"`{name}`" for name in names)
    return (
        "**Made before the training transforms were corrected**, and kept until they are run again: the studies "
        f"{listed}. At that time the colour channels of a training image were permuted at random in half of the "
        "draws, scaled masks were half a pixel off their images, and the class cap of the crop could redraw a crop "
        "until a small object was gone. All methods of a study were affected alike. Each run's JSON file has the "
        "digest of the code that made it (`hashes.code`)."
    )


def _names(runs: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Models and methods, the methods as the studies list them."""
    listed = [method for study in STUDIES.values() for method in study.methods]
    methods = sorted(
        {run["method"] for run in runs}, key=lambda m: (m not in listed, listed.index(m) if m in listed else 0, m)
    )
    return sorted({run["model"] for run in runs}), methods


def _state(name: str, runs: list[dict[str, Any]]) -> str:
    wanted = sum(study.number_of_runs for n, study in STUDIES.items() if name in (n, study.joins))
    steps = sorted({run["steps"] for run in runs})
    state = f"{len(runs)} of {wanted} runs, {' or '.join(map(str, steps))} steps."
    return state if len(runs) >= wanted else f"{state} **Not complete: the other runs are still to be made.**"


def _pairs(pairs: tuple[tuple[str, str], ...], runs: list[dict[str, Any]]) -> str:
    """Differences seed by seed between methods of a study with one model, where both have run."""
    metrics = ("miou", "head", "middle", "tail")
    rows = []
    for method, other in pairs:
        cells = []
        for key in metrics:
            one, two = (
                {run["seed"]: 100 * run["metrics"][key] for run in runs if run["method"] == name}
                for name in (method, other)
            )
            if len(one.keys() & two.keys()) > 1:
                difference = paired_difference(one, two)
                low, high = (difference.mean + sign * difference.half_width for sign in (-1, 1))
                cells.append(f" {difference.mean:+.1f} [{low:.1f}, {high:.1f}] |")
        if cells:
            rows.append(f"| {method} - {other} |{''.join(cells)}")
    if not rows:
        return ""
    return "\n".join([
        "## Pairs of methods\n",
        "Differences seed by seed, not corrected for the number of pairs.\n",
        "| difference | mIoU | head | middle | tail |",
        "| --- | ---: | ---: | ---: | ---: |",
        *rows,
    ])  # fmt: skip


def budgets(results: Path) -> list[Budget]:
    """What the methods of `BUDGETS` reach with more and more steps, where they have been run."""
    found = []
    for data, (studies, methods) in BUDGETS.items():
        runs = [run for name in studies for run in load(results / f"{name}.json")["runs"] if run["method"] in methods]
        for steps in sorted({run["steps"] for run in runs if run["method"] == BASELINE}):
            for method in methods:
                metrics = [run["metrics"] for run in runs if (run["method"], run["steps"]) == (method, steps)]
                if metrics:
                    keys = ("miou", "head", "middle", "tail")
                    values = {key: t_interval([100 * metric[key] for metric in metrics]) for key in keys}
                    found.append(Budget(data, steps, method, len(metrics), values))
    return found


def draw_budgets(rows: list[Budget], path: Path) -> None:
    """Tail and overall mean IoU against the number of steps, a column for each data set, with 95 % intervals."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.data for row in rows))
    with mpl.rc_context({"svg.hashsalt": "results", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 5.2), layout="constrained")
        grid = figure.subplots(2, len(names), sharex="col", squeeze=False)
        for column, data in enumerate(names):
            for axes, key, title in zip(grid[:, column], ("tail", "miou"), ("tail", "overall"), strict=True):
                for method in dict.fromkeys(row.method for row in rows if row.data == data):
                    points = [row for row in rows if (row.data, row.method) == (data, method)]
                    axes.errorbar(
                        [row.steps for row in points],
                        [row.values[key].mean for row in points],
                        yerr=[0.0 if row.seeds == 1 else row.values[key].half_width for row in points],
                        fmt="o-",
                        color=_COLORS[method],
                        label=_LABELS[method],
                        capsize=3,
                    )
                steps = sorted({row.steps for row in rows if row.data == data})
                axes.set_xscale("log")
                axes.set_xticks(steps, [f"{step:,}" for step in steps])
                axes.minorticks_off()
                axes.set_ylabel(f"{title} mIoU, %")
                axes.grid(alpha=0.3)
            grid[0, column].set_title(data)
            grid[0, column].legend(frameon=False, fontsize=8)
            grid[1, column].set_xlabel("training steps")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _budget_table(rows: list[Budget]) -> str:
    """Means at each budget: cross-entropy with its rise since the budget before, others with the difference to it."""
    baselines = {(row.data, row.steps): row for row in rows if row.method == BASELINE}
    lines = []
    for row in rows:
        earlier = [steps for data, steps in baselines if data == row.data and steps < row.steps]
        if row.method != BASELINE:
            other = baselines.get((row.data, row.steps))
        else:
            other = baselines[row.data, max(earlier)] if earlier else None
        cells = [
            f"{value.mean:.1f}" + (f" ({value.mean - other.values[key].mean:+.1f})" if other else "")
            for key, value in row.values.items()
        ]
        lines.append(f"| {row.data} | {row.steps:,} | {row.method} | {row.seeds} | {' | '.join(cells)} |")
    if not lines:
        return ""
    return "\n".join([
        "## What more steps change\n",
        "![Tail and overall mIoU against the number of training steps](../images/results-budgets.svg)\n",
        "Mean IoU in %, averaged over the seeds. In brackets: for cross-entropy the gain over the next smaller budget, "
        "for the other methods the difference to cross-entropy. With a single seed, differences of a point are within "
        "the spread of seeds (see the intervals of the studies). The learning rate falls to zero over each budget, so "
        "every row is a separate training.\n",
        "| data | steps | method | seeds | overall | head | middle | tail |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        *lines,
    ])  # fmt: skip


def _settings(search: list[dict[str, Any]]) -> str:
    if not search:
        return ""
    rows = [
        f"| {choice['model']} | {choice['method']} | `{choice['setting'].rpartition('.')[2]}` | {choice['value']} "
        f"| {', '.join(f'{value}: {100 * score:.1f}' for value, score in choice['scores'].items())} |"
        for choice in search
    ]
    return "\n".join([
        "## Tuned settings\n",
        "| model | method | setting | chosen | overall mIoU on held-out training images |",
        "| --- | --- | --- | --- | --- |",
        *rows,
    ])  # fmt: skip


def _pending(names: list[str]) -> str:
    lines = [
        "## Not measured yet\n",
        "The full tables are pending. These commands produce them, in pieces of any length:\n",
    ]
    lines.append("```text")
    for name, study in STUDIES.items():
        if name in names or study.joins in names:
            root = " --root CAMVID_FOLDER" if study.needs_root else ""
            lines.append(f"python -m benchmarks.evidence.run {name} --minutes 60{root}")
    lines += ["python -m benchmarks.evidence.tables", "```\n"]
    lines += [f"- **{STUDIES[name].title}.** {STUDIES[name].text}" for name in names]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
