"""`aucseg compare FOLDER`: one plan for all methods, kept in the folder of the comparison."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aucseg.commands.fit_help import check_source
from aucseg.commands.option_parser import listed, split_list
from aucseg.hints import counted
from aucseg.run_files import CARD_FILE, PLAN_FILE
from aucseg.runtime.announce import loading, seconds_since_start

if TYPE_CHECKING:
    from aucseg.commands.plan import Planner
    from aucseg.planning.plan import Plan

_SEEDS_OF_CONFIG, _SEEDS_OF_FOLDER = "0,1,2,3,4", "0"


def fill_in(args: argparse.Namespace) -> None:
    """Fills in the options of a comparison that are open, planned for a folder or card: methods, seeds, folder.

    A comparison that goes on keeps the plan that it began with.

    Args:
        args: Options of `aucseg compare`.

    Raises:
        ValueError: Neither or both of source and configuration, or nothing can be planned for the source.
    """
    if (args.source is None) == (args.config is None):
        raise ValueError("give a folder or card to plan for (aucseg compare FOLDER), or --config FILE")
    if args.source is None:
        if args.time or args.weights:
            raise ValueError("--time and --weights plan a training: they go with a folder or card, not with --config")
        if args.methods is None:
            raise ValueError("--methods is missing: say what to compare, such as --methods ce,aucseg")
        args.out = args.out or Path("runs/compare")
        if args.folds is None:
            args.seeds = args.seeds or _SEEDS_OF_CONFIG
        return
    check_source(args.source)
    with loading():
        from aucseg.commands.plan import Planner
        from aucseg.commands.plan_options import default_folder, request_of

    # Each run is a process of its own, which begins with the same imports.
    start_of_run = seconds_since_start()
    given = {} if args.steps is None else {"--trainer.max_steps": str(args.steps)}
    if args.folds is None:
        args.seeds = args.seeds or _SEEDS_OF_FOLDER
    else:  # the images held out for want of a split would be those of no fold
        given["--data.fold"] = f"[0, {args.folds}]"
    args.out = args.out or Path(f"{default_folder(args.source)}-compare")
    args.config = args.out / PLAN_FILE
    planner = Planner(request_of(args.source, args, given), measured_with={"model.pixel_metrics": True})
    _complete(planner, args, start_of_run)
    args.root = args.steps = None  # the plan has them


def _complete(planner: Planner, args: argparse.Namespace, start_of_run: float) -> None:
    """Chooses methods, and plans where the folder has no plan yet."""
    from aucseg.commands.plan import check_same_data
    from aucseg.compare.methods import load_base, load_definitions, parse_methods
    from aucseg.compare.search import parse_search
    from aucseg.planning.machine import find_machine
    from aucseg.runtime.durations import format_duration

    quick = planner.plan(find_machine())
    args.methods = args.methods or _methods_for(quick)
    methods = parse_methods(listed(args.methods, "--methods"), load_definitions(args.methods_file))
    if any(method.bank for method in methods) and not quick.bank_to_try:
        raise ValueError(
            f"no bank can be planned for {args.source} ({quick.bank_advice.summary}): leave out methods with one"
        )
    if args.config.is_file():
        check_same_data(args.config, planner.request)
        _print_what_stays(args, load_base(args.config))
        return
    num_models = len(split_list(args.models)) or 1
    num_runs = num_models * len(methods) * (args.folds or len(listed(args.seeds, "--seeds")))
    num_trials = 0
    if (search := parse_search(args.search, methods, args.search_limit)) is not None:
        tuned = [method for method in methods if method.has_setting]
        num_trials = num_models * len(tuned) * (args.folds or 1) * search.limit
    request = planner.request
    if request.seconds is not None:
        request.seconds = (request.seconds - seconds_since_start()) / (num_runs + num_trials) - start_of_run
        request.begin = time.perf_counter()
    plan = planner.plan_into(args.config, args.out / CARD_FILE, with_bank_to_try=True)
    assert plan.seconds is not None
    part = 1.0 if args.search_steps is None else args.search_steps / plan.settings["trainer.max_steps"]
    total = format_duration(
        num_runs * (plan.seconds + start_of_run) + num_trials * (part * plan.seconds + start_of_run)
    )
    trials = f" and at most {counted(num_trials, 'trial')}" if num_trials else ""
    names = ", ".join(method.name for method in methods)
    print(f"{counted(num_runs, 'training')}{trials} ({names}): about {total} in all\n")


def _print_what_stays(args: argparse.Namespace, plan: Mapping[str, Any]) -> None:
    """Says that a plan stays what it was, and refuses options that it contradicts."""
    steps, fold = plan.get("trainer", {}).get("max_steps"), plan.get("data", {}).get("fold")
    if args.steps not in (None, steps):
        raise ValueError(f"--steps {args.steps}, but the plan {args.config} has {steps}: give another --out")
    if args.folds != (None if fold is None else fold[1]):
        of = "without folds" if fold is None else f"with {fold[1]} folds"
        raise ValueError(f"the plan {args.config} was made {of}: ask for the same, or give another --out")
    without_effect = [f"--{name}" for name in ("time", "weights") if getattr(args, name)]
    note = (
        f"; it was made before, and {' and '.join(without_effect)} no longer count{'s' * (len(without_effect) == 1)}"
        if without_effect
        else ""
    )
    print(f"the plan is that of {args.config}{note}; another --out begins with a new one", flush=True)


def _methods_for(plan: Plan) -> str:
    """Cross-entropy, and what is planned: AUCSeg with the bank, without, or both where the counts leave that open."""
    from aucseg.compare.methods import SUFFIX_OF_SAMPLER
    from aucseg.statistics.advice import NOT_CLEAR

    if plan.settings["model.bank"] is not None:
        planned = ["aucseg"]
    else:
        planned = ["auc", "aucseg"] if plan.bank_advice.answer == NOT_CLEAR and plan.bank_to_try else ["auc"]
    suffix = SUFFIX_OF_SAMPLER[plan.settings["data.sampler"]]
    return ",".join(["ce", *(name + suffix for name in planned)])
