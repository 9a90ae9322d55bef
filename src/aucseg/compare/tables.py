"""The comparison as text for a terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aucseg.compare.intervals import LEVEL, Cell, Interval, summarize

Values = Mapping[tuple[str, str, int], Mapping[str, float]]
"""Metrics by (model, method, seed); folds take the place of seeds in a cross-validation."""


@dataclass(frozen=True)
class Metric:
    """A column: where it is in a result, its heading, factor, decimals, and whether larger is better."""

    key: str
    heading: str
    factor: float = 100.0
    decimals: int = 1
    ranked: bool = True


METRICS = (
    Metric("miou", "mIoU"),
    Metric("head", "head"),
    Metric("middle", "middle"),
    Metric("tail", "tail"),
    Metric("auroc", "AUC", decimals=2),
    Metric("tail_ap", "tail AP"),
    Metric("seconds_per_step", "s/step", factor=1.0, decimals=3, ranked=False),
    Metric("peak_memory", "MB", factor=1e-6, decimals=0, ranked=False),
)


@dataclass(frozen=True)
class Tuned:
    """A setting that a search has chosen.

    Attributes:
        name: Last part of its name.
        values: The best value; one for each fold of a cross-validation.
        tried: All values that were tried, in ascending order.
        at_edge: Whether the best one still lies at the edge of these.
    """

    name: str
    values: tuple[Any, ...]
    tried: tuple[Any, ...]
    at_edge: bool


@dataclass(frozen=True)
class Table:
    """All methods of one model.

    Attributes:
        model: Name of the model.
        baseline: Method that the others are compared with.
        seeds: Number of finished seeds or folds of each method, in the order of the rows.
        columns: Metrics that at least one run has.
        cells: Cell by metric and method.
        folds: Number of folds of a cross-validation, None for seeds.
        tuned: The settings that a search has chosen, by method.
    """

    model: str
    baseline: str
    seeds: Mapping[str, int]
    columns: Sequence[Metric]
    cells: Mapping[str, Mapping[str, Cell]]
    folds: int | None = None
    tuned: Mapping[str, Sequence[Tuned]] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What the means are over."""
        return unit_of(self.folds)


def unit_of(folds: int | None) -> str:
    """What the runs of a method differ in: `"seed"`, or `"fold"` in a cross-validation."""
    return "seed" if folds is None else "fold"


def make_tables(
    values: Values,
    models: Sequence[str],
    methods: Sequence[str],
    baseline: str,
    folds: int | None = None,
    tuned: Mapping[tuple[str, str], Sequence[Tuned]] | None = None,
) -> list[Table]:
    """One table for each model that has a finished run.

    Args:
        values: Metrics as they are in results: IoU, AUC and AP in 0..1, seconds, bytes.
        models: Models in the order of the tables.
        methods: Methods in the order of the rows.
        baseline: One of the methods.
        folds: Number of folds of a cross-validation, None for seeds.
        tuned: The settings that a search has chosen, by model and method.
    """
    tables = []
    for model in models:
        runs = {(m, seed): metrics for (owner, m, seed), metrics in values.items() if owner == model}
        rows = [method for method in methods if any(m == method for m, _ in runs)]
        if not rows:
            continue
        columns = [c for c in METRICS if any(not math.isnan(run.get(c.key, math.nan)) for run in runs.values())]
        cells = {}
        for column in columns:
            by_method = {
                method: {s: column.factor * r.get(column.key, math.nan) for (m, s), r in runs.items() if m == method}
                for method in rows
            }
            cells[column.key] = summarize(by_method, baseline, rank=column.ranked, folds=folds)
        seeds = {method: sum(m == method for m, _ in runs) for method in rows}
        chosen = {method: settings for (m, method), settings in (tuned or {}).items() if m == model}
        tables.append(Table(model, baseline, seeds, columns, cells, folds, chosen))
    return tables


