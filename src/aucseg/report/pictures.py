"""The cards of the page that show images: predictions of several runs over one photo, and what the bank pasted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aucseg.report.compared_runs import ComparedRuns
from aucseg.report.encode import Color, css_color, labels_uri, outline_uri, photo_uri
from aucseg.report.examples import Example, Paste, class_ids_in

# Gains, and losses, that are shown where no images were chosen for theirs.
_NUM_FALLBACK = 2


def example_cards(comparison: ComparedRuns, samples: Sequence[Example], palette: Sequence[Color]) -> dict[str, Any]:
    """Cards of two runs over one photo (`sliders`), and of images alone (`statics`).

    Raises:
        ValueError: Predictions of an unknown run.
    """
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


def _gain(example: Example, comparison: ComparedRuns) -> float | None:
    other = comparison.challenger
    if other is None or not {other.title, comparison.baseline.title} <= example.predictions.keys():
        return None
    num_classes = len(comparison.class_names)
    after = example.mean_iou(other.title, num_classes)
    before = example.mean_iou(comparison.baseline.title, num_classes)
    return None if after is None or before is None else after - before


def _example_card(example: Example, comparison: ComparedRuns, palette: Sequence[Color]) -> dict[str, Any]:
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


def paste_card(paste: Paste, comparison: ComparedRuns, palette: Sequence[Color]) -> dict[str, Any]:
    """A training image before and after the bank."""
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


def _chip(class_id: int, comparison: ComparedRuns, palette: Sequence[Color]) -> dict[str, str]:
    return {
        "name": comparison.class_names[class_id],
        "color": css_color(palette[class_id]),
        "group": comparison.group_of(class_id),
    }
