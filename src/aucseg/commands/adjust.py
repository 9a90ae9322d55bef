"""`aucseg adjust`: from ranking to labels, one offset a class fitted to a trained run."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aucseg.commands.option_parser import output_folder
from aucseg.hints import shorten
from aucseg.runtime.announce import loading

if TYPE_CHECKING:
    import torch

    from aucseg.inference import OffsetFit
    from aucseg.training.datamodule import SegmentationDataModule
    from aucseg.training.task import SegmentationTask

ADJUST_FILE = "adjust.json"
_MAX_LINES = 20

_EPILOG = """The offsets are fitted on images that the run was not trained on:
  those that it held out (data.held_out_share), the default where there are any, or
  a split of the card (--split), by default the validation split. Its images are then judged in parts, each with offsets
  fitted on the others, so that one small split serves both; --folds 2 judges two halves on each other.
Nothing is written where the gain is not above its spread.

examples:
  aucseg adjust runs/a                                 offsets for mean IoU; a new run folder runs/a-adjusted
  aucseg adjust runs/a --objective tail --split val
  aucseg adjust runs/a --class-weight rider=3 train=2
  aucseg report runs/a runs/a-adjusted                 and predict, export and validate take it like any run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `aucseg adjust`."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder of 'aucseg fit'")
    add("--best", action="store_true", help="the best checkpoint of RUN (fit --keep_best) instead of the last")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--split", metavar="NAME", help="split of the card to fit on")
    images.add_argument("--held-out", action="store_true", help="fit on the training images that the run held out")
    add("--objective", default="miou", help="miou, or a group of the card, such as tail (default: %(default)s)")
    add("--class-weight", nargs="+", default=[], metavar="CLASS=W", help="weights of classes in the mean, all others 1")
    add("--folds", type=int, default=5, metavar="N", help="parts of the images, see below (default: %(default)s)")
    add("--out", type=output_folder, metavar="DIR", help="new run folder (default: RUN-adjusted)")
    add("--overwrite", action="store_true", help="replace an earlier adjusted run there")
    add("--root", metavar="DIR", help="folder of the data, instead of the run's")
    add("--device", help="cpu or cuda (default: cuda where there is one)")


def run(args: argparse.Namespace) -> int:
    """Fits, judges and writes.

    Returns:
        0, or 1 if the gain is not above its spread and nothing was written.
    """
    with loading():
        from aucseg.commands.predict import device_named
        from aucseg.run_files import best_of
        from aucseg.training.adjustment import averages, evaluation_batches, fit_task_offsets
        from aucseg.training.stored_task import data_module_of, load_task_for

    _check_run(args.run)
    out = args.out or args.run.resolve().with_name(args.run.resolve().name + "-adjusted")
    _check_out(out, args.overwrite)
    if args.best:
        args.run = best_of(args.run)
    datamodule = data_module_of(args.run, args.root, validate_held_out=False)
    held_out = args.held_out or (args.split is None and datamodule.held_out_share > 0)
    # A fold and shards are validated on instead of the split of that name.
    is_of_split = datamodule.fold is None and datamodule.val_shards is None
    is_validation = not held_out and (args.split is None or (is_of_split and args.split == datamodule.val_split))
    device = device_named(args.device)
    task = load_task_for(datamodule.card, args.run).to(device)
    task.take_groups(datamodule.card)
    objective = _objective(args.objective, args.class_weight, task)
    images, batches = evaluation_batches(datamodule, args.split, held_out=held_out)
    where = f"images of {datamodule.validation_name if args.split is None else f'split {args.split!r}'}"
    if held_out:
        where = "held-out training images"
    for line in datamodule.parts.describe():
        print(line)
    print(f"fitting one offset a class on {len(images)} {where} ...", flush=True)
    if averages(task):
        where += ", without the flip and the scales of model.evaluation"
        print("offsets act on logits: they are fitted and judged without the flip and the scales of model.evaluation")
    fit = fit_task_offsets(task, batches, objective=objective, num_folds=args.folds)
    if images.num_left_out:
        print(f"left out {images.num_left_out} of these {len(images)}, which cannot be read")
    print(_table(fit, task, f"{len(images) - images.num_left_out} {where}"))
    if not fit.accepted:
        print(
            f"aucseg adjust: the gain in {_title(fit)}, {_signed(fit.gain)}, is not above its spread, "
            f"{100 * fit.spread:.1f}: on other images the offsets may as well do harm, and none were written"
        )
        return 1
    layer = _write_run(fit, task, args.run, where, out)
    # Without a validation split the images fitted on are all there is to judge by.
    has_others = not is_of_split or datamodule.val_split in datamodule.card.splits
    if is_validation or not has_others:
        _write_cross_fitted(fit, task, out)
    else:
        _write_evaluated(task, args.run, datamodule, out, device)
    place = f"in the bias of {layer}" if layer else "behind the model, none of whose biases would do"
    print(f"wrote {out}: the offsets are {place}")
    return 0


