"""`aucseg compare FOLDER`, or `--config base.yaml --methods ce,la,aucseg --seeds 0,1,2`."""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from aucseg.commands.children import signals_as_exit
from aucseg.commands.compare_folder import fill_in
from aucseg.commands.option_parser import at_least, fraction, listed, output_folder, split_list
from aucseg.runtime.announce import loading

if TYPE_CHECKING:
    from aucseg.compare.comparison import Comparison

_EPILOG = """methods: a loss (ce, wce-inverse, focal, cb-focal, ohem, ldam, la, vs, balanced-softmax, blv, seesaw, dice,
ce-dice, ce-jml, ce-lovasz, ...), 'aucseg' (AUCSegLoss and the bank) or 'auc' (AUCSegLoss alone), with
  +bank        the tail memory bank, with the base configuration's options
  +rcs         rare-class sampling, +rfs repeat-factor sampling
  +posthoc-la  logit adjustment of the trained model (ce+posthoc-la after ce)
  +disalign    DisAlign's second stage on the trained model (ce+disalign after ce), a quarter of the steps
  +offsets     one offset a class for the trained model (ce+offsets after ce), fitted for mean IoU on training images
               that no method is trained on (--offsets-share)
or a name of --methods-file: YAML 'NAME: {method: aucseg, model: {loss_options: {surrogate: hinge}}}'.

examples:
  aucseg compare FOLDER --time 1h                      plans, trains cross-entropy and AUCSeg, and writes the report
  aucseg compare --config base.yaml --methods ce,la,la+bank,aucseg --seeds 0,1,2,3,4
  aucseg compare --config base.yaml --methods ce,la,aucseg --seeds 0,1,2 --search auto
  aucseg compare --config base.yaml --methods ce,aucseg --folds 5
  aucseg compare --config base.yaml --methods ce,aucseg --search auc_weight=0.5,1,2,4 --models smp/fpn,segnext.yaml

Stop it at any time and call it again: finished runs are not repeated, the one that was cut off goes on from its last
checkpoint. Call it several times at once, on machines that share the folder, and the runs are divided among them:
'srun --ntasks 8 --gpus-per-task 1 aucseg compare ...'. Exit status 1: some runs failed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.epilog = _EPILOG
    parser.add_argument("source", nargs="?", metavar="FOLDER|CARD", help="images and masks, or a card, to plan for")
    parser.add_argument("--config", type=Path, metavar="FILE", help="base configuration, as for fit, instead of a plan")
    parser.add_argument("--methods", metavar="A,B,...", help="what to compare, see below (default of a plan: ce "
                        "and AUCSeg, with the bank or without it as the counts say)")  # fmt: skip
    parser.add_argument("--seeds", metavar="0,1,...", help="one run each (default: 0; with --config 0,1,2,3,4)")
    parser.add_argument("--folds", type=at_least(2), metavar="K", help="the training images "
                        "in K folds, one run on each: cross-validation, for small data")  # fmt: skip
    parser.add_argument(
        "--time",
        metavar="1h",
        help="time that all trainings of a FOLDER may take together: 90s, 30m, 2h; a number is minutes",
    )
    parser.add_argument("--weights", choices=("pretrained", "random"), help="random: no pretrained weights")
    parser.add_argument("--models", default="", metavar="M,N,...", help="names of models, or YAML files of changes to "
                        "the base configuration (default: the base's model)")  # fmt: skip
    parser.add_argument("--methods-file", type=Path, metavar="FILE", help="more methods, defined in YAML")
    parser.add_argument(
        "--baseline", metavar="METHOD", help="method to take differences to (default: ce, or the first)"
    )
    parser.add_argument(
        "--out", type=output_folder, help="folder (default: runs/FOLDER-compare; with --config runs/compare)"
    )
    parser.add_argument("--root", metavar="DIR", help="folder of the data, instead of the configuration's")
    parser.add_argument("--steps", type=at_least(1), metavar="N", help="training steps, instead of the configuration's")
    parser.add_argument("--offsets-share", type=fraction, default=0.1, metavar="S", help="share of the training images "
                        "kept for +offsets, by all methods if any has it (default: %(default)s)")  # fmt: skip
    search = parser.add_argument_group("tuning, on training images that are held out and not trained on")
    search.add_argument("--search", action="append", default=[], metavar="SPEC", help="auto, rates (the learning rate "
                        "of every method, too), SETTING=V1,V2,... or METHOD:DOTTED.NAME=V1,V2,...; every method begins "
                        "with as many values of its main setting, and goes on beyond the edge while the best lies "
                        "there; may be repeated")  # fmt: skip
    search.add_argument("--search-limit", type=at_least(1), metavar="N",
                        help="most trials of any method (default: twice those of the first grid)")  # fmt: skip
    search.add_argument("--search-steps", type=at_least(1), metavar="N", help="steps of a trial (default: of a run)")
    search.add_argument("--search-metric", default="miou", choices=("miou", "head", "middle", "tail"),
                        help="what the best trial is best in (default: %(default)s)")  # fmt: skip
    search.add_argument("--search-share", type=fraction, default=0.25, metavar="S",
                        help="share of the training images to hold out (default: %(default)s)")  # fmt: skip
    parser.add_argument("--redo", action="store_true", help="repeat runs made with other code, data or configuration")
    parser.add_argument("--discard-checkpoints", action="store_true",
                        help="keep the trained models of the first seed alone")  # fmt: skip
    parser.add_argument("--no-report", action="store_true", help="no HTML report of the first seed at the end")
    parser.add_argument("--dry-run", action="store_true", help="list the runs: finished, to do or differing (refused)")


def run(args: argparse.Namespace) -> int:
    """Runs what is not finished, and prints the results after every run.

    Returns:
        0, or 1 if a run failed.
    """
    from aucseg.safe_files import no_empty_folders

    fill_in(args)
    with loading():
        comparison = _comparison(args)
    if args.dry_run:
        return comparison.list_runs()
    with no_empty_folders(args.out), signals_as_exit():
        args.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=args.out) as file:
            comparison.runner.began = os.fstat(file.fileno()).st_mtime
        status = comparison.execute()
    if args.source is not None and status == 0:
        model = comparison.runs_of(comparison.methods[-1])[0].folder
        report = "" if args.no_report else "open the report; "
        print(f"next: {report}aucseg predict {shlex.quote(str(model))} PHOTOS --out predictions")
    return status


def _comparison(args: argparse.Namespace) -> Comparison:
    """What the options say, checked as far as it can be before the first run."""
    from aucseg.compare.comparison import Comparison
    from aucseg.compare.finished import added, check_models, finished_runs
    from aucseg.compare.methods import (
        OFFSETS,
        at_path,
        budget_of,
        check_folds,
        holding_out,
        load_base,
        load_definitions,
        load_models,
        merged,
        parse_methods,
    )
    from aucseg.compare.runner import Runner
    from aucseg.compare.search import check_metric, parse_search

    base = load_base(args.config)
    if args.root is not None:
        base = merged(base, at_path("data.root", args.root))
    if args.steps is not None:
        base = merged(base, {"trainer": budget_of(args.steps, base["trainer"])})
    if args.folds is not None:
        base = merged(base, {"data": {"fold": [0, args.folds]}})  # of each run its own
    base["model"] = {"pixel_metrics": True} | (base.get("model") or {})
    asked, seeds = listed(args.methods, "--methods"), _seeds(args)
    finished = finished_runs(args.out, args.folds)
    definitions = load_definitions(args.methods_file)
    known = dict.fromkeys(method for _, method, _ in finished)
    try:
        parse_methods(list(known), definitions)
    except ValueError as error:
        raise ValueError(
            f"{args.out} has finished runs of a method that is not known now: give the --methods-file which defines "
            f"it, or another folder with --out ({error})"
        ) from error
    names = added(asked, known)
    methods = parse_methods(names, definitions)
    if any(method.second_stage == OFFSETS for method in methods):
        base = holding_out(base, args.offsets_share)
    baseline = args.baseline or ("ce" if "ce" in names else names[0])
    if baseline not in names:
        raise ValueError(f"--baseline {baseline!r} is not one of the methods {', '.join(names)}")
    models = load_models(split_list(args.models), base)
    check_models(finished, models, args.out)
    keys = {*finished, *itertools.product(models, asked, seeds)}
    for method in reversed(methods):
        if (first := method.first_stage) is not None:
            keys |= {(model, first, seed) for model, name, seed in keys if name == method.name}
    if args.folds is not None:
        check_folds(models)
    search = parse_search(args.search, methods, args.search_limit)
    for option in ("search_steps", "search_limit"):
        if search is None and getattr(args, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} belongs to --search, which is missing")
    if search is not None:
        search.check(methods, base)
        check_metric(args.search_metric, models)
    return Comparison(
        models=models,
        methods=methods,
        seeds=added(seeds, (seed for _, _, seed in finished)),
        keys=keys,
        folds=args.folds,
        baseline=baseline,
        out=args.out,
        search=search,
        search_steps=args.search_steps,
        search_metric=args.search_metric,
        search_share=args.search_share,
        report=not args.no_report,
        discard_checkpoints=args.discard_checkpoints,
        runner=Runner(redo=args.redo),
    )


def _seeds(args: argparse.Namespace) -> list[int]:
    if args.folds is not None:
        if args.seeds is not None:
            raise ValueError("--folds makes one run of each fold, whose number is its seed: leave out --seeds")
        return list(range(args.folds))
    try:
        seeds = [int(seed) for seed in listed(args.seeds, "--seeds")]
    except ValueError as error:
        raise ValueError(f"--seeds {args.seeds}: expected whole numbers and commas") from error
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {args.seeds}: a seed is listed twice")
    return seeds
