"""`aucseg demo`: cross-entropy beside AUCSeg on the embedded data, with the same seed and budget, and a report."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aucseg.commands.children import train_side_by_side
from aucseg.commands.option_parser import output_folder
from aucseg.configs import CONFIGS
from aucseg.run_files import RESULT_FILE, STARTED_FILE
from aucseg.runtime.announce import Announcement, loading

# Title, name of the run's folder, configuration.
METHODS = (
    ("CE", "ce", CONFIGS / "freedoom_lt_fpn_ce.yaml"),
    ("AUCSeg", "aucseg", CONFIGS / "freedoom_lt_fpn_aucseg.yaml"),
)
COLUMNS = ("miou", "head", "middle", "tail")


# Enough for the difference to show; the configurations' own thousand take two and a half times as long.
_STEPS = 400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `aucseg demo`."""
    parser.epilog = (
        "Stop it at any time and call it again: it goes on from its last checkpoints.\n\n"
        "example:\n  aucseg demo --iterations 2000 --out runs/longer    the rare classes go on learning"
    )
    parser.add_argument(
        "--out", type=output_folder, default=Path("runs/demo"), help="folder of runs and report (%(default)s)"
    )
    parser.add_argument(
        "--iterations", type=int, default=_STEPS, metavar="N", help="training steps of each method (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of both methods (%(default)s)")
    parser.add_argument(
        "--workers", type=int, default=0, help="loader processes of each method, beside its own (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Trains both methods side by side, prints the table, and writes the report.

    Returns:
        0, or 3 if a training failed.
    """
    if args.iterations < 1:
        raise ValueError(f"--iterations must be at least 1, got {args.iterations}")
    if args.workers < 0:
        raise ValueError(f"--workers must not be negative, got {args.workers}")
    with loading():
        from aucseg.hints import import_extra

        for module in ("lightning", "jinja2", "matplotlib"):  # before the data are read
            import_extra(module, "demo")
        from aucseg.datasets import SegmentationDataset
        from aucseg.report.examples import collect_examples, collect_pastes
        from aucseg.report.figures import readme_figure
        from aucseg.report.page import build_report
        from aucseg.statistics.class_statistics import ClassStatistics
    dataset = SegmentationDataset("freedoom_lt")
    card = dataset.card
    statistics = ClassStatistics.from_dataset(dataset)
    print(class_table(statistics, card.class_names, card.groups or {}))

    print(f"\ntraining {' and '.join(title for title, _, _ in METHODS)}, {args.iterations:,} steps each, side by side")
    statuses = train_side_by_side(_runs(args))
    for title, status in statuses.items():
        if status > 0:
            print(f"aucseg demo: error: {title} has failed, see above", file=sys.stderr)
    if any(statuses.values()):
        return 3
    print(f"\nMean IoU on the {len(SegmentationDataset(card, split='val'))} validation images, in %\n")
    print(result_table({title: _scores(args.out / name) for title, name, _ in METHODS}), flush=True)

    folders = [args.out / name for _, name, _ in METHODS]
    titles = [title for title, _, _ in METHODS]
    with Announcement("drawing the report"):
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
    print(f"\nReport: {args.out / 'report.html'}, and the same as a picture: {args.out / 'report.png'}")
    print("next: aucseg fit FOLDER                            the same with your own images and masks")
    print(f"      aucseg predict {shlex.quote(str(folders[-1]))} PHOTOS --out predictions")
    return 0


def _runs(args: argparse.Namespace) -> dict[str, list[str]]:
    """The options of each training, which goes on where the last call was of the same code and settings."""
    from aucseg.compare.fingerprints import code_fingerprint, digest
    from aucseg.safe_files import write_json
    from aucseg.training.result_writer import remove_run
    from aucseg.training.run_lock import is_at_work

    settings = ["--trainer.max_steps", str(args.iterations), "--trainer.val_check_interval", str(args.iterations)]
    settings += ["--seed_everything", str(args.seed), "--data.seed", str(args.seed)]
    settings += ["--data.num_workers", str(args.workers), "--checkpoint_every", "100"]
    made_of = {"code": code_fingerprint({}), "settings": settings}
    made_of |= {name: config.read_text(encoding="utf-8") for _, name, config in METHODS}
    note = args.out / STARTED_FILE
    hashes = {"hashes": digest(made_of)}
    if not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != hashes:
        for _, name, _ in METHODS:
            if not is_at_work(args.out / name):  # else the training says so
                remove_run(args.out / name)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(note, hashes)
    return {
        title: ["--config", str(config), "--out", str(args.out / name), "--resume", "auto", *settings]
        for title, name, config in METHODS
    }


def _scores(run: Path) -> dict[str, float]:
    metrics = json.loads((run / RESULT_FILE).read_text(encoding="utf-8"))["metrics"]
    return {column: 100 * float(metrics[column]) for column in COLUMNS}


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
