"""What follows from the counts: the groups of the classes, and whether and how to use the memory bank."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from aucseg.datasets.card import DatasetCard
from aucseg.statistics.class_statistics import ClassStatistics, Shares

_CAPACITY = 5
# Without middle classes to compare with.
_PRESENCE_TARGET = 0.1
# Pastes into an image on average, at most: the embedded data gain from 3 (see docs/bank.md), and more hide the scene.
_MAX_PASTES = 3.0
_PASTED_AREA = 0.25
# A class is missing from few batches when it is in one with this probability.
_IN_BATCH = 0.9


def choose_groups(statistics: ClassStatistics, card: DatasetCard | None = None) -> tuple[dict[str, list[int]], str]:
    """Return the groups and the rule behind them: the card's, or else by share of the labelled pixels.

    Where the card names its tail alone, the other classes are head or middle by share.
    """
    by_share = statistics.groups()
    if card is not None and card.groups is not None:
        return card.groups, "as the card names them"
    if card is not None and card.tail_classes is not None:
        head = [c for c in by_share["head"] if c not in card.tail_classes]
        taken = {*head, *card.tail_classes}
        middle = [c for c in range(statistics.num_classes) if c not in taken]
        groups = {"head": head, "middle": middle, "tail": list(card.tail_classes)}
        return groups, "tail as the card names it; of the others head from 2 % of the labelled pixels"
    return by_share, "by share of the labelled pixels: head from 2 %, tail below 0.5 %"


def advise_bank(statistics: ClassStatistics, tail: list[int], middle: list[int], *, batch_size: int) -> dict[str, Any]:
    """Return suggested settings of the memory bank, each with its reason.

    The bank is to make the tail as common as a typical middle class and no commoner, and to leave the middle's pixels
    alone. So it has nothing to do where every tail class is that common already, or in nearly every batch.

    Returns:
        ``use_bank`` (bool), ``settings`` (keyword arguments of ``TailMemoryBank``), ``reasons`` (texts).
    """
    tail = [class_id for class_id in tail if statistics.pixel_counts[class_id] > 0]
    middle = [class_id for class_id in middle if statistics.pixel_counts[class_id] > 0]
    if not tail:
        return {"use_bank": False, "settings": {}, "reasons": ["no tail class occurs: there is nothing to bring back"]}
    presence = statistics.presence[tail]
    in_batch = 1 - (1 - presence) ** batch_size
    typical = float(np.median(statistics.presence[middle])) if middle else _PRESENCE_TARGET
    target = _presence_target(presence, typical)
    num_rare = int((presence < target).sum())
    places = statistics.fixedness[tail]
    use_bank = num_rare > 0
    reasons = [
        f"tail_classes: the {len(tail)} tail classes that occur",
        f"at batch size {batch_size} a tail class is in the batch with probability {in_batch.mean():.2g} on "
        f"average, and {int((in_batch >= _IN_BATCH).sum())} of {len(tail)} with at least {_IN_BATCH:g}",
        f"presence_target {target:g}: "
        + (f"a typical middle class is in {100 * typical:.2g} % of the images" if middle else "no middle classes here")
        + ("" if target >= typical - 0.005 else f", but that would be more than {_MAX_PASTES:g} pastes an image")
        + f"; {num_rare} of the {len(tail)} are in fewer images and are pasted, the others are left alone",
    ]
    if not num_rare:
        reasons.append("so a bank would do nothing: train without one")
    elif (in_batch >= _IN_BATCH).all():
        use_bank = False
        reasons.append(
            f"every tail class is in at least {100 * _IN_BATCH:g} % of the batches already: the bank has nothing to "
            "bring back, and changed nothing where it was measured (CamVid)"
        )
    if np.isfinite(places).any() and np.nanmedian(places) > 0.5:
        use_bank = False
        reasons.append(
            f"the tail classes keep to their places (median agreement of places {np.nanmedian(places):.2f} of 1): "
            "pasting them elsewhere shows things where they cannot be, and cost accuracy where it was measured"
        )
    if middle:
        reasons.append("protect_classes: the middle classes, which pastes would otherwise cover")
    num_pasted = max(1.0, float(np.clip(target - presence, 0, None).sum()))
    area = float(statistics.mean_pixels_where_present[tail].mean()) / statistics.max_image_pixels
    resize_ratio = min(1.0, max(0.1, round(math.sqrt(_PASTED_AREA / (num_pasted * area)), 1)))
    bank_bytes = len(tail) * _CAPACITY * float(statistics.mean_pixels_where_present[tail].mean()) * 4
    reasons += [
        f"resize_ratio {resize_ratio:g}: a tail class covers {100 * area:.2g} % of the image where it occurs; about "
        f"{num_pasted:.2g} pasted into an image are to stay below {100 * _PASTED_AREA:g} % of it",
        f"capacity {_CAPACITY}: the paper's value; the bank then holds about {bank_bytes / 1e6:.2g} MB (uint8 images)",
    ]
    settings = {
        "tail_classes": tail,
        "num_classes": statistics.num_classes,
        "capacity": _CAPACITY,
        "presence_target": target,
        "resize_ratio": resize_ratio,
        "scope": "image",
        "protect_classes": middle,
    }
    return {"use_bank": use_bank, "settings": settings, "reasons": reasons}


def _presence_target(presence: Shares, typical: float) -> float:
    """The presence of a typical middle class in whole percent, or what takes fewer pastes."""
    percent = max(1, round(100 * typical))
    while percent > 1 and np.clip(percent / 100 - presence, 0, None).sum() > _MAX_PASTES:
        percent -= 1
    return percent / 100
