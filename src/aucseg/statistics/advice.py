"""What follows from the counts: the groups of the classes, and whether and how to use the memory bank."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aucseg.datasets.card import DatasetCard
from aucseg.statistics.class_statistics import ClassStatistics
from aucseg.statistics.groups import HEAD_SHARE, RULE, TAIL_SHARE

USE, LEAVE_OUT, NOT_CLEAR = "use it", "do not use it", "not clear"

SAMPLER, SAMPLER_OPTIONS = "repeat_factor", {"threshold": 0.3, "max_factor": 5.0}
"""The order of the training images that is advised, see docs/trials.md, where `asks_for_sampler` says so."""
_CAPACITY = 5
# Pastes into an image on average, at most, and their share of it: more would hide the scene.
_MAX_PASTES = 3.0
_PASTED_AREA = 0.25
# Where a tail class is in more of the batches than this, on average, a bank has nothing to bring back: it helps at 0.25
# (Freedoom-LT) and at about 0.3 (photographs of defects), does harm at 0.64 (Cityscapes at 256 x 256) and changes
# nothing at 1 (CamVid).
_OFTEN = 0.55
# Smaller batches are judged as this one: whatever their size, as many images show a class as often.
_MIN_BATCH = 8
# The bank is to bring a class into this share of the batches.
_IN_BATCH = 0.5
# Presence rises at most by this factor: it is how often a sample is shown in an epoch, its own image included. Up to
# five it helped, up to seventeen it taught the stored samples by heart.
_MAX_FACTOR = 5.0
# Of fewer different images pastes are copies.
_MIN_IMAGES = 8
# Agreement of places (0 anywhere, 1 always the same) above which pastes show things where they cannot be.
_FIXED, _MOVABLE = 0.55, 0.45
_NUM_RESAMPLES = 200
# A draw of images is held in memory in parts.
_RESAMPLES_AT_ONCE = 20


def choose_groups(statistics: ClassStatistics, card: DatasetCard | None = None) -> tuple[dict[str, list[int]], str]:
    """Returns the groups and the rule behind them: the card's, or else by share of the labelled pixels.

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
        return (
            groups,
            f"tail as the card names it; of the others head from {100 * HEAD_SHARE:g} % of the labelled pixels",
        )
    return by_share, RULE


def asks_for_sampler(statistics: ClassStatistics) -> bool:
    """Returns whether a class is in so few of the images that those with it are to be drawn more often."""
    presence = statistics.presence
    return bool(((presence > 0) & (presence < SAMPLER_OPTIONS["threshold"])).any())


@dataclass(frozen=True)
class BankAdvice:
    """Whether to use the memory bank.

    Attributes:
        answer: `USE`, `LEAVE_OUT` or `NOT_CLEAR`.
        summary: The main reason in a line.
        settings: Keyword arguments of `TailMemoryBank` to try it with, whatever the answer; empty where there is
            nothing to paste.
        reasons: What answer and settings follow from, a text each.
    """

    answer: str
    summary: str
    settings: dict[str, Any]
    reasons: list[str]

    @property
    def use_bank(self) -> bool:
        """Whether the answer is `USE`."""
        return self.answer == USE


