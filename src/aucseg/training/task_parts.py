"""The parts of a training task that its settings name: loss, bank, options of the evaluation, checked logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aucseg.datasets import DatasetCard
from aucseg.hints import check_options
from aucseg.inference.predictor import InferenceOptions
from aucseg.losses import build_loss
from aucseg.memory_bank import TailMemoryBank
from aucseg.memory_bank.paper import with_paper_settings
from aucseg.models.segmentation_model import logits_of
from aucseg.training.datamodule import SegmentationDataModule


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
