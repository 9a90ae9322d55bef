"""The HTML page: run folders and example pictures in, one file out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from aucseg.datasets.card_classes import GROUP_NAMES
from aucseg.report import charts, pictures, sections
from aucseg.report.compared_runs import ComparedRuns, load_comparison
from aucseg.report.encode import distinct_palette
from aucseg.report.examples import Example, Paste
from aucseg.report.runs import Run
from aucseg.report.text import points, short_count, signed_points
from aucseg.safe_files import write_named

_FOLDER = Path(__file__).parent
# More rows, and more panels, than this are folded away.
_MAX_OPEN, _MAX_OPEN_PANELS = 12, 6


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
    method: str | None = None,
) -> Path:
    """Writes one self-contained HTML page about finished or running runs.

    What a run does not hold yet is left out, and the page says why.

    Args:
        run_folders: Folders that `aucseg fit --out` writes, all on one data set.
        out: The HTML file to write; its folder is made.
        titles: A name for each run, by default the folder names.
        baseline: Title of the run that the others are compared with, by default the first.
        samples: Validation images with predictions, from `collect_examples`.
        pastes: Training images before and after the bank, from `collect_pastes`.
        statistics: Pixel counts of the training split, as `ClassStatistics` or K numbers; by default the truth of the
            validation split is counted.
        title: Heading of the page, by default made of the titles.
        method: Title of the run that headline and pictures set against the baseline, by default the best other one.

    Returns:
        The path of the file.

    Raises:
        ValueError: Folders, titles or statistics that do not fit together; predictions of an unknown run.
        ImportError: Without jinja2.

    Example:
        >>> import json, tempfile
        >>> run = Path(tempfile.mkdtemp(), "ce")
        >>> run.mkdir()
        >>> result = {"step": 10, "metrics": {"miou": 0.5}, "per_class_iou": {"road": 0.9, "sign": 0.1}, "groups": None}
        >>> _ = (run / "result.json").write_text(json.dumps(result))
        >>> build_report([run], run / "report.html").name
        'report.html'
    """
    comparison = load_comparison(run_folders, titles=titles, baseline=baseline, statistics=statistics, method=method)
    html = render(comparison, samples=samples or (), pastes=pastes or (), title=title)
    out = Path(out)
    write_named(out, html.encode())
    return out


def render(
    comparison: ComparedRuns, *, samples: Sequence[Example] = (), pastes: Sequence[Paste] = (), title: str | None = None
) -> str:
    """The page as text; see `build_report`."""
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
    cards = pictures.example_cards(comparison, samples, palette)
    # Our own files, no input.
    css, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    context: dict[str, Any] = {
        "title": title or " beside ".join(run_titles[:3]) + (" and others" if len(run_titles) > 3 else ""),
        "c": comparison,
        "headline": sections.headline(comparison),
        "tiles": sections.tiles(comparison),
        "differences": sections.differences(comparison),
        "class_details": sections.class_details(comparison),
        "metric_columns": sections.metric_columns(comparison),
        "class_rows": sections.class_rows(comparison, palette),
        "confusions": sections.confusions(comparison),
        "roc_panels": sections.roc_panels(comparison),
        "curve_panels": sections.curve_panels(comparison),
        "sliders": cards["sliders"],
        "statics": cards["statics"],
        "pastes": [pictures.paste_card(paste, comparison, palette) for paste in pastes],
        "max_open": _MAX_OPEN,
        "max_open_panels": _MAX_OPEN_PANELS,
        "legend_marks": [charts.legend_mark(i) for i in range(len(comparison.runs))],
        "num_styles": charts.NUM_STYLES,
        "class_chart": charts.class_chart(comparison) if any(run.per_class_iou for run in comparison.runs) else None,
        "css": Markup(css),  # nosec B704
        "script": Markup(script),  # nosec B704
        "data": {"classes": comparison.class_names, "palette": palette, "runs": run_titles},
    }
    context["left_out"] = _left_out(context)
    return environment.get_template("template.html").render(context)


def _left_out(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Sections without data, each with the reason in one line."""
    comparison: ComparedRuns = context["c"]
    has_confusion = any(run.confusion is not None for run in comparison.runs)
    if len(comparison.runs) < 2:
        slider_reason = "it takes two runs to compare."
    elif comparison.image_notes and not comparison.rivals:
        slider_reason = "the runs were validated on different images."
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
        "statics": (
            "Validation images",
            "no predictions were given; they need a checkpoint of each run, or predictions in files.",
        ),
        "confusions": ("What the tail is mistaken for", confusion_reason),
        "roc_panels": (
            "ROC curves of the tail",
            "no run has curves.json; a validation with model.pixel_metrics: true writes it, and 'aucseg evaluate' "
            "where there are scores.",
        ),
        "curve_panels": ("Loss and learning curves", "no run has logged anything to metrics.csv yet."),
        "pastes": (
            "Where the bank pasted",
            "no pasted images were given; they need a checkpoint of a run with a bank.",
        ),
    }
    return [reason for key, reason in reasons.items() if not context[key]]


def run_summary(run: Run) -> str:
    """A run in one line for the terminal."""
    shown = [f"{name} {points(run.metrics[name])}" for name in ("miou", *GROUP_NAMES) if name in run.metrics]
    return f"{run.title}: {', '.join([run.status, *shown])}"