_MARKS = {
    "terminal": {"best": "{}**", "second": "{}*", "": "{}"},
    "markdown": {"best": "**{}**", "second": "<u>{}</u>", "": "{}"},
    "latex": {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "": "{}"},
}
_PLUS_MINUS = {"terminal": "±", "markdown": "±", "latex": r"$\pm$"}
_AT_EDGE = {"terminal": "^", "markdown": "‡", "latex": r"$^\ddagger$"}
_TUNED = "tuned"
_SIGNIFICANT = {"terminal": "!", "markdown": "†", "latex": r"$^\dagger$"}


def terminal_text(tables: Sequence[Table], *, notes: bool = True) -> str:
    """Aligned text, with what the marks mean below or not."""

    def block(rows: list[list[str]]) -> str:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        is_text = [place == 0 or heading == _TUNED for place, heading in enumerate(rows[0])]
        lines = [
            "  ".join(c.ljust(w) if left else c.rjust(w) for c, w, left in zip(row, widths, is_text, strict=True))
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)

    return _sections(tables, "terminal", block, "{}\n", notes=notes)


def markdown_text(tables: Sequence[Table]) -> str:
    """GitHub's Markdown."""

    def block(rows: list[list[str]]) -> str:
        head, *body = [[cell.replace("|", r"\|") for cell in row] for row in rows]
        rule = ["---", *("---" if heading == _TUNED else "---:" for heading in head[1:])]
        return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])

    return _sections(tables, "markdown", block, "### {}\n\n")


def latex_text(tables: Sequence[Table]) -> str:
    """Tables for the LaTeX package booktabs."""

    def block(rows: list[list[str]]) -> str:
        head, *body = [" & ".join(row) + r" \\" for row in rows]
        columns = "l" + "".join("l" if heading == _TUNED else "r" for heading in rows[0][1:])
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
        return "\n".join([*lines, r"\end{tabular}"])

    return _sections(tables, "latex", block, "% {}\n")


def csv_text(tables: Sequence[Table]) -> str:
    """A line for each model, method and metric, with every number behind the tables."""
    fields = (
        *("model", "method", "metric", "unit", f"{_unit(tables)}s", "mean", "ci_low", "ci_high", "baseline"),
        *("difference", "difference_ci_low", "difference_ci_high", "p", "p_holm", "mark", _TUNED),
    )
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(fields)
    for table in tables:
        for column in table.columns:
            unit = {100.0: "%", 1.0: "s", 1e-6: "MB"}[column.factor]
            for method, cell in table.cells[column.key].items():
                mean, difference = cell.mean, cell.difference
                row: list[Any] = [table.model, method, column.key, unit, mean.n, *_limits(mean)]
                row += [table.baseline, *(("",) * 4 if difference is None else (*_limits(difference), difference.p))]
                settings = tuned_text(table.tuned.get(method, ()), "terminal")
                writer.writerow([_plain(value) for value in (*row, cell.p_holm, cell.mark, settings)])
    return out.getvalue()


def _sections(
    tables: Sequence[Table], style: str, block: Callable[[list[list[str]]], str], heading: str, *, notes: bool = True
) -> str:
    parts = []
    for table in tables:
        parts.append(heading.format(_text(table.model, style)) + block(_mean_rows(table, style)))
        if len(table.seeds) > 1 and table.baseline in table.seeds:
            title = _text(f"{table.model}, difference to {table.baseline}", style)
            parts.append(heading.format(title) + block(_difference_rows(table, style)))
    if notes:
        start, end = {"terminal": ("", "\n"), "markdown": ("", " "), "latex": ("% ", "\n")}[style]
        parts.append(end.join(start + note for note in _notes(tables, style)))
    return "\n\n".join(parts) + "\n"


def _unit(tables: Sequence[Table]) -> str:
    return tables[0].unit if tables else unit_of(None)


