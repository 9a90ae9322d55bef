"""Whether a checkpoint is of the classes, the card and the model at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aucseg.datasets import DatasetCard
from aucseg.hints import difference_of_classes, shorten
from aucseg.training.processes import print_note

# Names of a state that are worth a place in a sentence.
_NUM_SHOWN = 3


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
    note_other_groups(stored, card)


def note_other_groups(stored: DatasetCard, card: DatasetCard) -> None:
    """Prints a note where the card groups the classes in another way than that of the checkpoint."""
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