def advise_bank(
    statistics: ClassStatistics, tail: Sequence[int], middle: Sequence[int], *, batch_size: int, by_share: bool = False
) -> BankAdvice:
    """Returns whether to use the memory bank, suggested settings of it, and the reasons.

    The bank is for classes that most batches lack. What counts is the share of batches of `batch_size` images that
    hold a tail class, `1 - (1 - p)^batch_size` for a class in a share p of the images, on average over the tail. (A
    batch below 8 is judged as one of 8: so many images show a class as often, in however many steps.) The answer is
    clear where it is the same for all of 200 data sets of as many images drawn with replacement from these (the
    bootstrap: Efron, Annals of Statistics 1979); so two halves of one data set do not get opposite answers.

    The bank then brings a class into half of the batches, but raises its presence at most five times: this is how often
    a stored sample is shown in an epoch, which is what keeps a model from learning the samples by heart.

    Args:
        statistics: The counts.
        tail: Ids of the tail classes.
        middle: Ids of the middle classes.
        batch_size: Images in a batch.
        by_share: Whether the tail is what has a small share of the pixels, so that another draw of images may have
            another tail.
    """
    tail = [class_id for class_id in tail if statistics.pixel_counts[class_id] > 0]
    middle = [class_id for class_id in middle if statistics.pixel_counts[class_id] > 0]
    if not tail:
        drawn = _resampled(statistics, tail, max(batch_size, _MIN_BATCH), by_share) if by_share else ()
        answer = NOT_CLEAR if any(share < _OFTEN for share in drawn) else LEAVE_OUT
        reason = "no tail class occurs: there is nothing to bring back"
        return BankAdvice(answer, reason, {}, [reason])
    settings, about_settings = _settings(statistics, tail, middle, batch_size)
    answer, summary, reasons = _answer(statistics, tail, batch_size, by_share)
    if not settings and answer != LEAVE_OUT:
        # A draw decides whether a class has one image more: the answer is never the opposite of `USE`.
        answer, summary = NOT_CLEAR, "no tail class is both rare and in enough different images to paste"
    elif answer == NOT_CLEAR:
        reasons.append(
            "another draw of images might give another answer: train without a bank, or try both ('aucseg compare')"
        )
    return BankAdvice(answer, summary, settings, [*reasons, *about_settings])


