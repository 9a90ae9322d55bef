"""The HTML page: run folders and example pictures in, one file out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aucseg.report.encode import Color, distinct_palette, labels_uri, outline_uri, photo_uri
from aucseg.report.examples import Example, Paste, class_ids_in
from aucseg.report.runs import GROUP_NAMES, Comparison, Run, load_comparison
from aucseg.report.text import points, short_count, signed_points

_FOLDER = Path(__file__).parent
_METRIC_TITLES = {
    "miou": "Overall mIoU",
    "head": "Head mIoU",
    "middle": "Middle mIoU",
    "tail": "Tail mIoU",
    "auroc": "Pixel AUC",
    "tail_ap": "Tail AP",
    "loss": "Validation loss",
}
# Curves in this order; the losses first.
_PANELS = {"train/loss": "Training loss", "val/loss": "Validation loss"} | {
    f"val/{name}": title for name, title in _METRIC_TITLES.items() if name != "loss"
}
_LOWER_IS_BETTER = ("loss",)
# More rows, and more panels, than this are folded away.
_MAX_OPEN, _MAX_OPEN_PANELS = 12, 6
_NUM_MISTAKES = 3
_NUM_FALLBACK = 2


def build_report(
    run_folders: Sequence[str | Path],
    out: str | Path,
    *,
    titles: Sequence[str] | None = None,
    baseline: str | None = None,
    samples: Sequence[Example] | None = None,
    pastes: Sequence[Paste] | None = None,
    statistics: Any = None,
    title: str | None = None,
) -> Path:
    """Writes one self-contained HTML page about finished or running runs.

    What a run does not hold yet is left out, and the page says why.

    Args:
        run_folders: folders that ``aucseg fit --out`` writes, all on one data set.
        out: the HTML file to write; its folder is made.
        titles: a name for each run, by default the folder names.
        baseline: title of the run that the others are compared with, by default the first.
        samples: validation images with predictions, from `collect_examples`.
        pastes: training images before and after the bank, from `collect_pastes`.
        statistics: pixel counts of the training split, as `ClassStatistics` or K numbers; by default the truth of the
            validation split is counted.
        title: heading of the page, by default made of the titles.

    Returns:
        The path of the file.

    Raises:
        ValueError: folders, titles or statistics that do not fit together; predictions of an unknown run.
        ImportError: without jinja2.

    Example:
        >>> import json, tempfile
        >>> run = Path(tempfile.mkdtemp(), "ce")
        >>> run.mkdir()
        >>> result = {"step": 10, "metrics": {"miou": 0.5}, "per_class_iou": {"road": 0.9, "sign": 0.1}, "groups": None}
        >>> _ = (run / "result.json").write_text(json.dumps(result))
        >>> build_report([run], run / "report.html").name
        'report.html'
    """
    comparison = load_comparison(run_folders, titles=titles, baseline=baseline, statistics=statistics)
    html = render(comparison, samples=samples or (), pastes=pastes or (), title=title)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    return out


def render(
    comparison: Comparison, *, samples: Sequence[Example] = (), pastes: Sequence[Paste] = (), title: str | None = None
) -> str:
    """The page as text; see `build_report`."""
    try:
        import jinja2
        from markupsafe import Markup

        from aucseg.report import charts
    except ImportError as error:
        raise ImportError('the report needs jinja2: pip install "aucseg[report]"') from error

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(points=points, signed_points=signed_points, short_count=short_count)
    run_titles = [run.title for run in comparison.runs]
    palette = distinct_palette(comparison.palette)
    pictures = _pictures(comparison, samples, palette)
    # Our own files, no input.
    css, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    context: dict[str, Any] = {
        "title": title or " beside ".join(run_titles[:3]) + (" and others" if len(run_titles) > 3 else ""),
        "c": comparison,
        "headline": headline(comparison),
        "tiles": _tiles(comparison),
        "metric_columns": _metric_columns(comparison),
        "class_rows": _class_rows(comparison, palette),
        "confusions": _confusions(comparison),
        "roc_panels": _roc_panels(comparison),
        "curve_panels": _curve_panels(comparison),
        "sliders": pictures["sliders"],
        "statics": pictures["statics"],
        "pastes": [_paste_card(paste, comparison, palette) for paste in pastes],
        "max_open": _MAX_OPEN,
        "max_open_panels": _MAX_OPEN_PANELS,
        "legend_marks": [charts.legend_mark(i) for i in range(len(comparison.runs))],
        "num_styles": charts.NUM_STYLES,
        "class_chart": charts.class_chart(comparison) if _has_class_iou(comparison) else None,
        "css": Markup(css),  # nosec B704
        "script": Markup(script),  # nosec B704
        "data": {"classes": comparison.class_names, "palette": palette, "runs": run_titles},
    }
    context["left_out"] = _left_out(context)
    return environment.get_template("template.html").render(context)


def _has_class_iou(comparison: Comparison) -> bool:
    return any(run.per_class_iou for run in comparison.runs)


def _left_out(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Sections without data, each with the reason in one line."""
    comparison: Comparison = context["c"]
    has_confusion = any(run.confusion is not None for run in comparison.runs)
    if len(comparison.runs) < 2:
        slider_reason = "it takes two runs to compare."
    else:
        slider_reason = "no validation image with predictions of the baseline and another run was given."
    if not has_confusion:
        confusion_reason = "no run has confusion.json yet; it is written with each validation."
    elif not comparison.tail:
        confusion_reason = "no class is in the tail."
    else:
        confusion_reason = "the validation split holds no pixel of a tail class."
    reasons = {
        "metric_columns": ("Results", "no run has been validated yet."),
        "class_chart": ("IoU by class frequency", "no run has result.json yet; it is written with each validation."),
        "sliders": ("Largest gains and losses", slider_reason),
        "statics": ("Validation images", "no predictions were given; they need a checkpoint of each run."),
        "confusions": ("What the tail is mistaken for", confusion_reason),
        "roc_panels": (
            "ROC curves of the tail",
            "no run has curves.json; a validation with model.pixel_metrics: true writes it.",
        ),
        "curve_panels": ("Loss and learning curves", "no run has logged anything to metrics.csv yet."),
        "pastes": (
            "Where the bank pasted",
            "no pasted images were given; they need a checkpoint of a run with a bank.",
        ),
    }
    return [reason for key, reason in reasons.items() if not context[key]]


