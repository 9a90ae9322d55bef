"""Offsets for the model of a run: fitted on images that it was not trained on, written into its checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from aucseg.inference import OffsetFit, OffsetFitter
from aucseg.inference.offset_model import OFFSET_MODEL, add_to_bias
from aucseg.loading.evaluation_batches import EvaluationImages, collate_any_size, same_size_parts
from aucseg.models.checkpoint import file_content, load_plain
from aucseg.run_files import LAST_CHECKPOINT
from aucseg.safe_files import replace_file
from aucseg.training.datamodule import SegmentationDataModule
from aucseg.training.stored_task import load_task
from aucseg.training.task import SegmentationTask

# Any size will do to see what a bias changes; small for the networks with the largest strides.
_EXAMPLE_SIZE = (64, 96)
_NUM_EXAMPLES = 8


def fit_task_offsets(
    task: SegmentationTask,
    batches: Iterable[Mapping[str, Any]],
    *,
    objective: str | Sequence[float] = "miou",
    num_folds: int = 5,
) -> OffsetFit:
    """Fits offsets to the logits that validation takes from a task, without flip and scales.

    These take means of probabilities, which no offset in a model moves by the same offset.

    Args:
        task: In evaluation mode.
        batches: `{"image": (B, C, H, W) in 0..255, "mask": (B, H, W)}`, or lists of B tensors where sizes differ, as
            `SegmentationDataModule` has them, of images that the task was not trained on.
        objective: See `aucseg.inference.OffsetFitter.fit`; groups are the task's.
        num_folds: Parts of the images, each judged with the offsets that the others gave.
    """
    fitter = OffsetFitter(task.card.num_classes, ignore_index=task.card.ignore_index)
    with torch.inference_mode(), without_averaging(task):
        for batch in tqdm(batches, "offsets", disable=not sys.stderr.isatty(), leave=False):
            for _, images, masks in same_size_parts(batch):
                fitter.update(task.evaluation_logits(images.to(task.device)), masks.to(task.device))
    return fitter.fit(objective, groups=task.groups, num_folds=num_folds)


def averages(task: SegmentationTask) -> bool:
    """Whether the evaluation of a task takes means of probabilities, by flip or scales."""
    return task.evaluation is not None and (task.evaluation.flip or task.evaluation.scales != (1.0,))


@contextmanager
def without_averaging(task: SegmentationTask) -> Iterator[None]:
    """Evaluates a task without flip and scales within the block."""
    before = task.evaluation
    if before is not None:
        task.evaluation = replace(before, flip=False, scales=(1.0,))
    try:
        yield
    finally:
        task.evaluation = before


def evaluation_batches(
    datamodule: SegmentationDataModule, split: str | None = None, *, held_out: bool = False
) -> tuple[EvaluationImages, DataLoader[dict[str, Any]]]:
    """The images of a split, or those held out of training, as validation sees them.

    Args:
        datamodule: Of the run.
        split: Name of a split of the card; None for what the run was validated on, be it a fold.
        held_out: Whether the training images that are held out are meant instead.

    Returns:
        The images and their loader.

    Raises:
        ValueError: The split is the one that was trained on, no images are held out, or the run was validated on
            shards, which are not read one by one.
    """
    transform: Callable[[dict[str, Any]], dict[str, Any]] = datamodule.evaluation_transform
    if held_out:
        dataset = datamodule.held_out_dataset(transform)
    elif split is None and datamodule.val_shards is not None:
        raise ValueError(
            f"the run was validated on {datamodule.validation_name}, and offsets are fitted on images in a folder: "
            "name a split of the card with --split, or train with data.held_out_share 0.1"
        )
    elif split is None:
        dataset = datamodule.validation_dataset(transform)
    elif split == datamodule.train_split:
        raise ValueError(
            f"the run was trained on the split {split!r}, where it looks better than it is: name another one, or train "
            "with data.held_out_share 0.1 and use --held-out"
        )
    else:
        dataset = datamodule.dataset(split, transform)
    size, workers = datamodule.eval_batch_size, datamodule.num_workers
    images = EvaluationImages(dataset)
    return images, DataLoader(images, batch_size=size, num_workers=workers, collate_fn=collate_any_size)


def write_adjusted_checkpoint(checkpoint: Path, offsets: Sequence[float], folder: Path) -> str:
    """Writes `checkpoints/last.ckpt` of a run whose model has the offsets in it.

    They go into the bias of the layer that makes the logits, so that all that reads the model has them. A model without
    such a bias is wrapped in one that adds them.

    Args:
        checkpoint: Of the trained run.
        offsets: (K,).
        folder: Run folder to write to.

    Returns:
        Where the offsets are: the name of the layer, or "" for the wrapper.
    """
    task = load_task(checkpoint)
    content = load_plain(checkpoint)
    # Noise of many strengths, so that parts of a network that rest on plain images are at work.
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((_NUM_EXAMPLES, task.mean.numel(), *_EXAMPLE_SIZE), generator=generator)
    level = torch.rand((2, _NUM_EXAMPLES, task.mean.numel(), 1, 1), generator=generator) * 255
    low, high = level.amin(0), level.amax(0)
    layer = add_to_bias(task.model, offsets, task.normalize(low + noise * (high - low)))
    if layer is None:
        _wrap(content, torch.tensor(offsets, dtype=torch.float32))
    else:
        name = ".".join(part for part in ("model", layer, "bias") if part)
        content["state_dict"][name] = task.state_dict()[name]
    content["offsets"] = list(offsets)
    replace_file(folder / LAST_CHECKPOINT, file_content(content))
    return layer or ""


def _wrap(content: dict[str, Any], offsets: Tensor) -> None:
    settings, state = content["hyper_parameters"], content["state_dict"]
    settings["model_options"] = {"model": settings["model"], "model_options": settings["model_options"]}
    settings["model"] = OFFSET_MODEL
    for name in [name for name in state if name.startswith("model.")]:
        state["model.network.model." + name.removeprefix("model.")] = state.pop(name)
    state["model.network.offsets"] = offsets
