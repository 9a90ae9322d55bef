"""What the training task refuses, each in a sentence that names the thing and the way out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from aucseg.hints import shorten
from aucseg.losses.pairwise_auc import PairwiseAUCLoss, auc_losses
from aucseg.training.processes import print_note


def check_numbers(micro_batches: int, bank_exchange_every: int, **at_least_0: float | None) -> None:
    """Refuses settings of `model` that are out of their ranges, which would be found out late or never.

    Args:
        micro_batches: At least 1.
        bank_exchange_every: At least 0.
        **at_least_0: Finite numbers from 0 on, by their names; None where the task chooses.

    Raises:
        ValueError: One is.
    """
    if micro_batches < 1:
        raise ValueError(f"model.micro_batches must be at least 1, got {micro_batches}")
    if bank_exchange_every < 0:
        raise ValueError(f"model.bank_exchange_every must not be negative, got {bank_exchange_every}")
    for name, value in at_least_0.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"model.{name} must be a number of at least 0, got {value}")


@contextmanager
def batch_norm_explained(batch_size: int, micro_batches: int) -> Iterator[None]:
    """Within the context a batch that batch normalization cannot take is refused in our words.

    Raises:
        ValueError: One value for each channel: a batch of one whose features have shrunk to 1 x 1.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        parts = f" in {micro_batches} parts (model.micro_batches)" if micro_batches > 1 else ""
        raise ValueError(
            f"batch normalization has one value for each channel, and so no variance: the batch is {batch_size}{parts}"
            f", and somewhere in the model the features are 1 x 1. Raise data.batch_size so that "
            f"{'each part' if parts else 'it'} is 2 or more, or choose a model without normalization after pooling"
        ) from error


def note_if_sorted(loss: nn.Module) -> None:
    """Says where processes cannot pair each other's pixels: AUC losses that are computed by sorting scores."""
    losses = [part for part in loss.modules() if isinstance(part, PairwiseAUCLoss)]
    if len(auc_losses(loss)) < len(losses):
        print_note(
            f"AUC loss with surrogate {losses[0].options.surrogate!r}: computed by sorting scores, which do not "
            "travel; each process pairs its own pixels"
        )


def check_gradients(task: LightningModule) -> None:
    """Refuses parameters that the loss does not reach, for which the processes of torch's DDP would wait.

    Raises:
        ValueError: There are some; torch itself would say so in the next step, with their numbers instead of names.
    """
    strategy = task.trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return
    if any(strategy._ddp_kwargs.get(option) for option in ("find_unused_parameters", "static_graph")):
        return
    unused = [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        raise ValueError(
            f"parameters of the model have no part in the loss ({len(unused)}: {shorten(unused, 3)}), and the "
            "processes wait for their gradients: give --trainer.strategy ddp_find_unused_parameters_true, or freeze "
            "them (requires_grad_(False))"
        )