def headline(comparison: Comparison) -> str:
    """The result in one sentence, or "" where nothing can be compared."""
    baseline, other = comparison.baseline, comparison.challenger
    if other is None:
        return ""
    parts = []
    for name, words in (("tail", "tail mIoU"), ("miou", "overall"), ("head", "head"), ("middle", "middle")):
        if name in baseline.metrics and name in other.metrics:
            before, after = baseline.metrics[name], other.metrics[name]
            parts.append(f"{words} {points(after)} against {points(before)} ({signed_points(after - before)})")
    return f"{other.title} compared with {baseline.title}: {', '.join(parts)}." if parts else ""


def _tiles(comparison: Comparison) -> list[dict[str, Any]]:
    """Bars of the four main numbers."""
    tiles = []
    for name in ("miou", *GROUP_NAMES):
        values = [run.metrics.get(name) for run in comparison.runs]
        known = [value for value in values if value is not None]
        if not known:
            continue
        challenger = comparison.challenger
        gain = None
        if challenger is not None and name in challenger.metrics and values[0] is not None:
            gain = challenger.metrics[name] - values[0]
        num_classes = len((comparison.groups or {}).get(name, ())) if name != "miou" else len(comparison.class_names)
        tiles.append(
            {
                "title": _METRIC_TITLES[name].removesuffix(" mIoU"),
                "num_classes": num_classes,
                "gain": gain,
                "rows": [(run.title, value) for run, value in zip(comparison.runs, values, strict=True)],
            }
        )
    return tiles


@dataclass(frozen=True)
class _Column:
    title: str
    is_share: bool
    values: tuple[float | None, ...]
    best: float | None

    def text(self, value: float | None) -> str:
        if value is None:
            return "–"
        return points(value) if self.is_share else f"{value:.3f}"

    def difference(self, value: float | None) -> str:
        before = self.values[0]
        return signed_points(value - before) if self.is_share and value is not None and before is not None else ""


def _metric_columns(comparison: Comparison) -> list[_Column]:
    names = {name for run in comparison.runs for name in run.metrics}
    ordered = [name for name in _METRIC_TITLES if name in names] + sorted(names - _METRIC_TITLES.keys())
    columns = []
    for name in ordered:
        values = tuple(run.metrics.get(name) for run in comparison.runs)
        known = [value for value in values if value is not None]
        # The losses of different methods are different functions: none is the best.
        best = max(known) if name not in _LOWER_IS_BETTER and len(known) > 1 else None
        is_share = name in _METRIC_TITLES and name not in _LOWER_IS_BETTER
        columns.append(_Column(_METRIC_TITLES.get(name, name), is_share, values, best))
    return columns


def _class_rows(comparison: Comparison, palette: Sequence[Color]) -> list[dict[str, Any]]:
    rows = []
    for rank, class_id in enumerate(comparison.order, start=1):
        name = comparison.class_names[class_id]
        ious = [run.per_class_iou.get(name) for run in comparison.runs]
        before = ious[0]
        rows.append(
            {
                "rank": rank,
                "name": name,
                "color": _css_color(palette[class_id]),
                "group": comparison.group_of(class_id),
                "share": comparison.share(class_id),
                "share_text": comparison.share_text(class_id),
                "ious": ious,
                "gains": [None if i is None or before is None else i - before for i in ious[1:]],
            }
        )
    return rows


def _confusions(comparison: Comparison) -> list[dict[str, Any]]:
    """For each tail class and run: the shares of its pixels that went to itself, to the main mistakes, to the rest."""
    from aucseg.report import charts

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


