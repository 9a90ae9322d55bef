"""What the training task refuses, each in a sentence that names the thing and the way out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from aucseg.datasets import DatasetCard
from aucseg.hints import check_options, difference_of_classes, shorten
from aucseg.inference.predictor import InferenceOptions
from aucseg.losses import build_loss
from aucseg.losses.pairwise_auc import PairwiseAUCLoss, auc_losses
from aucseg.memory_bank import TailMemoryBank
from aucseg.memory_bank.paper import with_paper_settings
from aucseg.models.segmentation_model import logits_of
from aucseg.training.datamodule import SegmentationDataModule
from aucseg.training.processes import print_note

# Names of a state that are worth a place in a sentence.
_NUM_SHOWN = 3


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


def build_bank(options: Mapping[str, Any], card: DatasetCard, generator: torch.Generator) -> TailMemoryBank:
    """The bank of a task, for the card's tail unless the options name other classes, by id or by name.

    Args:
        options: `model.bank`: options of `aucseg.TailMemoryBank`, or `as_in_paper` with the name of a data set, see
            `aucseg.TailMemoryBank.as_in_paper`. `protect_classes` may be a group of the card.
        card: The card of the data.
        generator: Of the bank's choices.

    Raises:
        TypeError: An option that the bank does not have.
        ValueError: No tail classes, an unknown class or an unknown group.
    """
    options = with_paper_settings(options)
    check_options("model.bank", options, TailMemoryBank, given=("num_classes", "ignore_index", "generator"))
    tail = options.pop("tail_classes", None)
    if isinstance(tail, str):
        tail = [tail]
    tail = card.tail_classes if tail is None else card.ids_of(tail, "model.bank.tail_classes")
    if not tail:
        raise ValueError(
            f"the card {card.name!r} names no tail classes: give model.bank.tail_classes a list of class ids or names, "
            "or train without a bank"
        )
    protected = options.get("protect_classes")
    if isinstance(protected, str):
        if protected not in (card.groups or {}):
            known = ", ".join(card.groups or {}) or "none"
            raise ValueError(
                f"model.bank.protect_classes is {protected!r}, which is not a group of the card {card.name!r} "
                f"(groups: {known}): name one of these or list class ids or names"
            )
        options["protect_classes"] = (card.groups or {})[protected]
    elif protected is not None:
        options["protect_classes"] = card.ids_of(protected, "model.bank.protect_classes")
    return TailMemoryBank(tail, card.num_classes, ignore_index=card.ignore_index, generator=generator, **options)


def loss_of(settings: Mapping[str, Any], card: DatasetCard, datamodule: Any) -> nn.Module:
    """The loss that a task's settings name; its class counts come from the training split, where there is one.

    Raises:
        ValueError: They name none, as those in a checkpoint of a task with a module as its loss.
    """
    if settings["loss"] is None:
        raise ValueError(
            "the loss is None: a checkpoint of a task with a module of your own does not hold it, so give it to "
            "load_from_checkpoint as well, loss=..."
        )
    options = dict(settings["loss_options"] or {})
    if "class_counts" not in options and isinstance(datamodule, SegmentationDataModule):
        options["class_counts"] = datamodule.class_counts()
    return build_loss(settings["loss"], ignore_index=card.ignore_index, **options)


def check_channels(logits: Tensor, card: DatasetCard) -> None:
    """Refuses logits (B, K, h, w) of other classes than the card's; of two classes one logit a pixel is enough."""
    if logits.shape[1] != card.num_classes and (logits.shape[1], card.num_classes) != (1, 2):
        raise ValueError(
            f"the model returned logits of shape {tuple(logits.shape)}; expected (B, {card.num_classes}, h, w): build "
            f"it for the {card.num_classes} classes of the card {card.name!r}"
        )


