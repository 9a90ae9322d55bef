"""`aucseg predict`: label maps and overlays of image files, with the model of a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aucseg.commands.option_parser import output_folder
from aucseg.runtime.announce import loading

if TYPE_CHECKING:
    import torch

_EXAMPLES = """examples:
  aucseg predict runs/a photos/ --out predictions
  aucseg predict runs/a 'photos/**/*.tif' --window 1024 1024 --flip --scales 0.75 1 1.25
  aucseg predict runs/a/checkpoints/last.ckpt photo.jpg --scores
  aucseg predict runs/ce photos/ --class-counts statistics.json    favour rare classes after training
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `aucseg predict`."""
    parser.epilog = _EXAMPLES
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder of 'aucseg fit', or a checkpoint")
    add("--best", action="store_true", help="the best checkpoint of RUN (fit --keep_best) instead of the last")
    add("inputs", nargs="+", metavar="INPUT", help="images, folders or patterns")
    add("--out", type=output_folder, default=Path("predictions"), help="folder to write to (default: %(default)s)")
    add("--window", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="sliding window (default: the whole image)")
    add("--stride", nargs=2, type=int, metavar=("DOWN", "RIGHT"), help="its step (default: three quarters of it)")
    add("--blend", choices=("linear", "average"), default="linear", help="where windows overlap (default: %(default)s)")
    add("--scales", nargs="+", type=float, default=[1.0], metavar="S", help="average over these sizes of the image")
    add("--flip", action="store_true", help="average with the mirrored image")
    add("--class-counts", type=Path, metavar="FILE", help="counts of 'aucseg stats --save FILE': adjust the "
        "logits by the class frequencies")  # fmt: skip
    add("--tau", type=float, help="strength of that adjustment (default: 1)")
    add("--scores", action="store_true", help="also write class probabilities (K, H, W)")
    add("--score-dtype", choices=("float32", "float16"), help="their dtype (default: float32); float16 is half as "
        "large, but too coarse for the pixel AUC of a confident model: all near 1 are equal")  # fmt: skip
    add("--no-overlays", action="store_true", help="write label maps only")
    add("--opacity", type=float, default=0.5, help="of the colours in the overlays (default: %(default)s)")
    add("--value-range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="values that mean black and white, for "
        "images of more than 8 bits")  # fmt: skip
    add("--exif", choices=("apply", "ignore"), help="whether to turn photographs as their EXIF data "
        "say (default: %(default)s)")  # fmt: skip
    add("--max-pixels", type=int, default=2**30, help="refuse larger images (default: %(default)s)")
    add("--batch-size", type=int, default=1, help="windows that go through the model together (default: %(default)s)")
    add("--device", help="where to predict, cpu or cuda (default: cuda where there is one)")


def run(args: argparse.Namespace) -> int:
    """Predicts every image; one that cannot be read does not stop the others.

    Returns:
        0, or 1 if some images have no prediction.
    """
    with loading():
        import torch

        from aucseg.inference.image_files import find_images
        from aucseg.inference.predict_files import predict_paths
        from aucseg.inference.predictor import InferenceOptions, Predictor
        from aucseg.run_files import best_of
        from aucseg.statistics.class_statistics import ClassStatistics
        from aucseg.training.stored_task import load_task

    if args.tau is not None and args.class_counts is None:
        raise ValueError("--tau is the strength of the adjustment by --class-counts FILE, which is missing")
    if args.score_dtype is not None and not args.scores:
        raise ValueError("--score-dtype goes with --scores, which is missing")
    statistics = None if args.class_counts is None else ClassStatistics.load(args.class_counts)
    options = InferenceOptions(
        window=None if args.window is None else tuple(args.window),
        stride=None if args.stride is None else tuple(args.stride),
        blend=args.blend,
        scales=tuple(args.scales),
        flip=args.flip,
        class_frequency=None if statistics is None else tuple(statistics.pixel_counts.tolist()),
        tau=1.0 if args.tau is None else args.tau,
        batch_size=args.batch_size,
    )
    paths = find_images(args.inputs, exclude=args.out)
    task = load_task(best_of(args.run) if args.best else args.run).to(device_named(args.device))
    if statistics is not None and (notice := statistics.check_classes(task.card, args.class_counts)):
        print(notice, file=sys.stderr)
    with torch.inference_mode():
        summary = predict_paths(
            Predictor(task, options),
            paths,
            args.out,
            class_names=task.card.class_names,
            palette=task.card.palette,
            overlays=not args.no_overlays,
            opacity=args.opacity,
            scores=args.scores,
            score_dtype=args.score_dtype or "float32",
            exif=args.exif,
            value_range=None if args.value_range is None else tuple(args.value_range),
            max_pixels=args.max_pixels,
            card=task.card,
        )
    print(f"{len(summary.done)} images predicted, in {args.out}")
    if summary.unscaled:
        print(f"--value-range does not apply to {len(summary.unscaled)} of them, which have 8 bits a channel")
    for path, reason in summary.failures.items():
        print(f"aucseg predict: {path}: {reason}", file=sys.stderr)
    return 1 if summary.failures else 0


def device_named(name: str | None) -> torch.device:
    """The device of an option `--device`, by default CUDA where there is any.

    Raises:
        ValueError: There is no such device.
    """
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch without support for it asserts
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
