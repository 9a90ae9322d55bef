"""How fast a run would be on this machine: some of its steps and validations are made, and thrown away."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aucseg.datasets import SegmentationDataset
from aucseg.datasets.split import evenly_spaced
from aucseg.training.datamodule import SegmentationDataModule
from aucseg.training.quiet import quiet_lightning
from aucseg.training.task import SegmentationTask

# The first steps warm caches and take what the loaders have prepared meanwhile.
_SKIPPED = 4
_MIN_STEPS, _MAX_STEPS = 8, 200
# Images that stand for all.
_TRAINING_IMAGES, _VALIDATION_IMAGES = 256, 24


class Speed(NamedTuple):
    """What was measured.

    Attributes:
        step: Seconds of a training step, with reading, bank and optimizer.
        image: Seconds of an image of the validation, with reading and metrics.
        start: Seconds until the first step: model, loader processes, images read ahead, first steps.
        steps: Number of steps that were timed.
    """

    step: float
    image: float
    start: float
    steps: int


class _Meter(Callback):
    """Times steps, and ends the training when it has enough of them."""

    def __init__(self, seconds: float, max_steps: int) -> None:
        self.seconds = seconds
        self.max_steps = max_steps
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        _wait(pl_module.device)
        self.times.append(time.perf_counter())
        timed = len(self.times) - 1 - _SKIPPED
        is_long = timed > 0 and self.times[-1] - self.times[_SKIPPED] > self.seconds
        if timed >= self.max_steps or (timed >= _MIN_STEPS and is_long):
            trainer.should_stop = True

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        _wait(pl_module.device)
        self.times.append(time.perf_counter())


class _Sample(SegmentationDataModule):
    """A data module with a few of the images, which says nothing about its files."""

    def setup(self, stage: str) -> None:
        """Says nothing, as the run itself will."""

    def training_dataset(self, transform: Any) -> SegmentationDataset:
        """Some of the training images, held out or not."""
        dataset = self.dataset(self.train_split, transform)
        dataset.pairs = evenly_spaced(dataset.pairs, _TRAINING_IMAGES)
        return dataset

    def validation_dataset(self, transform: Any) -> SegmentationDataset:
        """Some of the images to validate on."""
        dataset = self.dataset(self.train_split if self.validates_training_images else self.val_split, transform)
        dataset.pairs = evenly_spaced(dataset.pairs, _VALIDATION_IMAGES)
        return dataset


def measure_speed(
    configuration: Mapping[str, Any], *, class_counts: Sequence[int], num_images: int, seconds: float = 8.0
) -> Speed:
    """Makes some steps and a part of a validation of a run, and throws them away.

    Args:
        configuration: `trainer`, `model` and `data` as in a configuration of `aucseg fit`.
        class_counts: Training pixels of each class, so that nothing is counted for a loss that asks for them.
        num_images: Training images of the run, for the time that it takes to read those that are kept in memory.
        seconds: About how long to measure steps.

    Raises:
        torch.cuda.OutOfMemoryError: The batch does not fit into the memory of the device.
        ValueError: Whatever the data, the model, the loss or the bank refuse.
    """
    data = {**configuration["data"], "sampler": "random", "sampler_options": None}
    model = dict(configuration["model"])
    if isinstance(model.get("loss", "aucseg"), str):
        model["loss_options"] = {"class_counts": list(class_counts), **(model.get("loss_options") or {})}
    trainer = {k: v for k, v in (configuration.get("trainer") or {}).items() if k in ("precision", "accelerator")}
    with quiet_lightning():
        # What a short run is warned of is not what the run itself is.
        warnings.simplefilter("ignore")
        try:
            max_steps = (configuration.get("trainer") or {}).get("max_steps", _MAX_STEPS)
            return _measure(data, model, trainer, num_images, seconds, max_steps)
        finally:
            gc.collect()  # the loader processes, and what is on the device
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _measure(
    data: dict[str, Any],
    model: dict[str, Any],
    trainer: dict[str, Any],
    num_images: int,
    seconds: float,
    max_steps: int,
) -> Speed:
    begin = time.perf_counter()
    task = SegmentationTask(data["card"], **model)
    module = _Sample(**data)
    # No more of them than the run will have.
    meter = _Meter(seconds, min(_MAX_STEPS, max_steps))
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False, **trainer}
    options |= {"devices": 1, "callbacks": [meter]}
    Trainer(max_steps=10 * _MAX_STEPS, limit_val_batches=0, check_val_every_n_epoch=None, **options).fit(task, module)
    steps = len(meter.times) - 1 - _SKIPPED
    step = (meter.times[-1] - meter.times[_SKIPPED]) / steps
    first = meter.times[0] - begin
    if data.get("cache") == "memory":
        first *= max(1.0, num_images / _TRAINING_IMAGES)
    start = first + meter.times[_SKIPPED] - meter.times[0]
    meter.times = []
    begin = time.perf_counter()
    Trainer(**options).validate(task, module, verbose=False)
    num_images = len(module.validation_dataset(None))
    # The first batch pays for the start of the loaders, which a run pays once.
    per_batch = min(num_images, int(data.get("eval_batch_size", 1)))
    if len(meter.times) > 1:
        image = (meter.times[-1] - meter.times[0]) / max(1, num_images - per_batch)
    else:
        image = (meter.times[-1] - begin) / num_images
    return Speed(step, image, start, steps)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
