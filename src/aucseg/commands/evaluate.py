"""`aucseg evaluate PREDICTIONS [PREDICTIONS ...] --card CARD --root DIR`: measures predictions of any framework."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aucseg.commands.option_parser import output_folder
from aucseg.runtime.announce import loading

if TYPE_CHECKING:
    from aucseg.report.evaluation import Evaluation

_EPILOG = """PREDICTIONS is a folder with one file an image, named like the image:
  label maps   PNG, TIFF, ... or NPY (height, width): the card's ids, train ids 0..K-1, or the card's colours
  scores       NPY or NPZ (K, height, width): for AUC and average precision; label maps may lie beside them
Sizes are those of the masks. Missing, extra and misshapen files are named.

examples:
  aucseg evaluate nnunet_out --card my.yaml --root my_data
  aucseg evaluate theirs ours --card cityscapes --root cityscapes --ids train
  aucseg report theirs-evaluation runs/ours --root my_data
"""
_MEANS = {"miou": "overall", "tail": "tail", "middle": "middle", "head": "head"}
_MORE = {
    "image_miou": "mean IoU by image",
    "image_worst": "  in the worst tenth of the images",
    "boundary_iou": "boundary IoU",
    "tail_boundary_iou": "  of the tail",
    "precision": "precision",
    "tail_precision": "  of the tail",
    "recall": "recall",
    "tail_recall": "  of the tail",
    "auroc": "pixel AUC",
    "tail_ap": "average precision of the tail",
    "tail_found": "objects of the tail found",
    "found_small": "objects found below 32 x 32 pixels",
    "found_medium": "  up to 96 x 96",
    "found_large": "  larger",
}
_CLASS_COLUMNS = {
    "iou": "IoU",
    "precision": "prec.",
    "recall": "recall",
    "boundary_iou": "bound.",
    "auroc": "AUC",
    "average_precision": "AP",
}
_NUM_MISTAKES = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("predictions", nargs="+", type=Path, metavar="PREDICTIONS", help="folder of predictions; several are compared")
    add("--card", required=True, metavar="CARD", help="card of the data: a name, or the path of its YAML file")
    add("--root", type=Path, metavar="DIR", help="folder of the data (not for data embedded in the package)")
    add("--split", default="val", metavar="NAME", help="split of the card (default: %(default)s)")
    add("--out", type=output_folder, metavar="DIR", help="folder of the result files (default: PREDICTIONS-evaluation)")
    add("--ids", choices=("raw", "train"), help="what label maps hold: the card's ids or train ids (default: as the "
        "values show)")  # fmt: skip
    add("--scores", choices=("softmax", "sigmoid", "identity"), help="what makes scores lie in 0..1 (default: identity "
        "where they do, else softmax)")  # fmt: skip
    add("--partial", action="store_true", help="leave out images without a usable prediction instead of refusing")
    add("--boundary-ratio", type=float, default=0.02, metavar="X", help="width of the bands of boundary IoU as a share "
        "of the diagonal (default: %(default)s)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Evaluates each folder, writes its result files and tells the numbers.

    Returns:
        0, or 1 if images were left out.
    """
    with loading():
        from aucseg.datasets.prediction_names import prediction_files
        from aucseg.report.evaluation import described, evaluate_predictions
        from aucseg.run_files import LAST_CHECKPOINT, METRICS_FILE, RESULT_FILE

    if not 0 < args.boundary_ratio < 1:
        raise ValueError(f"--boundary-ratio must lie between 0 and 1, got {args.boundary_ratio:g}")
    if args.out is not None and len(args.predictions) > 1:
        raise ValueError("--out is for one folder of predictions; several get PREDICTIONS-evaluation each")
    outs = [args.out or _default_out(folder) for folder in args.predictions]
    if len(set(outs)) < len(outs):
        raise ValueError("the same folder of predictions is given twice")
    for out in outs:
        if any((out / name).exists() for name in (LAST_CHECKPOINT, METRICS_FILE)):
            raise ValueError(f"{out} is the folder of a run: give another with --out")
    status = 0
    evaluations = []
    for folder, out in zip(args.predictions, outs, strict=True):
        evaluation = evaluate_predictions(
            folder,
            args.card,
            args.root,
            args.split,
            ids=args.ids,
            scores=args.scores,
            partial=args.partial,
            boundary_ratio=args.boundary_ratio,
            progress=_progress,
        )
        evaluation.write(out)
        evaluations.append(evaluation)
        print(_text(evaluation, f"{folder}, split {args.split!r}, {len(evaluation.images)} images"))
        skipped = prediction_files(folder, [*evaluation.images, *evaluation.left_out])[1]
        if skipped := [name for name in skipped if name != "overlays"]:  # of `aucseg predict`
            print(f"not read, as pictures for people: {', '.join(skipped)}")
        if evaluation.left_out or evaluation.extra:
            print(f"{folder}: {described(evaluation.left_out, evaluation.extra)}", file=sys.stderr)
        status = max(status, int(bool(evaluation.left_out)))
        print(f"wrote {out / RESULT_FILE}; a report of it: aucseg report {shlex.quote(str(out))}\n")
    for folder, evaluation in zip(args.predictions[1:], evaluations[1:], strict=True):
        print(_difference(folder, args.predictions[0], evaluation, evaluations[0]))
    return status


