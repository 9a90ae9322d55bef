"""Writes ``docs/results.md`` and its figures from the results: ``python -m benchmarks.evidence.tables``."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.evidence.studies import BUDGETS, RESULTS, STUDIES

from aucseg.compare.statistics import paired_difference
from aucseg.compare.tables import METRICS, Table, make_tables, markdown_text

DOCS = Path(__file__).parents[2] / "docs"
BASELINE = "ce"

_HEAD = """# Results

This page is written by `python -m benchmarks.evidence.tables` from the files in `benchmarks/evidence/results`; every
number in it comes from there. How the comparisons are made: [A trustworthy comparison](compare.md).
"""

# Digests (`hashes.code` of a run) of the code whose training images had their colour channels permuted.
_PERMUTED = {"d60d30651117", "86a5c50e945d", "8ffa47038b8b", "8b058dc8e0eb", "c057b1650ef5"}


def main() -> None:
    text, figures = page(RESULTS)
    DOCS.joinpath("results.md").write_text(text, encoding="utf-8")
    for name, table in figures.items():
        draw(table, DOCS / "images" / name)
    print(f"docs/results.md, {len(figures)} figures")


def page(results: Path) -> tuple[str, dict[str, Table]]:
    """The page as Markdown, and the table behind each of its figures, by file name."""
    parts, figures, pending = [_HEAD], {}, []
    for name, study in STUDIES.items():
        if study.joins is not None:
            continue
        loaded = {n: load(results / f"{n}.json") for n, other in STUDIES.items() if name in (n, other.joins)}
        runs = [run for result in loaded.values() for run in result["runs"]]
        if not runs:
            pending.append(name)
            continue
        check_same_origin(name, runs)
        parts.append(f"## {study.title}\n\n{study.text}\n\n{_state(name, runs)}")
        for table in make_tables(values_of(runs), *_names(runs), BASELINE):
            figures[f"results-{name}-{table.model}.svg"] = table
            parts.append(
                f"![Tail and overall mIoU of each method](images/results-{name}-{table.model}.svg)\n\n"
                + markdown_text([table]).replace("### ", "### Model ")
            )
        parts.append(_pairs(study.pairs, runs))
        parts.append(_settings([choice for result in loaded.values() for choice in result["search"]]))
    parts.append(_budgets(results))
    parts.insert(1, _older(results))
    if pending:
        parts.append(_pending(pending))
    return "\n".join(part.rstrip() + "\n" for part in parts if part), figures


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
        "**Made before the training transforms were corrected**, and standing until they are run anew: the studies "
        f"{listed}. Until then the colour channels of a training image were permuted at random in half of the draws, "
        "scaled masks lay half a pixel off their images, and the crop's class cap could redraw a crop until a small "
        "object was gone; for all methods of a study alike. The digest of the code that made a run is in its JSON file "
        "(`hashes.code`)."
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
    return state if len(runs) >= wanted else f"{state} **Not complete: the others are to come.**"


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
        "### Pairs of methods, seed by seed, not corrected for their number\n",
        "| difference | mIoU | head | middle | tail |",
        "| --- | ---: | ---: | ---: | ---: |",
        *rows,
    ])  # fmt: skip


def _budgets(results: Path) -> str:
    """Means at each budget: cross-entropy with its rise since the budget before, others with the difference to it."""
    lines = []
    for data, (studies, methods) in BUDGETS.items():
        runs = [run for name in studies for run in load(results / f"{name}.json")["runs"]]
        before = None
        for steps in sorted({run["steps"] for run in runs if run["method"] == BASELINE}):
            at_budget = {method: _of(runs, method, steps) for method in methods}
            baseline = _means(at_budget[BASELINE])
            for method, found in ((method, found) for method, found in at_budget.items() if found):
                means, other = _means(found), before if method == BASELINE else baseline
                cells = [f"{means[key]:.1f}" + (f" ({means[key] - other[key]:+.1f})" if other else "") for key in means]
                lines.append(f"| {data} | {steps:,} | {method} | {len(found)} | {' | '.join(cells)} |")
            before = baseline
    if not lines:
        return ""
    return "\n".join([
        "## What more steps change\n",
        "From the studies above, means over the seeds of mean IoU in %; in brackets for cross-entropy the rise since "
        "the budget before, for the others the difference to cross-entropy. Where there is one seed, a point is within "
        "what seeds differ by (see the intervals above). The learning rate falls to zero over each budget, so that "
        "every row is a training of its own.\n",
        "| data | steps | method | seeds | overall | head | middle | tail |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        *lines,
    ])  # fmt: skip


def _of(runs: list[dict[str, Any]], method: str, steps: int) -> list[dict[str, Any]]:
    return [run for run in runs if run["method"] == method and run["steps"] == steps]


def _means(runs: list[dict[str, Any]]) -> dict[str, float]:
    return {
        key: statistics.mean(100 * run["metrics"][key] for run in runs) for key in ("miou", "head", "middle", "tail")
    }


def _settings(search: list[dict[str, Any]]) -> str:
    if not search:
        return ""
    rows = [
        f"| {choice['model']} | {choice['method']} | `{choice['setting'].rpartition('.')[2]}` | {choice['value']} "
        f"| {', '.join(f'{value}: {100 * score:.1f}' for value, score in choice['scores'].items())} |"
        for choice in search
    ]
    return "\n".join([
        "### Tuned settings\n",
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
