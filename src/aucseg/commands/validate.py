"""`aucseg validate RUN` and `aucseg test RUN`: the metrics of a trained run on a split of its data."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from aucseg.commands.option_parser import output_folder
from aucseg.runtime.announce import loading

_EXAMPLES = """examples:
  aucseg {command} runs/a                            result files in runs/a/evaluation-{name}
  aucseg {command} runs/a --split night --out night_results
  aucseg {command} runs/a/checkpoints/previous.ckpt --root /data/elsewhere
{more}"""
_MORE = """  aucseg validate --config runs/a/config.yaml      with the options of 'aucseg fit', for several GPUs, say;
                                                   takes the run's last checkpoint, or --ckpt_path FILE
"""
# The metrics of a validation that are printed, in this order.
_SHOWN = ("miou", "head", "middle", "tail", "precision", "recall", "f1", "auroc", "tail_ap", "loss")


def names_run(arguments: Sequence[str]) -> bool:
    """Whether the arguments of `aucseg validate` name a run, rather than a configuration and options of the trainer.

    Example:
        >>> names_run(["runs/a", "--split", "test"]), names_run(["--config=run.yaml"]), names_run(["--data.card", "x"])
        (True, False, False)
    """
    options = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
    of_the_trainer = ("--config", "-c", "--print_config", "--ckpt_path", "--seed_everything")
    return not any(option in of_the_trainer or "." in option.strip("-") for option in options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `aucseg validate RUN`."""
    add_options(parser, "validate", None)


def add_options(parser: argparse.ArgumentParser, command: str, split: str | None) -> None:
    """Adds the options that `validate` and `test` have in common.

    Args:
        parser: Of the command.
        command: Its name.
        split: The split that it takes by default; None for what the run was validated on.
    """
    more = _MORE if split is None else ""
    parser.epilog = _EXAMPLES.format(command=command, name=split or "val", more=more)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder of 'aucseg fit', or one of its checkpoints")
    add("--best", action="store_true", help="the best checkpoint of RUN (fit --keep_best) instead of the last")
    add("--split", default=split, metavar="NAME", help=f"split of the card (default: {split or 'as in training'})")
    add("--held-out", action="store_true", help="the training images that the run held out, instead of a split")
    add(
        "--out",
        type=output_folder,
        metavar="DIR",
        help="folder of the result files (default: evaluation-SPLIT in the run's)",
    )
    add("--root", metavar="DIR", help="folder of the data, if it is not where the run says")
    add("--card", metavar="CARD", help="card of the data, with the run's classes, if it is not the run's")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--batch-size", type=int, metavar="N", help="images in a batch (default: as in training)")
    add("--workers", type=int, metavar="N", help="loader processes (default: as in training)")


def run(args: argparse.Namespace) -> int:
    """Evaluates the run and tells the metrics; the exit status is 0."""
    with loading():
        from aucseg.commands.predict import device_named
        from aucseg.run_files import RESULT_FILE, best_of
        from aucseg.safe_files import no_empty_folders
        from aucseg.training.datamodule import SegmentationDataModule
        from aucseg.training.evaluation import evaluate_checkpoint, run_of
        from aucseg.training.result_writer import check_writable
        from aucseg.training.stored_task import run_configuration

    if args.run.suffix in (".yaml", ".yml"):
        raise ValueError(f"{args.run} is a configuration: give the folder of the run, or --config {args.run}")
    folder, checkpoint = run_of(best_of(args.run) if args.best else args.run)
    device = device_named(args.device)
    config = run_configuration(folder)
    changes = {
        "root": args.root,
        "card": args.card,
        "eval_batch_size": args.batch_size,
        "num_workers": args.workers,
    }
    options = config["data"] | {name: value for name, value in changes.items() if value is not None}
    if args.held_out:
        options |= {"validate_held_out": True, "val_shards": None}
    elif args.split is not None:
        options |= {"val_split": args.split, "val_shards": None, "validate_held_out": False, "fold": None}
    datamodule = SegmentationDataModule(**options)
    is_held_out = datamodule.validates_held_out
    if args.held_out and not is_held_out:
        raise ValueError(f"{folder} was trained without data.held_out_share: no training images are held out")
    split = "held-out" if is_held_out else "shards" if datamodule.val_shards is not None else datamodule.val_split
    if datamodule.fold is not None and datamodule.validates_training_images and not is_held_out:
        split = f"fold{datamodule.fold[0]}"
    out = args.out or folder / f"evaluation-{_file_name(split)}"
    _check_out(out, folder)
    if split == datamodule.train_split:
        print(f"the run was trained on split {split!r}, where it looks better than it is")
    precision = (config.get("trainer") or {}).get("precision")
    notes = {"run": str(args.run), "checkpoint": checkpoint.name, "split": split}
    with no_empty_folders(out):
        check_writable(out)
        metrics = evaluate_checkpoint(checkpoint, datamodule, out, device, precision=precision, notes=notes)
    shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in _SHOWN if name in metrics)
    print(f"{args.run}, {datamodule.validation_name}: {shown}")
    print(f"wrote {out / RESULT_FILE}; a report of it: aucseg report {shlex.quote(str(out))}")
    return 0


def _file_name(split: str) -> str:
    return re.sub(r"[^\w-]+", "_", split)


def _check_out(out: Path, run: Path) -> None:
    """Refuses the folder of a run, whose own results would be replaced."""
    from aucseg.run_files import LAST_CHECKPOINT, METRICS_FILE

    if any((out / name).exists() for name in (LAST_CHECKPOINT, METRICS_FILE)):
        whose = "this run, with the results of its training" if out.resolve() == run.resolve() else "another run"
        raise ValueError(f"{out} is the folder of {whose}: give another with --out")