def _default_out(folder: Path) -> Path:
    resolved = folder.resolve()
    return resolved.with_name(f"{resolved.name}-evaluation")


def _progress(names: Iterable[str]) -> Iterable[str]:
    from tqdm import tqdm

    bar: Iterable[str] = tqdm(names, unit="image", disable=not sys.stderr.isatty())
    return bar


def _text(evaluation: Evaluation, title: str) -> str:
    result = evaluation.result
    metrics = result["metrics"]
    lines = [title, "mean IoU, %"]
    lines += [f"  {name:38} {_percent(metrics[key])}" for key, name in _MEANS.items() if key in metrics]
    lines += [f"{name:40} {_percent(metrics[key])}" for key, name in _MORE.items() if key in metrics]
    columns = [key for key in _CLASS_COLUMNS if key == "iou" or key in next(iter(result["per_class"].values()))]
    group_of = {c: group for group, ids in result["groups"].items() for c in ids}
    heads = "".join(f"{_CLASS_COLUMNS[key]:>8}" for key in columns)
    lines += ["", f"{'class':24} {'group':8}{heads}{'objects found':>15}"]
    for c, name in enumerate(result["class_names"]):
        numbers = result["per_class"][name] | {"iou": result["per_class_iou"][name]}
        found, total = (sum(pair[i] for pair in numbers["objects"]) for i in (0, 1))
        cells = "".join(f"  {_percent(numbers[key])}" for key in columns)
        lines.append(f"{name:24.24} {group_of.get(c, ''):8}{cells}{f'{found} of {total}':>15}")
    mistakes = _mistakes(evaluation)
    lines += ["", "what the tail is mistaken for:", *mistakes] if mistakes else []
    return "\n".join([*lines, *evaluation.notes])


def _mistakes(evaluation: Evaluation) -> list[str]:
    names, lines = evaluation.result["class_names"], []
    for c in evaluation.result["groups"].get("tail", []):
        row = evaluation.confusion[c]
        others = sorted((i for i in range(len(row)) if i != c and row[i]), key=lambda i: -row[i])[:_NUM_MISTAKES]
        if others:
            shown = ", ".join(f"{100 * row[i] / sum(row):.0f} % {names[i]}" for i in others)
            lines.append(f"  {names[c]}: {shown}")
    return lines


def _percent(value: float) -> str:
    return "     -" if math.isnan(value) else f"{100 * value:6.1f}"


def _difference(folder: Path, baseline: Path, one: Evaluation, other: Evaluation) -> str:
    from aucseg.report.bootstrap import paired_bootstrap

    groups: dict[str, Sequence[int]] = one.result["groups"]
    before, after = (
        {name: {c: (n[0], n[1]) for c, n in classes.items()} for name, classes in e.images.items()}
        for e in (other, one)
    )
    found = paired_bootstrap(before, after, len(one.result["class_names"]), groups)
    if found is None:
        return f"{folder} and {baseline} have too few images in common for an interval"
    drawn = f"{found.num_images} images" if found.num_sequences is None else f"{found.num_sequences} sequences"
    lines = [f"{folder} minus {baseline}, mean IoU in points, 95 % interval over {drawn}:"]
    lines += [
        f"  {name:10} {100 * d.value:+6.1f}   [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        for key, name in _MEANS.items()
        if (d := found.differences.get(key))
    ]
    return "\n".join([*lines, "  (over other images of the same kind; another seed of the training is not in it)"])