def _check_run(run: Path) -> None:
    if not run.is_dir():
        raise ValueError(f"{run} is not a run folder of 'aucseg fit'")
    if (run / ADJUST_FILE).is_file():
        first = json.loads((run / ADJUST_FILE).read_text(encoding="utf-8")).get("run")
        raise ValueError(
            f"{run} has offsets already, fitted on the images that would judge them: adjust {first}, which it was "
            "made of"
        )


def _check_out(out: Path, overwrite: bool) -> None:
    is_adjusted = (out / ADJUST_FILE).is_file()
    if out.exists() and any(out.iterdir()) and not (overwrite and is_adjusted):
        way_out = "--overwrite replaces it" if is_adjusted else "give another with --out"
        raise ValueError(f"{out} is not empty: {way_out}")


def _objective(name: str, items: Sequence[str], task: SegmentationTask) -> str | list[float]:
    known = ["miou", *(task.groups or {})]
    if name not in known:
        raise ValueError(f"--objective {name!r}: expected one of {', '.join(known)}")
    if not items:
        return name
    names = list(task.card.class_names)
    chosen = range(len(names)) if name == "miou" else (task.groups or {})[name]
    weights = [1.0 if class_id in chosen else 0.0 for class_id in range(len(names))]
    for item in items:
        class_name, _, text = item.rpartition("=")
        if class_name not in names:
            raise ValueError(f"--class-weight {item}: expected CLASS=W; classes are {', '.join(names)}")
        try:
            weight = float(text)
        except ValueError as error:
            raise ValueError(f"--class-weight {item}: {text!r} is not a number") from error
        if not 0 <= weight < math.inf:
            raise ValueError(f"--class-weight {item}: a weight must be a number of at least 0")
        weights[names.index(class_name)] = weight
    return weights


def _write_run(fit: OffsetFit, task: SegmentationTask, run: Path, where: str, out: Path) -> str | None:
    """Writes configuration, checkpoint and record of the new run; returns the layer whose bias has the offsets."""
    from aucseg.run_files import CONFIG_FILE, checkpoint_in
    from aucseg.safe_files import write_json
    from aucseg.training.adjustment import write_adjusted_checkpoint
    from aucseg.training.result_writer import remove_run

    out.mkdir(parents=True, exist_ok=True)
    remove_run(out)  # the new one may have fewer result files
    shutil.copyfile(run / CONFIG_FILE, out / CONFIG_FILE)
    layer = write_adjusted_checkpoint(checkpoint_in(run), fit.offsets, out)
    names = task.card.class_names
    record = fit.as_dict() | {
        "run": str(run),
        "images": where,
        "layer": layer,
        **{
            key: dict(zip(names, getattr(fit, key), strict=True))
            for key in ("offsets", "iou_before", "iou_after", "occurs")
        },
    }
    write_json(out / ADJUST_FILE, record, indent=2)
    return layer