class CheckedLogits(nn.Module):
    """From normalized images to logits of the card's classes, in whatever form the model returns them.

    Args:
        model: See `aucseg.models.segmentation_model.logits_of`.
        card: The card of the data.
    """

    def __init__(self, model: nn.Module, card: DatasetCard) -> None:
        super().__init__()
        self.model, self._card = model, card
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, h, w); ValueError for those of other classes."""
        logits, _ = logits_of(self.model(images))
        check_channels(logits, self._card)
        return logits


def evaluation_options(options: Mapping[str, Any]) -> InferenceOptions:
    """The options of `model.evaluation`; YAML has lists where they are tuples.

    Raises:
        TypeError: An option that there is not.
        ValueError: A value out of its range.
    """
    check_options("model.evaluation", options, InferenceOptions)
    converted: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    return InferenceOptions(**converted)


def stored_card(checkpoint: Any, where: str | Path) -> DatasetCard | None:
    """The card in what a checkpoint holds; None where it is not one of this package.

    Args:
        checkpoint: What a checkpoint holds.
        where: What to call the checkpoint in messages.
    """
    settings = checkpoint.get("hyper_parameters") if isinstance(checkpoint, Mapping) else None
    text = settings.get("card") if isinstance(settings, Mapping) else None
    if not isinstance(text, str) or "\n" not in text:
        return None
    return DatasetCard.from_yaml(text, f"the card in {where}")


def check_classes(stored: DatasetCard | None, card: DatasetCard) -> None:
    """Refuses a checkpoint of other classes than those of the card.

    If only the names differ, a note is printed: the classes may have been renamed.

    Args:
        stored: The card in the checkpoint, if it has one.
        card: That of the data.

    Raises:
        ValueError: Another number of classes, or the same names in another order.
    """
    if stored is None:
        return
    found = difference_of_classes(stored.class_names, card.class_names, "in the checkpoint")
    if found is None:
        return
    difference, may_be_renamed = found
    if may_be_renamed:
        print_note(f"the class names in the checkpoint differ from those in the card {card.name!r}: {difference}")
        return
    raise ValueError(
        f"the checkpoint is of {stored.num_classes} classes (card {stored.name!r}), the card {card.name!r} has "
        f"{card.num_classes}, and they do not fit: {difference}. Use the card that the checkpoint was trained with; to "
        "train on other classes start a new run with model.init_from, which takes over all weights that fit"
    )


def check_same_card(stored: DatasetCard | None, card: DatasetCard) -> None:
    """Refuses to go on with a card by which the numbers in the files mean something else than in the training so far.

    What the card allows now and did not then was not trained on; if only the groups differ, a note is printed.

    Args:
        stored: The card in the checkpoint, if it has one.
        card: That of the data.

    Raises:
        ValueError: An id of another class, another ignore label or encoding, other bands or another range of values.
    """
    if stored is None:
        return
    changes = _differences(stored, card, "ignore_index", "mask_encoding", "bands", "value_range")
    if "error" not in (stored.exif, card.exif):
        changes += _differences(stored, card, "exif")
    then, now = _meanings(stored), _meanings(card)
    changes += [f"the id {raw} ({then[raw]} then, {now.get(raw)} now)" for raw in then if then[raw] != now.get(raw)]
    if changes:
        raise ValueError(
            f"the card {card.name!r} has changed since the checkpoint: {shorten(changes, _NUM_SHOWN, '; ')}. Go on "
            "with the earlier card, or begin a new run"
        )
    if changes := _differences(stored, card, "groups", "tail_classes"):
        print_note(f"the card {card.name!r} has changed since the checkpoint: {'; '.join(changes)}")


def _differences(then: DatasetCard, now: DatasetCard, *names: str) -> list[str]:
    pairs = {name: (getattr(then, name), getattr(now, name)) for name in names}
    return [f"{name} ({old!r} then, {new!r} now)" for name, (old, new) in pairs.items() if old != new]


def _meanings(card: DatasetCard) -> dict[int, str]:
    """What each raw id means: a train id, or to be ignored."""
    classes = {raw: f"class {number}" for number, ids in enumerate(card.raw_ids) for raw in ids}
    return classes | dict.fromkeys(card.ignore_ids, "ignored")


def state_mismatch(module: nn.Module, state: Mapping[str, Any], error: RuntimeError) -> ValueError:
    """What to say where torch has refused a state with a line for each tensor.

    Args:
        module: The task.
        state: The state dict of the checkpoint.
        error: What torch has raised.
    """
    own = module.state_dict()
    shapes = [
        key
        for key in own.keys() & state.keys()
        if isinstance(own[key], Tensor) and isinstance(state[key], Tensor) and own[key].shape != state[key].shape
    ]
    parts = []
    for title, keys in (
        ("missing in the checkpoint", own.keys() - state.keys()),
        ("unknown to the model", state.keys() - own.keys()),
        ("of another shape", shapes),
    ):
        if keys:
            parts.append(f"{title}: {len(keys)} ({shorten(sorted(keys), _NUM_SHOWN)})")
    details = "; ".join(parts) or str(error).strip().splitlines()[-1].strip()
    return ValueError(
        f"the checkpoint is not one of this model, loss and bank: {details}. Give model.model, model.model_options, "
        "model.loss and model.bank as in the config.yaml of the run that wrote it"
    )


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
            f"parameters of the model have no part in the loss ({len(unused)}: {shorten(unused, _NUM_SHOWN)}), and the "
            "processes wait for their gradients: give --trainer.strategy ddp_find_unused_parameters_true, or freeze "
            "them (requires_grad_(False))"
        )
