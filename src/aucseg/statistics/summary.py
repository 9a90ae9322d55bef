"""Class statistics and what follows from them, in words, tables and a chart."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from aucseg.datasets.card import DatasetCard
from aucseg.datasets.card_classes import GROUP_NAMES
from aucseg.runtime.plots import GROUP_COLORS, check_picture, plain_label
from aucseg.safe_files import replacing, text_cell, write_named
from aucseg.statistics.advice import (
    SAMPLER,
    SAMPLER_OPTIONS,
    advise_bank,
    asks_for_sampler,
    bank_options,
    choose_groups,
)
from aucseg.statistics.class_statistics import ClassStatistics

# Draws of a simulated batch are bounded, so that a class in one image of 100,000 does not stop the report.
_MAX_DRAWS = 20_000_000
_BOUND_TERMS = {
    "sample": "sample size",
    "inner": "dependence within images",
    "inter": "between images",
    "confidence": "confidence",
}


def make_report(
    statistics: ClassStatistics, card: DatasetCard | None = None, *, batch_size: int = 8, delta: float = 0.01
) -> dict[str, Any]:
    """Returns everything that `aucseg stats` prints, as plain numbers, texts and lists.

    Args:
        statistics: The counts; at least one labelled pixel.
        card: For groups and names.
        batch_size: The batch that the advice on the bank is about.
        delta: The batch size asked for shows every class with probability `1 - delta`.

    Raises:
        ValueError: No labelled pixel, or `delta` outside (0, 1).
    """
    groups, rule = choose_groups(statistics, card)
    classes = _class_rows(statistics, groups)
    min_batch = statistics.min_batch_size(delta)
    trials = max(1, min(1000, _MAX_DRAWS // min_batch))
    advice = advise_bank(
        statistics, groups["tail"], groups["middle"], batch_size=batch_size, by_share=groups == statistics.groups()
    )
    return {
        "title": "class statistics" if card is None else card.title,
        "num_images": statistics.num_images,
        "num_labelled": statistics.num_labelled,
        "num_ignored": statistics.num_ignored,
        "classes": classes,
        "groups": groups,
        "group_rule": rule,
        "group_shares": {g: float(statistics.frequency[ids].sum()) for g, ids in groups.items()},
        "absent_classes": np.flatnonzero(statistics.pixel_counts == 0).tolist(),
        "imbalance_ratio": statistics.imbalance_ratio,
        "tau": statistics.tau,
        "tau_class": int(np.argmax(statistics.max_pixels / np.maximum(statistics.mean_pixels, 1e-300))),
        "batch_size_for_all_classes": {
            "delta": delta,
            "batch_size": min_batch,
            "simulated_coverage": statistics.batch_coverage(min_batch, trials=trials),
            "trials": trials,
        },
        "bound": statistics.generalization_bound(),
        "loss": _advise_loss(statistics),
        "order": {"sampler": SAMPLER, "sampler_options": dict(SAMPLER_OPTIONS)} if asks_for_sampler(statistics) else {},
        "advice": {**asdict(advice), "use_bank": advice.use_bank},
    }


def _advise_loss(statistics: ClassStatistics) -> dict[str, Any]:
    """The loss of the plan: its options in a configuration, and in Python."""
    # The command line prints its help without torch.
    from aucseg.losses.build import RECOMMENDED_OPTIONS
    from aucseg.losses.class_weights import class_weights

    weights = class_weights(statistics, **RECOMMENDED_OPTIONS["class_weight"]).tolist()
    in_python = RECOMMENDED_OPTIONS | {"class_weight": [float(f"{weight:.3g}") for weight in weights]}
    return {"loss_options": deepcopy(RECOMMENDED_OPTIONS), "in_python": in_python}


def _class_rows(statistics: ClassStatistics, groups: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """What is known of each class, in the order of the ids."""
    group_of = {class_id: group for group, ids in groups.items() for class_id in ids}
    names = statistics.class_names or tuple(f"class {i}" for i in range(statistics.num_classes))
    fixedness = statistics.fixedness
    return [
        {
            "id": class_id,
            "name": names[class_id],
            "group": group_of[class_id],
            "pixels": int(statistics.pixel_counts[class_id]),
            "images": int(statistics.image_counts[class_id]),
            "frequency": float(statistics.frequency[class_id]),
            "presence": float(statistics.presence[class_id]),
            "mean_area": float(statistics.mean_pixels_where_present[class_id]),
            "max_area": int(statistics.max_pixels[class_id]),
            "fixedness": None if math.isnan(fixedness[class_id]) else float(fixedness[class_id]),
        }
        for class_id in range(statistics.num_classes)
    ]


def format_classes(statistics: ClassStatistics) -> str:
    """Returns the table of the classes as text, with groups by share of the pixels; what `print(statistics)` shows."""
    groups, rule = choose_groups(statistics)
    counts = {name: getattr(statistics, name) for name in ("num_images", "num_labelled", "num_ignored")}
    lines = _table({**counts, "classes": _class_rows(statistics, groups)})
    return "\n".join([*lines, f"(mean area: pixels in the images that hold the class; groups {rule})"])


def _table(report: dict[str, Any]) -> list[str]:
    """The lines of the table, the commonest class first, with what was counted above it."""
    name_width = max(5, *(len(row["name"]) for row in report["classes"]))
    return [
        f"{report['num_images']:,} images, {report['num_labelled']:,} labelled pixels, {report['num_ignored']:,} "
        "ignored",
        "",
        f"{'id':>3}  {'class':<{name_width}}  {'group':<6}  {'pixels %':>9}  {'images %':>8}  {'mean area':>10}  "
        f"{'largest':>10}",
        *(
            f"{row['id']:>3}  {row['name']:<{name_width}}  {row['group']:<6}  {100 * row['frequency']:>9.4f}  "
            f"{100 * row['presence']:>8.2f}  {row['mean_area']:>10,.0f}  {row['max_area']:>10,}"
            for row in sorted(report["classes"], key=lambda row: -row["pixels"])
        ),
    ]


def format_report(report: dict[str, Any]) -> str:
    """Returns the report as text for a terminal."""
    return "\n".join([*_table(report), *_figures(report), *_advice(report)])


def _figures(report: dict[str, Any]) -> list[str]:
    """Lines about groups, imbalance, tau, batch size and bound."""
    shares = ", ".join(
        f"{group} {len(report['groups'][group])} ({100 * report['group_shares'][group]:.2f} % of the pixels)"
        for group in GROUP_NAMES
    )
    rarest = min((row for row in report["classes"] if row["images"]), key=lambda row: row["images"])
    uneven = report["classes"][report["tau_class"]]
    batch, bound = report["batch_size_for_all_classes"], report["bound"]
    lines = [
        "(mean area: pixels in the images that hold the class)",
        "",
        f"classes by group, {report['group_rule']}:",
        f"  {shares}",
        f"imbalance ratio: {report['imbalance_ratio']:,.0f} (commonest over rarest class)",
        f"tau: {report['tau']:,.1f} (unevenness over the images; set by {uneven['name']}: at most "
        f"{uneven['max_area']:,} pixels in an image, {uneven['pixels'] / report['num_images']:,.4g} on average)",
        f"batch size for all classes with probability {1 - batch['delta']:g}: {batch['batch_size']:,} "
        f"(simulated on the data: {batch['simulated_coverage']:.3f} of {batch['trials']} batches; rarest: "
        f"{rarest['name']}, in {100 * rarest['presence']:.2f} % of the images)",
        "generalization bound, its open constants at 1: "
        + " + ".join(f"{text} {_short(bound[name])}" for name, text in _BOUND_TERMS.items())
        + f" = {_short(bound['total'])}",
        "  as a number the bound is vacuous (the error is at most 1); read how its terms grow with data, classes "
        "and tau",
    ]
    if report["absent_classes"]:
        names = [report["classes"][class_id]["name"] for class_id in report["absent_classes"]]
        lines.append(f"classes that never occur (left out of batch size and tau): {', '.join(names)}")
    return lines


def _advice(report: dict[str, Any]) -> list[str]:
    """Lines about loss, order and bank, and how to set them."""
    advice = report["advice"]
    power = report["loss"]["loss_options"]["class_weight"]["power"]
    order = report["order"]
    if order:
        rare = f"with a class that is in less than {100 * order['sampler_options']['threshold']:g} % of them"
        about_order = f"images {rare} more often (sampler {order['sampler']})"
        sampler = [f"  RepeatFactorSampler(statistics, {_keywords(order['sampler_options'])})"]
    else:
        about_order, sampler = "every image once an epoch: no class is in few of them", []
    lines = [
        "",
        f"loss: cross-entropy with mild class weights (frequency to the power {-power:g}), and AUC",
        f"order: {about_order}",
        f"memory bank: {advice['answer']}",
        *(f"  - {reason}" for reason in advice["reasons"]),
        "",
        "in Python:",
        f"  AUCSegLoss({_keywords(report['loss']['in_python'])})",
        *sampler,
    ]
    model = {"loss": "aucseg", "loss_options": report["loss"]["loss_options"]}
    if not advice["settings"]:
        return [*lines, *_configuration(model, order)]
    bank = f"  TailMemoryBank({_keywords(advice['settings'])})"
    # The card of `aucseg fit` knows the groups.
    options = {"bank": bank_options(advice["settings"], report["groups"])}
    if advice["use_bank"]:
        return [*lines, bank, *_configuration(model | options, order)]
    lines += [*_configuration(model, order), "", "to compare with a bank all the same, in Python:", bank]
    return [*lines, *_configuration(options)]


def _keywords(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in options.items())


def _configuration(model: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> list[str]:
    """The lines of settings of `model` and `data` in the configuration of `aucseg fit`."""
    sections = {"model": dict(model)} | ({"data": dict(data)} if data else {})
    text = yaml.safe_dump(sections, sort_keys=False, default_flow_style=None)
    return ["in a configuration:", *(f"  {line}" for line in text.splitlines())]


def _short(value: float) -> str:
    return f"{value:.4g}" if value < 1e4 else f"{value:,.0f}"


def write_csv(report: dict[str, Any], path: Path) -> None:
    """Writes the class table as CSV, one row a class."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(report["classes"][0]))
    writer.writeheader()
    writer.writerows({**row, "name": text_cell(row["name"])} for row in report["classes"])
    write_named(path, text.getvalue().encode())