def bank_options(settings: Mapping[str, Any], groups: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Returns the settings as `model.bank` of a configuration, whose card knows number and groups of the classes."""
    options = {key: value for key, value in settings.items() if key != "num_classes"}
    if set(options["tail_classes"]) == set(groups["tail"]):
        del options["tail_classes"]
    options["protect_classes"] = "middle" if options["protect_classes"] else []
    return options


def _answer(
    statistics: ClassStatistics, tail: list[int], batch_size: int, by_share: bool
) -> tuple[str, str, list[str]]:
    """The answer, the main reason in a line, and all of them."""
    asked, batch_size = batch_size, max(batch_size, _MIN_BATCH)
    as_which = "" if asked == batch_size else f", as which one of {asked} is judged,"
    in_batch = 1 - (1 - statistics.presence[tail]) ** batch_size
    drawn = list(_resampled(statistics, tail, batch_size, by_share))
    low, high = min(drawn), max(drawn)
    reasons = [
        f"at batch size {batch_size}{as_which} a tail class is in {_percent(in_batch.mean())} of the batches on "
        f"average (between {_percent(low)} and {_percent(high)} in {_NUM_RESAMPLES} data sets drawn from this one): a "
        f"bank helps where it is below {_percent(_OFTEN)}, and has nothing to bring back above"
    ]
    known = statistics.image_counts[tail] >= _MIN_IMAGES
    places = statistics.fixedness[tail][known]
    place = float(np.nanmedian(places)) if np.isfinite(places).any() else 0.0
    if place > _MOVABLE:
        reasons.append(
            f"the tail classes keep to their places (median agreement of places {place:.2f} of 1; from {_FIXED:g} a "
            "bank is left out): pasting them elsewhere shows things where they cannot be, and cost accuracy where it "
            "was measured"
        )
    often = f"a tail class is in {_percent(in_batch.mean())} of the batches on average"
    if low > _OFTEN:
        return LEAVE_OUT, f"{often}: nothing to bring back", reasons
    if place > _FIXED:
        return LEAVE_OUT, "the tail classes keep to their places, which pastes would not", reasons
    if high < _OFTEN and place <= _MOVABLE:
        return USE, often, reasons
    return NOT_CLEAR, "not clear whether one helps: try both with 'aucseg compare'", reasons


def _resampled(statistics: ClassStatistics, tail: list[int], batch_size: int, by_share: bool) -> Iterator[float]:
    """The mean share of batches that hold a tail class, in data sets drawn with replacement; 1 without a tail class."""
    holds = statistics.image_classes.astype(np.float32)
    rng = np.random.default_rng(0)
    length = len(holds)
    for _ in range(0, _NUM_RESAMPLES, _RESAMPLES_AT_ONCE):
        times = rng.multinomial(length, np.full(length, 1 / length), size=_RESAMPLES_AT_ONCE).astype(np.float32)
        for counts in (times @ holds).round():
            is_tail = np.zeros(statistics.num_classes, bool)
            if by_share:
                # Not the pixels of each image are known, but their mean; they are taken to vary by as much.
                pixels = rng.standard_gamma(counts) * statistics.mean_pixels_where_present
                is_tail = pixels < TAIL_SHARE * pixels.sum()
            else:
                is_tail[tail] = True
            presence: npt.NDArray[np.float64] = counts[is_tail & (counts > 0)] / length
            yield float((1 - (1 - presence) ** batch_size).mean()) if len(presence) else 1.0


def _settings(
    statistics: ClassStatistics, tail: list[int], middle: list[int], batch_size: int
) -> tuple[dict[str, Any], list[str]]:
    """Settings of the bank, none where there is nothing to paste, and what there is to say about them."""
    wanted = 1 - (1 - _IN_BATCH) ** (1 / batch_size)
    target, pasted, num_pasted = _best_target(statistics, tail, wanted)
    if not pasted:
        return {}, [
            f"no tail class is both in less than {_percent(wanted)} of the images and in {_MIN_IMAGES} different ones "
            "or more: there is nothing to paste, or pastes would be copies of a few samples"
        ]
    reasons = [
        f"presence_target {target:g}: "
        + (
            f"a class is then in {_percent(_IN_BATCH)} of the batches"
            if target >= wanted - 0.001
            else f"more would be above {_MAX_PASTES:g} pasted into an image"
        ),
        f"max_factor {_MAX_FACTOR:g}: or that many times as often as it is now, where that is less; a sample is shown "
        "about as many times an epoch",
        f"tail_classes: {len(pasted)} of the {len(tail)} that occur"
        + (
            ""
            if len(pasted) == len(tail)
            else f"; the others are in as many images already, or in fewer than {_MIN_IMAGES}"
        ),
    ]
    if middle:
        reasons.append("protect_classes: the middle classes, which pastes would otherwise cover")
    area = float(statistics.mean_pixels_where_present[pasted].mean())
    num_pasted = max(1.0, num_pasted)
    share = area / statistics.max_image_pixels
    resize_ratio = min(1.0, max(0.1, round(math.sqrt(_PASTED_AREA / (num_pasted * share)), 1)))
    reasons += [
        f"resize_ratio {resize_ratio:g}: such a class covers {100 * share:.2g} % of the image where it occurs; about "
        f"{num_pasted:.2g} pasted into an image are to stay below {100 * _PASTED_AREA:g} % of it",
        f"capacity {_CAPACITY}: the paper's value; the bank then holds about "
        f"{len(pasted) * _CAPACITY * area * 4 / 1e6:.2g} MB (uint8 images)",
    ]
    settings = {
        "tail_classes": pasted,
        "num_classes": statistics.num_classes,
        "capacity": _CAPACITY,
        "presence_target": target,
        "max_factor": _MAX_FACTOR,
        "resize_ratio": resize_ratio,
        "scope": "image",
        "protect_classes": middle,
    }
    return settings, reasons


def _best_target(statistics: ClassStatistics, tail: list[int], wanted: float) -> tuple[float, list[int], float]:
    """The highest target, in thousandths, that pastes few enough; the classes that it is for; pastes into an image."""
    enough = [c for c in tail if statistics.image_counts[c] >= _MIN_IMAGES]
    target = math.floor(1000 * wanted + 1e-9) / 1000
    while True:
        pasted = [c for c in enough if statistics.presence[c] < target]
        presence = statistics.presence[pasted]
        gain = float((np.minimum(target, _MAX_FACTOR * presence) - presence).sum())
        if gain <= _MAX_PASTES:
            return target, pasted, gain
        target = round(target - 0.001, 3)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"
