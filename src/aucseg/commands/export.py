"""`aucseg export RUN --to model.onnx`: a trained model for other programs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aucseg.runtime.announce import loading

if TYPE_CHECKING:
    import numpy.typing as npt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `aucseg export`."""
    parser.epilog = """examples:
  aucseg export runs/a --to model.onnx --images photos/
  aucseg export runs/a/checkpoints/last.ckpt --to model.pt2
  aucseg export runs/a --to model.safetensors
  aucseg export runs/a --to my_model/           a folder for the Hugging Face hub
"""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or a checkpoint of a run")
    parser.add_argument(
        "--best", action="store_true", help="the best checkpoint of RUN (fit --keep_best) instead of the last"
    )
    parser.add_argument(
        "--to", required=True, metavar="PATH", help="*.onnx, *.pt2, *.safetensors, or a folder for the hub"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="PATH",
        help="images, folders or patterns: the exported file is checked on the first four (default: validation images "
        "of the run, where they are found; else random colours)",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the file; the exit status is 0, or 1 when the file failed its check."""
    with loading():
        from aucseg.datasets.bands import read_card_image
        from aucseg.inference.export import ExportError, ExportMetadata, export_model, save_for_hub, save_weights
        from aucseg.inference.image_files import find_images, read_photo
        from aucseg.run_files import best_of
        from aucseg.safe_files import check_folder
        from aucseg.training.stored_task import load_task

    to = Path(args.to)
    is_folder = args.to.endswith(("/", os.sep)) or not to.suffix or to.is_dir()
    if not is_folder and to.suffix not in (".onnx", ".pt2", ".safetensors"):
        raise ValueError(f"--to {args.to}: end it in .onnx, .pt2 or .safetensors, or in / for a folder for the hub")
    check_folder(to if is_folder else to.parent)
    if args.images and (is_folder or to.suffix == ".safetensors"):
        raise ValueError("--images checks what is exported to .onnx or .pt2; weights are written as they are")
    if args.best:
        args.run = best_of(args.run)
    task = load_task(args.run)
    metadata = ExportMetadata(
        tuple(task.card.class_names),
        tuple(task.card.palette),
        tuple(task.mean.flatten().tolist()),
        tuple(task.std.flatten().tolist()),
        getattr(task.model, "stride", 32),
    )
    if is_folder:
        name, options = (task.hparams[key] for key in ("model", "model_options"))
        if name is None:
            raise ValueError(
                "the run's model was given as a module, not by name, so that a reader could not build it again"
            )
        save_for_hub(task.model, to, metadata, name=name, options=options)
    elif to.suffix == ".safetensors":
        save_weights(task.model, to, metadata.as_strings())
    else:
        if args.images:
            found = find_images(args.images)[:4]
            # As in training: what is in files of bands is not what Pillow sees.
            images: list[npt.NDArray[Any]] | None = [
                read_photo(path) if task.card.bands is None else read_card_image(path, task.card)[0] for path in found
            ]
        else:
            images = _validation_images(args.run)
        if images is None:
            print("no validation images of the run were found; checking on random colours (better: --images)")
        try:
            print(export_model(task.model, to, metadata, images=images, in_channels=task.card.num_channels))
        except ExportError as error:
            print(f"aucseg export: {error}")
            return 1
    print(f"wrote {to}")
    return 0


def _validation_images(run: Path, num_images: int = 4) -> list[npt.NDArray[Any]] | None:
    """The first images that the run was validated on; None where they are not to be found any more."""
    from aucseg.run_files import run_folder_of
    from aucseg.training.stored_task import data_module_of

    try:
        dataset = data_module_of(run_folder_of(run)).validation_dataset(None)
        return [dataset[i]["image"].permute(1, 2, 0).numpy() for i in range(min(num_images, len(dataset)))]
    except (ValueError, TypeError, KeyError, OSError):
        return None