def write_chart(report: dict[str, Any], path: Path) -> None:
    """Draws pixel share and presence of each class, coloured by group; the ending of the path chooses the format."""
    check_picture(path)
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = sorted((row for row in report["classes"] if row["pixels"]), key=lambda row: row["pixels"])
    figure = Figure(figsize=(9, 1.2 + 0.22 * max(len(rows), 4)), layout="constrained")
    pixels, images = figure.subplots(1, 2, sharey=True)
    colors = [GROUP_COLORS[row["group"]] for row in rows]
    places = range(len(rows))
    shares = [100 * row["frequency"] for row in rows]
    # Points, since a bar on a logarithmic axis has no natural start.
    pixels.scatter(shares, places, color=colors)
    for place, share in zip(places, shares, strict=True):
        pixels.annotate(f"{share:.2g}", (share, place), (7, 0), textcoords="offset points", va="center", fontsize=7)
    pixels.set(xscale="log", xlim=(shares[0] / 2, 250), xlabel="% of the labelled pixels (logarithmic)")
    pixels.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    pixels.grid(axis="both", color="0.9")
    pixels.set_axisbelow(True)
    pixels.set_yticks(places, [plain_label(row["name"]) for row in rows], fontsize=8)
    pixels.set_ylim(-0.8, len(rows) - 0.2)
    images.barh(places, [100 * row["presence"] for row in rows], color=colors)
    images.set(xlim=(0, 100), xlabel="% of the images that hold the class")
    figure.suptitle(
        f"{plain_label(report['title'])}: {report['num_images']:,} images, "
        f"imbalance ratio {report['imbalance_ratio']:,.0f}"
    )
    handles = [Patch(color=GROUP_COLORS[group], label=group) for group in GROUP_NAMES if report["groups"][group]]
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
