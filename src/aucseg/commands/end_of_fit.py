"""What a finished training shows: the classes, a picture of the validation, where the run lies, and what comes next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch
from PIL import UnidentifiedImageError

from aucseg.datasets.annotations.contact_sheet import choose
from aucseg.run_files import CONFIG_FILE, VALIDATION_PICTURE
from aucseg.runtime.announce import Announcement
from aucseg.safe_files import replacing
from aucseg.tensors.upsampling import predicted_labels
from aucseg.training.datamodule import SegmentationDataModule
from aucseg.training.task import SegmentationTask

_NUM_IMAGES = 4


def show_end(folder: Path, task: SegmentationTask, datamodule: SegmentationDataModule) -> None:
    """Prints the table of classes and the next commands, and draws the picture.

    Args:
        folder: Of the run, with the files of its last validation.
        task: What was trained.
        datamodule: What it was trained on.
    """
    from aucseg.report.class_table import class_table
    from aucseg.report.runs import read_run

    run = read_run(folder)
    table = class_table(run)
    if table:
        print(f"\n{table}\n", flush=True)
    files = f"{CONFIG_FILE}, logs and checkpoints"
    if run.images and datamodule.val_shards is None:
        try:
            with Announcement("drawing validation images"):
                _draw(folder, run, task, datamodule)
            files = f"{VALIDATION_PICTURE} (validation images, their truth and the prediction), {files}"
        except (ValueError, TypeError, OSError, RuntimeError, UnidentifiedImageError) as error:
            # The training is done and safe, whatever is wrong with a picture of it.
            print(f"no picture of validation images: {error}")
    place = shlex.quote(str(folder))
    print(f"run:  {folder}\n      {files}")
    print(f"next: aucseg report {place}\n      aucseg predict {place} PHOTOS --out predictions", flush=True)


def _draw(folder: Path, run: Any, task: SegmentationTask, datamodule: SegmentationDataModule) -> None:
    from aucseg.report.examples import Example
    from aucseg.report.shown_image import shown_tensors
    from aucseg.report.validation_picture import validation_picture

    dataset = datamodule.validation_dataset(datamodule.evaluation_transform)
    index_of = {pair.name: index for index, pair in enumerate(dataset.pairs)}
    names = [name for name in run.images if name in index_of]
    if not names:
        return
    chosen = choose([sorted(run.images[name]) for name in names], _NUM_IMAGES)
    was_training = task.training
    task.eval()
    examples = []
    for position in chosen:
        sample = dataset[index_of[names[position]]]
        size = sample["mask"].shape[-2:]
        with torch.inference_mode():
            logits = task.evaluation_logits(sample["image"][None].to(task.device))
            labels = predicted_labels(logits, size)
        shown = shown_tensors([sample["image"]], size)[0]
        prediction = {run.title: labels[0].cpu().numpy()}
        examples.append(Example(names[position], shown, sample["mask"].numpy(), prediction))
    task.train(was_training)
    with replacing(folder / VALIDATION_PICTURE) as file:
        validation_picture(examples, run.title, run.class_names, run.palette).save(file)
