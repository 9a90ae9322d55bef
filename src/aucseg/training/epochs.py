"""Lengths that are given in epochs, counted in steps: training itself knows steps alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, GradientAccumulationScheduler, StochasticWeightAveraging

from aucseg.loading.sample_order import batches_of_epochs, images_of_epoch, steps_of_epochs
from aucseg.training.datamodule import SegmentationDataModule
from aucseg.training.processes import print_note

# Batches between validations where neither they nor epochs are given.
_INTERVAL = 1000
# What waits for epochs, and what to take instead.
_EPOCH_COUNTERS: dict[type[Callback], str] = {
    StochasticWeightAveraging: "EMAWeightAveraging averages by steps (docs/recipes.md)",
    GradientAccumulationScheduler: "set trainer.accumulate_grad_batches",
    BackboneFinetuning: "train with model.freeze first, then go on with model.init_from",
}


class EpochCount:
    """What the options of a trainer count in epochs, taken out of them until there is a trainer to count in steps.

    An epoch is as many images as there are to train on, or as the sampler's `num_samples` says; the last batch of one
    goes on with the next.

    Args:
        options: `max_epochs`, `max_steps`, `val_check_interval` and `check_val_every_n_epoch` of the trainer,
            as attributes. Of `max_epochs` and `max_steps` the shorter counts. Without an interval a training of
            that many epochs is validated after each.
    """

    def __init__(self, options: Any) -> None:
        self._max_epochs = None if options.max_epochs in (None, -1) else options.max_epochs
        self._between: float | None = None  # epochs between validations
        interval, every = options.val_check_interval, options.check_val_every_n_epoch
        if isinstance(interval, float):
            self._between = interval
        elif interval is None and (every or self._max_epochs is not None):
            self._between = every or 1
        options.max_epochs, options.check_val_every_n_epoch = -1, None
        if interval is None or self._between is not None:
            options.val_check_interval = _INTERVAL

    def set_steps(self, trainer: Trainer, datamodule: SegmentationDataModule) -> None:
        """Tells the trainer how many steps it takes, and says so.

        Raises:
            ValueError: A number of epochs or steps, or an interval, that is too small; a limit of batches without
                epochs; or epochs of data in shards, of which nobody knows how many images they hold.
        """
        if trainer.accumulate_grad_batches < 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches must be at least 1, got {trainer.accumulate_grad_batches}"
            )
        if self._max_epochs is not None and self._max_epochs < 1:
            raise ValueError(f"trainer.max_epochs must be at least 1, got {self._max_epochs}")
        if trainer.max_steps != -1 and trainer.max_steps < 1:
            raise ValueError(f"trainer.max_steps must be at least 1, got {trainer.max_steps}")
        interval = trainer.val_check_interval if self._between is None else self._between
        if interval <= 0:
            raise ValueError(f"trainer.val_check_interval must be above 0, got {interval}")
        limit = trainer.limit_train_batches
        if self._max_epochs is None and self._between is None:
            # To overfit some batches, Lightning limits the epoch to them.
            if not getattr(trainer, "overfit_batches", 0) and (isinstance(limit, int) or limit != 1.0):
                raise ValueError(
                    f"trainer.limit_train_batches {limit} shortens epochs, which trainer.max_steps does not count: "
                    "give trainer.max_epochs as well, or fewer max_steps alone (trainer.overfit_batches repeats the "
                    "same batches)"
                )
            return
        if datamodule.shards is not None:
            raise ValueError(
                "epochs of data.shards have no known length: give trainer.max_steps and val_check_interval"
            )
        num_images = (datamodule.sampler_options or {}).get("num_samples") or len(datamodule.training_dataset(None))
        per_batch = datamodule.batch_size * trainer.world_size
        num_images = images_of_epoch(num_images, limit, per_batch)
        if num_images == 0:
            raise ValueError(f"trainer.limit_train_batches {limit} leaves nothing to train on")
        # The limit is now part of the number of steps; left set, Lightning would apply it again.
        trainer.limit_train_batches = 1.0
        if self._between is not None:
            trainer.val_check_interval = batches_of_epochs(self._between, num_images, per_batch)
        if self._max_epochs is not None:
            steps = steps_of_epochs(self._max_epochs, num_images, per_batch * trainer.accumulate_grad_batches)
            trainer.fit_loop.epoch_loop.max_steps = steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)
            print_note(f"trainer.max_epochs {self._max_epochs} of {num_images:,} images is {steps:,} steps")


def refuse_epoch_counters(callbacks: Sequence[Callback]) -> None:
    """Refuses callbacks that wait for one of Lightning's epochs.

    Raises:
        ValueError: One of them, with what to use.
    """
    for callback in callbacks:
        instead = next((text for kind, text in _EPOCH_COUNTERS.items() if isinstance(callback, kind)), None)
        if instead is not None:
            raise ValueError(
                f"trainer.callbacks: {type(callback).__name__} waits for epochs of Lightning's, and a training here is "
                f"a single one; {instead}"
            )