def _write_evaluated(
    task: SegmentationTask, run: Path, datamodule: SegmentationDataModule, out: Path, device: torch.device
) -> None:
    """Writes the result on the validation images, and shows it beside that of the run without offsets."""
    from aucseg.run_files import LAST_CHECKPOINT, checkpoint_in
    from aucseg.training.evaluation import evaluate_checkpoint

    # The files of the model as it was are not for the new run's folder, not even for the time being.
    with tempfile.TemporaryDirectory() as folder:
        before = evaluate_checkpoint(checkpoint_in(run), datamodule, Path(folder), device)
    after = evaluate_checkpoint(out / LAST_CHECKPOINT, datamodule, out, device)
    print(f"\non {datamodule.validation_name}, which chose nothing:")
    print("\n".join(_lines({name: (before[name], after[name]) for name in ("miou", *(task.groups or {}))})))


def _write_cross_fitted(fit: OffsetFit, task: SegmentationTask, out: Path) -> None:
    """Writes the result of a run whose validation images were fitted on: each with the offsets that others gave."""
    from aucseg.metrics.result_files import result_entries
    from aucseg.run_files import LAST_CHECKPOINT, RESULT_FILE
    from aucseg.safe_files import write_json
    from aucseg.training.adjustment import averages
    from aucseg.training.checkpoints import checkpoint_step

    result = result_entries(
        task.card,
        step=checkpoint_step(out / LAST_CHECKPOINT),
        metrics={name: _mean([fit.iou_after[i] for i in ids]) for name, ids in _groups(task).items()},
        per_class_iou=fit.iou_after,
        groups=task.groups,
    )
    if averages(task):
        result["evaluation"] = "without flip and scales"
    write_json(out / RESULT_FILE, result, indent=2)


def _groups(task: SegmentationTask) -> dict[str, Sequence[int]]:
    return {"miou": range(task.card.num_classes), **(task.groups or {})}


def _means(fit: OffsetFit, task: SegmentationTask) -> dict[str, tuple[float, float]]:
    """Mean IoU before and after, over all classes and by group, of the classes that the truth has, as in the fit."""
    means = {}
    for name, ids in _groups(task).items():
        known = [i for i in ids if fit.occurs[i]]
        means[name] = _mean([fit.iou_before[i] for i in known]), _mean([fit.iou_after[i] for i in known])
    return means


def _table(fit: OffsetFit, task: SegmentationTask, where: str) -> str:
    lines = [f"mean IoU in % on {where}, each judged with offsets fitted on others ({fit.num_folds} folds):"]
    lines += _lines(_means(fit, task))
    absent = [name for name, occurs in zip(task.card.class_names, fit.occurs, strict=True) if not occurs]
    lines += [f"without the classes that have no pixel there: {shorten(absent)}"] if absent else []
    order = sorted(range(task.card.num_classes), key=lambda i: -abs(fit.offsets[i]))[:_MAX_LINES]
    lines += ["", f"{'class':24} {'offset':>8} {'before':>8} {'after':>8}"]
    for i in order:
        values = " ".join(f"{_percent(value):>8}" for value in (fit.iou_before[i], fit.iou_after[i]))
        lines.append(f"{task.card.class_names[i]:24.24} {fit.offsets[i]:+8.2f} {values}")
    hidden = task.card.num_classes - len(order)
    lines += [f"... and {hidden} classes with smaller offsets"] if hidden else []
    lines += ["", f"gain in {_title(fit)}: {_signed(fit.gain)}, spread {100 * fit.spread:.1f}"]
    if not fit.is_exact:
        lines.append("(pixels of frequent classes were drawn to bound the memory)")
    return "\n".join(lines)


def _lines(rows: dict[str, tuple[float, float]]) -> list[str]:
    lines = [f"{'':24} {'before':>8} {'after':>8}"]
    for name, (before, after) in rows.items():
        title = "overall" if name == "miou" else name
        lines.append(f"{title:24} {_percent(before):>8} {_percent(after):>8}   {_signed(after - before)}")
    return lines


def _title(fit: OffsetFit) -> str:
    return {"miou": "mean IoU", "weights": "the weighted mean IoU"}.get(fit.objective, f"the IoU of {fit.objective}")


def _percent(value: float, sign: str = "") -> str:
    return "–" if math.isnan(value) else f"{100 * value:{sign}.1f}"


def _signed(value: float) -> str:
    return _percent(value, "+")


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
