"""`aucseg report RUN [RUN ...]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aucseg.commands.option_parser import output_file
from aucseg.runtime.announce import loading

if TYPE_CHECKING:
    from aucseg.report.examples import Example, Paste

_EXAMPLES = """examples:
  aucseg report runs/ce runs/aucseg                         the first run is the baseline
  aucseg report runs/* --baseline ce --out docs/report.html
  aucseg report runs/ce runs/aucseg --best                  their best checkpoints instead of the last
  aucseg report runs/a --no-images                          from the logs alone, while it trains
  aucseg report theirs-evaluation runs/a                    beside predictions that 'aucseg evaluate' measured
  aucseg report runs/ce runs/aucseg --figure result.png     and a picture for a README
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.epilog = _EXAMPLES
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished or running run, or "
                        "of 'aucseg evaluate'")  # fmt: skip
    parser.add_argument(
        "--out", type=output_file, default=Path("report.html"), help="HTML file to write (default: %(default)s)"
    )
    parser.add_argument("--titles", nargs="+", metavar="NAME", help="a name for each run (default: folder names)")
    parser.add_argument("--best", action="store_true", help="the best checkpoint of each run (fit --keep_best)")
    parser.add_argument("--baseline", metavar="NAME", help="run that the others are compared with (default: the first)")
    parser.add_argument("--method", metavar="NAME", help="run that headline and pictures set against the baseline "
                        "(default: the best other one)")  # fmt: skip
    parser.add_argument("--statistics", type=Path, metavar="FILE", help="class counts of the training split, as "
                        "'aucseg stats' saves them (default: count the validation split)")  # fmt: skip
    parser.add_argument(
        "--figure", type=output_file, metavar="FILE", help="also draw the main result as .png, .svg or .pdf"
    )
    parser.add_argument("--no-images", action="store_true", help="do not predict example images")
    parser.add_argument("--num-images", type=int, default=6, metavar="N",
                        help="images spread over the validation split (default: 6)")  # fmt: skip
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of the data, if it is not where the run says")
    parser.add_argument("--device", default="cpu", help="where to predict example images (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Writes the report.

    Returns:
        0, or 1 if the report lacks pictures that could not be made.
    """
    if args.num_images < 0:
        raise ValueError(f"--num-images must not be negative, got {args.num_images}")
    with loading():
        from aucseg.report.compared_runs import default_titles, load_comparison
        from aucseg.report.examples import can_be_shown, collect_examples, collect_pastes
        from aucseg.report.figures import readme_figure
        from aucseg.report.page import build_report, run_summary
        from aucseg.run_files import best_of, checkpoint_in
        from aucseg.runtime.plots import check_picture

    if args.figure is not None:
        check_picture(args.figure)
    statistics: Any = None
    if args.statistics is not None:
        from aucseg.statistics.class_statistics import ClassStatistics

        statistics = ClassStatistics.load(args.statistics)
    if args.best:
        args.titles = args.titles or default_titles(args.runs)
        args.runs = [best_of(run) for run in args.runs]
    # Read the runs before anything slow: wrong folders or titles fail at once.
    options: dict[str, Any] = {"titles": args.titles, "baseline": args.baseline, "method": args.method}
    comparison = load_comparison(args.runs, statistics=statistics, **options)
    samples: list[Example] = []
    pastes: list[Paste] = []
    status = 0
    with_checkpoint = [one for one in comparison.runs if checkpoint_in(one.folder).is_file()]
    if not args.no_images and any(can_be_shown(one) for one in comparison.runs):
        from aucseg.commands.predict import device_named

        device = str(device_named(args.device))
        print("predicting example images ...", file=sys.stderr)
        try:
            samples = collect_examples(
                args.runs,
                **options,
                num_gain=(args.num_images + 1) // 2,
                num_loss=(args.num_images + 1) // 2,
                num_samples=args.num_images,
                root=args.root,
                device=device,
            )
            for one in reversed(with_checkpoint):
                pastes = pastes or collect_pastes(one.folder, root=args.root, device=device)
        except (ValueError, OSError, ImportError) as error:
            print(f"aucseg report: pictures are left out: {error}", file=sys.stderr)
            status = 1
    out = build_report(args.runs, args.out, samples=samples, pastes=pastes, statistics=statistics, **options)
    for one in comparison.runs:
        print(run_summary(one))
    for note in comparison.image_notes:
        print(f"aucseg report: {note}", file=sys.stderr)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    if args.figure is not None:
        given = {"titles": args.titles, "baseline": args.baseline, "statistics": statistics}
        print(readme_figure(args.runs, args.figure, samples=samples, **given))
    return status
