"""How long to train, and when to validate: by the number of images, or by the time that there is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aucseg.loading.sample_order import batches_of_epochs, images_of_epoch, steps_of_epochs
from aucseg.planning.fingerprint import DataFingerprint
from aucseg.planning.plan import Draft
from aucseg.runtime.durations import format_duration

if TYPE_CHECKING:
    from aucseg.training.speed import Speed

# Passes over the training images, and the fewest and most steps.
_PASSES = {"cpu": 40, "gpu": 60}
_STEPS = {"cpu": (600, 4000), "gpu": (2000, 20000)}
_MAX_VALIDATIONS = 10
_VALIDATION_SHARE = 0.1
# The least share of the time that is for training, and the fewest steps that are worth it.
_LEAST_TRAINING = 0.25
_LEAST_STEPS = 20
# Cost per pixel of a forward pass with metrics, relative to a training step.
_COST_OF_EVALUATION = 0.5


@dataclass(frozen=True)
class _Cost:
    """What steps of the optimizer, validations and the start take: seconds if they were measured, else steps."""

    step: float
    validation: float
    start: float

    def num_validations_in(self, total: float) -> int:
        """As many as stay below a tenth of the total, at least the one at the end."""
        if self.validation == 0:
            return 1
        return max(1, min(_MAX_VALIDATIONS, int(_VALIDATION_SHARE * total / self.validation)))

    def total(self, steps: int, num_validations: int) -> float:
        """That of a training with this number of validations."""
        return self.start + steps * self.step + num_validations * self.validation


def decide_budget(
    draft: Draft,
    data: DataFingerprint,
    kind: str,
    batch: int,
    size: tuple[int, int],
    speed: Speed | None,
    seconds: float | None,
    spent: float = 0.0,
) -> tuple[int, float | None]:
    """Decides on steps and validations; returns the steps, and the seconds of all.

    Args:
        draft: With crop and batch size decided.
        data: The figures of the data set.
        kind: `"cpu"`, or `"gpu"` for any accelerator.
        batch: Crops in a step, those of all accumulated batches and all processes.
        size: (height, width) of an image in validation.
        speed: What was measured, None for a plan without an estimate.
        seconds: Time that is left for start, training and validation, None for as many steps as the images ask for.
        spent: Seconds that are gone already, for the message about a time that is too short.

    Raises:
        ValueError: The time is too short to train and validate in.
    """
    accumulated = accumulated_batches(draft)
    per_batch = batch // accumulated
    cost = _cost(draft, data, batch, size, speed)
    images = _images_of_an_epoch(draft, data, per_batch)
    interval = _given_interval(draft, images, per_batch)  # in batches, as Lightning counts them
    given = draft.given.get("trainer.max_steps")
    epochs = draft.given.get("trainer.max_epochs") or -1
    of_epochs = steps_of_epochs(epochs, images, batch)
    if epochs > 0 and (given is None or of_epochs < given):
        steps = of_epochs
        draft.set("trainer.max_epochs", epochs)
        draft.decide("steps", f"{epochs:,} epochs, about {steps:,} steps", "", ("trainer.max_epochs",))
        if interval is None:
            every = math.ceil(epochs / cost.num_validations_in(steps * cost.step + cost.validation))
            draft.set("trainer.check_val_every_n_epoch", every)
            interval = batches_of_epochs(every, images, per_batch)
    else:
        steps, between, reason = _steps_and_interval(
            cost, given, interval and interval / accumulated, seconds if speed is not None else None,
            _steps_of_images(data, kind, batch), _validated_images(draft, data), spent,
        )  # fmt: skip
        draft.set("trainer.max_steps", steps)
        draft.decide("steps", f"{steps:,}", reason, ("trainer.max_steps",))
        if interval is None:
            interval = draft.set("trainer.val_check_interval", round(between * accumulated))
    # The last weights are validated in any case.
    num_validations = math.ceil(steps * accumulated / interval)
    share = num_validations * cost.validation / (cost.total(steps, num_validations) - cost.start)
    _validation(draft, data, num_validations, share, is_measured=speed is not None)
    return steps, None if speed is None else cost.total(steps, num_validations)


def _cost(draft: Draft, data: DataFingerprint, batch: int, size: tuple[int, int], speed: Speed | None) -> _Cost:
    num_images = _validated_images(draft, data)
    if speed is not None:
        return _Cost(accumulated_batches(draft) * speed.step, num_images * speed.image, speed.start)
    # In steps, of which one costs as much as its pixels.
    crop = draft.settings["data.crop_size"]
    return _Cost(1.0, num_images * size[0] * size[1] * _COST_OF_EVALUATION / (batch * crop[0] * crop[1]), 0.0)


def _steps_of_images(data: DataFingerprint, kind: str, batch: int) -> tuple[int, str]:
    """Steps for a number of images where no time is given, and why."""
    low, high = _STEPS[kind]
    wanted = round(_PASSES[kind] * data.num_training / batch)
    if wanted < low:
        return low, "the least, however few the images"
    if wanted > high:
        return high, "the most, however many the images"
    return wanted, f"{_PASSES[kind]} passes over the images"


def _steps_and_interval(
    cost: _Cost,
    given: int | None,
    interval: float | None,
    seconds: float | None,
    usual: tuple[int, str],
    num_images: int,
    spent: float,
) -> tuple[int, float, str]:
    """Steps, steps between validations, and the reason for the first.

    Args:
        cost: Of steps and validations.
        given: Steps that the user has given.
        interval: Steps between validations, where the user has given it.
        seconds: Time that is left, or None.
        usual: Steps where there is no time, and why.
        num_images: Of a validation.
        spent: Seconds that are gone already.
    """
    if given is None and seconds is not None:
        steps = _steps_in_time(cost, interval, seconds, num_images, spent)
        reason = f"what fits into {format_duration(seconds)}, which are left"
        num_validations = cost.num_validations_in(seconds - cost.start)
        between: float = max(1, steps // num_validations)
    else:
        steps, reason = usual if given is None else (given, "")
        num_validations = cost.num_validations_in(steps * cost.step + cost.validation)
        between = max(1, round(steps / num_validations)) if given is None else math.ceil(steps / num_validations)
    if interval is not None:
        return steps, interval, reason
    # The last of the validations is at the end.
    return steps if given is not None else int(between * num_validations), between, reason


def _steps_in_time(cost: _Cost, interval: float | None, seconds: float, num_images: int, spent: float) -> int:
    """Steps that fit into a time, beside their validations; see `_steps_and_interval`.

    Raises:
        ValueError: They are too few, or the validations that the user asks for leave no time for training.
    """
    if interval is None:
        per_step = cost.step
        left = seconds - cost.start - cost.num_validations_in(seconds - cost.start) * cost.validation
    else:
        per_step = cost.step + cost.validation / interval
        left = (seconds - cost.start - cost.validation) * cost.step / per_step
    share, both = cost.step / per_step, cost.start + cost.validation
    if share <= _LEAST_TRAINING:
        raise ValueError(
            f"validations as often as trainer.val_check_interval says leave {100 * share:.2g} % of the time for "
            "training: give a longer interval, or validate on the first fifth of the images: "
            "--trainer.limit_val_batches 0.2"
        )
    if left < max(_LEAST_TRAINING * seconds, _LEAST_STEPS * cost.step):
        least = max(both * share / (share - _LEAST_TRAINING), both + _LEAST_STEPS * per_step)
        gone = f"reading and measuring took {format_duration(spent)}, " if spent else ""
        raise ValueError(
            f"{format_duration(seconds + spent)} is too short: {gone}the start takes {format_duration(cost.start)}, "
            f"a validation of {num_images:,} images {format_duration(cost.validation)} and a step {cost.step:.2g} s; "
            f"give {format_duration(1.1 * least + spent)} or more, or validate on the first fifth of the images: "
            "--trainer.limit_val_batches 0.2"
        )
    return int(left / cost.step)


def accumulated_batches(draft: Draft) -> int:
    """Number of batches that one optimizer step accumulates."""
    return int(draft.given.get("trainer.accumulate_grad_batches", 1))


def processes(draft: Draft) -> int:
    """How many processes train together, as far as the options say: each has batches of its own."""
    devices = draft.given.get("trainer.devices")
    count = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else 1
    return max(1, count) * int(draft.given.get("trainer.num_nodes", 1))


def _images_of_an_epoch(draft: Draft, data: DataFingerprint, per_batch: int) -> int:
    options = draft.given.get("data.sampler_options") or {}
    drawn = draft.given.get("data.sampler_options.num_samples", options.get("num_samples")) or data.num_training
    return max(1, images_of_epoch(drawn, draft.given.get("trainer.limit_train_batches"), per_batch))


def _given_interval(draft: Draft, images: int, per_batch: int) -> int | None:
    """Batches between validations where the user has given them, or epochs between them."""
    interval = draft.given.get("trainer.val_check_interval")
    if isinstance(interval, int):
        return interval
    epochs = interval or draft.given.get("trainer.check_val_every_n_epoch")
    return None if epochs is None else batches_of_epochs(epochs, images, per_batch)


def _validated_images(draft: Draft, data: DataFingerprint) -> int:
    """How many images a validation reads: all, or what `trainer.limit_val_batches` leaves of them."""
    limit = draft.given.get("trainer.limit_val_batches")
    batches = math.ceil(data.num_validation / int(draft.settings["data.eval_batch_size"]))
    if isinstance(limit, float) and 0 <= limit <= 1:
        batches = int(limit * batches)
    elif isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0:
        batches = min(batches, limit)
    return min(data.num_validation, batches * int(draft.settings["data.eval_batch_size"]))


def _validation(draft: Draft, data: DataFingerprint, num_validations: int, share: float, *, is_measured: bool) -> None:
    """Says how often is validated, on what, and what that costs, above all where one pass is more than its share."""
    names = tuple(f"trainer.{name}" for name in ("val_check_interval", "check_val_every_n_epoch", "limit_val_batches"))
    num_images = _validated_images(draft, data)
    part = "all" if num_images == data.num_validation else f"{num_images:,} of the"
    if data.fold is not None:
        draft.set("data.fold", list(data.fold))
        names += ("data.fold",)
        images, why = f"on {part} {data.num_validation:,} images of the fold", ""
    elif data.val_split is None:
        draft.set("data.held_out_share", data.held_out_share)
        names += ("data.held_out_share",)
        held_out = f"{100 * data.held_out_share:.0f} % of the training images"
        images = f"on the {held_out} that are held out" if part == "all" else f"on {num_images:,} of the {held_out}"
        why = "there is no validation split; "
    else:
        draft.set("data.val_split", data.val_split)
        names += ("data.val_split",)
        images, why = f"on {part} {data.num_validation:,} images of {data.val_split!r}", ""
    when = "once, at the end" if num_validations == 1 else f"{num_validations} times"
    why += f"{'about ' * (not is_measured)}{100 * share:.2g} % of the time"
    if num_validations == 1 and share > _VALIDATION_SHARE and "trainer.limit_val_batches" not in draft.given:
        why += f" ({100 * _VALIDATION_SHARE:.0f} % is the aim, but the result is to be of all images; "
        why += "--trainer.limit_val_batches 0.2 takes the first fifth of them)"
    draft.decide("validation", f"{when}, {images}", why, names)
