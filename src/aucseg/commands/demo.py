"""``aucseg demo``: cross-entropy beside AUCSeg on the embedded data, with the same seed and budget, and a report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aucseg.announce import loading
from aucseg.configs import CONFIGS

# Title, name of the run's folder, configuration.
METHODS = (
    ("CE", "ce", CONFIGS / "freedoom_lt_fpn_ce.yaml"),
    ("AUCSeg", "aucseg", CONFIGS / "freedoom_lt_fpn_aucseg.yaml"),
)
COLUMNS = ("miou", "head", "middle", "tail")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``aucseg demo``."""
    parser.epilog = "example:\n  aucseg demo --iterations 200 --out runs/quick    a first look in a few minutes"
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of runs and report (%(default)s)")
    parser.add_argument("--iterations", type=int, default=None, help="training iterations of each method")
    parser.add_argument("--seed", type=int, default=0, help="seed of both methods (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Trains both methods, prints the table, and writes the report."""
    if args.iterations is not None and args.iterations < 1:
        raise ValueError(f"--iterations must be at least 1, got {args.iterations}")
    with loading():
        from aucseg.commands.fit import run_lightning
        from aucseg.datasets import SegmentationDataset
        from aucseg.report.examples import collect_examples, collect_pastes
        from aucseg.report.figures import readme_figure
        from aucseg.report.page import build_report
        from aucseg.statistics.class_statistics import ClassStatistics

    dataset = SegmentationDataset("freedoom_lt")
    card = dataset.card
    statistics = ClassStatistics.from_dataset(dataset, num_workers=args.workers, progress=True)
    print(class_table(statistics, card.class_names, card.groups or {}))

    results: dict[str, dict[str, float]] = {}
    for title, name, config in METHODS:
        print(f"\n{title}")
        options = ["--config", str(config), "--out", str(args.out / name), "--overwrite", "true"]
        options += ["--seed_everything", str(args.seed), "--data.seed", str(args.seed)]
        options += ["--data.num_workers", str(args.workers), "--model.pixel_metrics", "true"]
        if args.iterations is not None:
            steps = str(args.iterations)
            options += ["--trainer.max_steps", steps, "--trainer.val_check_interval", steps]
        metrics = run_lightning("fit", options).trainer.callback_metrics
        results[title] = {column: 100 * float(metrics[f"val/{column}"]) for column in COLUMNS}
    print(f"\nMean IoU on the {len(SegmentationDataset(card, split='val'))} validation images, in %\n")
    print(result_table(results))

    folders = [args.out / name for _, name, _ in METHODS]
    titles = [title for title, _, _ in METHODS]
    examples = collect_examples(folders, titles=titles)
    build_report(
        folders,
        args.out / "report.html",
        titles=titles,
        samples=examples,
        pastes=collect_pastes(folders[-1]),
        statistics=statistics,
    )
    readme_figure(folders, args.out / "report.png", titles=titles, samples=examples, statistics=statistics)
    print(f"\nReport: {args.out / 'report.html'}")
    return 0


def class_table(statistics: Any, class_names: Sequence[str], groups: dict[str, list[int]]) -> str:
    """A line for each class, the commonest first: group, share of the labelled pixels, images that hold it."""
    group_of = {class_id: group for group, members in groups.items() for class_id in members}
    order = sorted(range(len(class_names)), key=lambda class_id: -int(statistics.pixel_counts[class_id]))
    width = max(map(len, class_names))
    lines = [f"{'class':{width}}  {'group':6}  {'% of pixels':>11}  {'% of images':>11}"]
    lines += [
        f"{class_names[c]:{width}}  {group_of.get(c, ''):6}  {100 * statistics.frequency[c]:11.4f}"
        f"  {100 * statistics.presence[c]:11.1f}"
        for c in order
    ]
    return "\n".join(lines)


def result_table(results: dict[str, dict[str, float]]) -> str:
    """Methods side by side, and the difference of each to the first.

    Example:
        >>> rows = {"CE": {"miou": 20.0, "tail": 7.5}, "AUCSeg": {"miou": 31.25, "tail": 23.0}}
        >>> print(result_table(rows))
                          miou    tail
        CE                20.0     7.5
        AUCSeg            31.2    23.0
        AUCSeg - CE     +11.25  +15.50
    """
    first, *others = results
    columns = list(results[first])
    lines = [" " * 14 + "".join(f"{column:>8}" for column in columns)]
    lines += [f"{title:14}" + "".join(f"{row[column]:8.1f}" for column in columns) for title, row in results.items()]
    for title in others:
        differences = (f"{results[title][column] - results[first][column]:+8.2f}" for column in columns)
        lines.append(f"{title + ' - ' + first:14}" + "".join(differences))
    return "\n".join(lines)
