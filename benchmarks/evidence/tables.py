"""Writes `docs/results/` and its figures from the results: `python -m benchmarks.evidence.tables`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.evidence import shared_pages
from benchmarks.evidence.budgets import budget_table, budgets, draw_budgets
from benchmarks.evidence.shared_studies import SHARED_STUDIES
from benchmarks.evidence.studies import RESULTS, STUDIES

from aucseg.compare.intervals import paired_difference
from aucseg.compare.tables import METRICS, Table, make_tables, markdown_text

DOCS = Path(__file__).parents[2] / "docs"
BASELINE = shared_pages.BASELINE
_REHEARSAL = "rehearsal"

_INDEX = """# Results

Does the tail get better, on which data, and with how much training? These pages show every run that was made, one page
a study. `python -m benchmarks.evidence.tables` writes them from the files in `benchmarks/evidence/results`; every
number comes from there.
[A trustworthy comparison](../compare.md) explains how the runs are made and how to read the tables.

Names of methods: `ce` is cross-entropy, `auc` cross-entropy with the AUC loss, `aucseg` the same with the memory bank;
a number behind one of them is its AUC weight. `auc-inverse` is the AUC loss beside cross-entropy with the class weights
of the plan (inverse frequency, power 0.25). The others are [other losses](../rivals.md); `+bank` adds the bank,
`+rcs` rare-class sampling, `+rfs` repeat-factor sampling.
"""
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
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    if missing := [name for name in texts if f"results/{name}" not in navigation]:
        print(f"not in the navigation of mkdocs.yml yet: {', '.join(missing)}")


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
        search = [_as_now(choice) for result in loaded.values() for choice in result["search"]]
        for table in make_tables(values_of(runs), *_names(runs), BASELINE, tuned=shared_pages.tuned(search)):
            figures[f"results-{name}-{table.model}.svg"] = table
            parts.append(
                f"![Tail and overall mIoU of each method](../images/results-{name}-{table.model}.svg)\n\n"
                + markdown_text([table]).replace("### ", "## Model ")
            )
        parts.append(_pairs(study.pairs, runs))
        parts.append(shared_pages.scores_of_trials(search))
        parts.append(_older_note(runs))
        texts[f"{name}.md"] = _joined(parts)
        listed.append(f"- [{study.title}]({name}.md): {_state(name, runs)}")
    for name, shared in SHARED_STUDIES.items():
        result = load(results / f"{name}.json")
        if not result["runs"]:
            pending += [name] if name != _REHEARSAL else []
            continue
        check_same_origin(name, result["runs"])
        texts[f"{name}.md"], tables_of = shared_pages.page(name, shared, result)
        figures |= tables_of
        listed.append(f"- [{shared.title}]({name}.md): {shared_pages.state(shared, result['runs'])}")
    index = [_INDEX, _older(results), "## Studies\n\n" + "\n".join(listed) if listed else ""]
    index += [budget_table(budgets(results)), _pending(pending) if pending else ""]
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


def _as_now(choice: Mapping[str, Any]) -> dict[str, Any]:
    """What a search has chosen; in older results the scores say whether the best value was at the edge of its grid."""
    if "settings" in choice:
        return dict(choice)
    path, value = choice["setting"], choice["value"]
    tried = sorted(choice["scores"], key=float)
    at_edge = str(value) in (tried[0], tried[-1])
    name = path.rpartition(".")[2]
    return {
        "model": choice["model"],
        "method": choice["method"],
        "settings": {path: value},
        "tried": {path: tried},
        "at_edge": [path] if at_edge else [],
        "scores": {f"{name}={known}": score for known, score in choice["scores"].items()},
    }


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
    for name, shared in SHARED_STUDIES.items():
        if name in names:
            device = " --device cpu --working-tree --processes 2" if name.endswith("_cpu") else " --processes 8"
            root = "" if shared.embedded else f" --root {shared.card.upper()}_FOLDER"
            lines.append(f"python -m benchmarks.evidence.run {name} --minutes 60{device}{root}")
    lines += ["python -m benchmarks.evidence.tables", "```\n"]
    for name in names:
        study_or_shared = STUDIES[name] if name in STUDIES else SHARED_STUDIES[name]
        lines.append(f"- **{study_or_shared.title}.** {study_or_shared.text}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