def _notes(tables: Sequence[Table], style: str) -> list[str]:
    unit = _unit(tables)
    costs = dict.fromkeys(column.heading for table in tables for column in table.columns if not column.ranked)
    plain = f"; {' and '.join(costs)} are means" if costs else ""
    best, second = (_MARKS[style][mark].format("best") for mark in ("best", "second"))
    if style == "latex":
        best, second = "bold", "underlined"
    notes = [
        f"Means in % over the {unit}s with half the width of their 95 % t interval{plain}.",
        f"Marked where significant (paired t tests, Holm, {LEVEL:.0%}): {best} above all others,"
        f" {second.replace('best', 'second')} above all but the best.",
        f"Differences {unit} by {unit} with 95 % intervals; {_SIGNIFICANT[style]} significant after Holm's correction"
        " over the methods.",
    ]
    if any(
        interval is not None and interval.n not in (0, table.seeds[method])
        for table in tables
        for by_method in table.cells.values()
        for method, cell in by_method.items()
        for interval in (cell.mean, cell.difference)
    ):
        notes.append(f"(n): over n {unit}s alone, those that have a value.")
    if unit == "fold":
        notes.append("Folds share training images: their intervals are widened for it (Nadeau and Bengio, 2003).")
    if any(table.tuned for table in tables):
        notes.append(
            "Tuned on held-out training images: the best value and all that were tried, setting after setting;"
            f" {_AT_EDGE[style]} the best one lies at the edge of these."
        )
    return notes


def tuned_text(settings: Sequence[Tuned], style: str) -> str:
    """What was tuned for a method, as a cell of a table.

    Example:
        >>> tuned_text([Tuned("tau", (0.5,), (0.25, 0.5), True)], "terminal")
        'tau 0.5^ of 0.25, 0.5'
    """
    texts = []
    for setting in settings:
        value = _text("/".join(map(str, setting.values)), style)
        mark = _AT_EDGE[style] if setting.at_edge else ""
        tried = "not tuned" if len(setting.tried) == 1 else f"of {', '.join(map(str, setting.tried))}"
        texts.append(f"{_text(setting.name, style)} {value}{mark} {_text(tried, style)}")
    return "; ".join(texts)


def _mean_rows(table: Table, style: str) -> list[list[str]]:
    heading = [_TUNED] if table.tuned else []
    rows = [["method", f"{table.unit}s", *(column.heading for column in table.columns), *heading]]
    for method, count in table.seeds.items():
        cells = [
            _MARKS[style][cell.mark].format(_mean_text(cell.mean, count, column, style))
            for column in table.columns
            for cell in (table.cells[column.key][method],)
        ]
        settings = [tuned_text(table.tuned.get(method, ()), style)] if table.tuned else []
        rows.append([_text(method, style), str(count), *cells, *settings])
    return rows


def _mean_text(mean: Interval, count: int, column: Metric, style: str) -> str:
    if math.isnan(mean.mean):
        return "-"
    text = f"{mean.mean:.{column.decimals}f}"
    if column.ranked and not math.isnan(mean.half_width):
        text += f" {_PLUS_MINUS[style]} {mean.half_width:.{column.decimals}f}"
    return text + _number_text(mean, count)


def _number_text(interval: Interval, count: int) -> str:
    return "" if interval.n == count else f" ({interval.n})"


def _difference_rows(table: Table, style: str) -> list[list[str]]:
    columns = [column for column in table.columns if column.ranked]
    rows = [["method", *(column.heading for column in columns)]]
    for method, count in table.seeds.items():
        if method == table.baseline:
            continue
        row = [_text(method, style)]
        for column in columns:
            cell = table.cells[column.key][method]
            difference = cell.difference
            row.append("-" if difference is None else _difference_text(cell, difference, count, column, style))
        rows.append(row)
    return rows


def _difference_text(cell: Cell, difference: Interval, count: int, column: Metric, style: str) -> str:
    if math.isnan(difference.mean):
        return "-"
    text = f"{difference.mean:+.{column.decimals}f}"
    if not math.isnan(difference.half_width):
        low, high = (difference.mean + sign * difference.half_width for sign in (-1, 1))
        text += f" [{low:.{column.decimals}f}, {high:.{column.decimals}f}]"
    text += _number_text(difference, count)
    return text + _SIGNIFICANT[style] if cell.p_holm < LEVEL else text


def _text(text: str, style: str) -> str:
    if style != "latex":
        return text
    return "".join("\\" + c if c in "&%$#_{}" else c for c in text)


def _limits(interval: Interval) -> tuple[float, float, float]:
    return interval.mean, interval.mean - interval.half_width, interval.mean + interval.half_width


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