def _roc_panels(comparison: Comparison) -> list[dict[str, Any]]:
    from aucseg.report import charts

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


def _curve_panels(comparison: Comparison) -> list[dict[str, Any]]:
    from aucseg.report import charts

    panels = []
    for column, title in _PANELS.items():
        runs = [(i, run) for i, run in enumerate(comparison.runs) if run.history.get(column)]
        if not runs:
            continue
        is_share = "loss" not in column
        format_y: Callable[[float], str] = points if is_share else lambda value: f"{value:.3g}"
        highest = max(value for _, run in runs for _, value in run.history[column])
        chart = charts.line_chart(
            [(i, run.title, charts.thin(run.history[column])) for i, run in runs],
            label=f"{title} by step",
            x_label="step",
            # Shares start at 0, so that heights compare; losses use the room they need.
            y_range=(0.0, min(1.0, 1.1 * highest) or 1.0) if is_share else None,
            format_y=format_y,
            format_tick=(lambda value: f"{100 * value:g}") if is_share else None,
        )
        values = [(i, run.title, format_y(run.history[column][-1][1])) for i, run in runs]
        panels.append({"title": title + (", %" if is_share else ""), "chart": chart, "values": values})
    return panels


def _pictures(comparison: Comparison, samples: Sequence[Example], palette: Sequence[Color]) -> dict[str, Any]:
    titles = {run.title for run in comparison.runs}
    for example in samples:
        unknown = example.predictions.keys() - titles
        if unknown:
            raise ValueError(
                f"example {example.name!r} has predictions of {sorted(unknown)}, but the runs are {titles}"
            )
    statics = [example for example in samples if example.role == "sample"]
    compared = [(example, _gain(example, comparison)) for example in samples if example.role != "sample"]
    if not compared:
        ranked = sorted(((example, _gain(example, comparison)) for example in statics), key=lambda pair: pair[1] or 0.0)
        gains = [pair for pair in ranked[::-1] if (pair[1] or 0.0) > 0][:_NUM_FALLBACK]
        losses = [pair for pair in ranked if (pair[1] or 0.0) < 0][:_NUM_FALLBACK]
        compared = gains + losses
    cards = [
        {"gain": gain, **_example_card(example, comparison, palette)} for example, gain in compared if gain is not None
    ]
    return {"sliders": cards, "statics": [_example_card(example, comparison, palette) for example in statics]}


def _gain(example: Example, comparison: Comparison) -> float | None:
    other = comparison.challenger
    if other is None or not {other.title, comparison.baseline.title} <= example.predictions.keys():
        return None
    num_classes = len(comparison.class_names)
    after = example.mean_iou(other.title, num_classes)
    before = example.mean_iou(comparison.baseline.title, num_classes)
    return None if after is None or before is None else after - before


def _example_card(example: Example, comparison: Comparison, palette: Sequence[Color]) -> dict[str, Any]:
    num_classes = len(palette)
    layers = [
        {
            "index": index,
            "title": run.title,
            "uri": labels_uri(example.predictions[run.title], palette),
            "iou": example.mean_iou(run.title, num_classes),
        }
        for index, run in enumerate(comparison.runs)
        if run.title in example.predictions
    ]
    # Specks would fill the legend with names that nobody finds in the picture.
    least = max(1, example.truth.size // 2000)
    shown = set(class_ids_in([*example.predictions.values()], num_classes, least))
    shown |= set(class_ids_in([example.truth], num_classes))
    height, width = example.truth.shape
    other = comparison.challenger
    return {
        "name": example.name,
        "width": width,
        "height": height,
        "photo": photo_uri(example.image),
        "truth": labels_uri(example.truth, palette),
        "layers": layers,
        "right": next((layer["index"] for layer in layers if other and layer["title"] == other.title), None),
        "classes": [_chip(class_id, comparison, palette) for class_id in comparison.order if class_id in shown],
    }


def _paste_card(paste: Paste, comparison: Comparison, palette: Sequence[Color]) -> dict[str, Any]:
    height, width = paste.pasted.shape
    return {
        "name": paste.name,
        "width": width,
        "height": height,
        "before": photo_uri(paste.before),
        "after": photo_uri(paste.after),
        "outline": outline_uri(paste.pasted),
        "classes": [_chip(i, comparison, palette) for i in paste.class_ids if i < len(palette)],
    }


def _chip(class_id: int, comparison: Comparison, palette: Sequence[Color]) -> dict[str, str]:
    return {
        "name": comparison.class_names[class_id],
        "color": _css_color(palette[class_id]),
        "group": comparison.group_of(class_id),
    }


def _css_color(color: Color) -> str:
    return "#" + "".join(f"{part:02x}" for part in color)


def run_summary(run: Run) -> str:
    """A run in one line for the terminal."""
    shown = [f"{name} {points(run.metrics[name])}" for name in ("miou", *GROUP_NAMES) if name in run.metrics]
    return f"{run.title}: {', '.join([run.status, *shown])}"
