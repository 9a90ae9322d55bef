"""How long to train, and when to validate: by the number of images, or by the time that there is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from aucseg.planning.fingerprint import DataFingerprint
from aucseg.planning.plan import Draft
from aucseg.runtime.durations import format_duration

if TYPE_CHECKING:
    from aucseg.training.speed import Speed

# Passes over the training images, and the fewest and most steps.
_PASSES = {"cpu": 40, "cuda": 60}
_STEPS = {"cpu": (600, 4000), "cuda": (2000, 20000)}
_MAX_VALIDATIONS = 10
_VALIDATION_SHARE = 0.1
# Of an image's forward pass, with metrics, in training steps a pixel.
_COST_OF_EVALUATION = 0.5


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
        kind: `"cpu"` or `"cuda"`.
        batch: Crops in a step, those of all accumulated batches and all processes.
        size: (height, width) of an image in validation.
        speed: What was measured, None for a plan without an estimate.
        seconds: Time that is left for start, training and validation, None for as many steps as the images ask for.
        spent: Seconds that are gone already, for what is said of a time that is too short.

    Raises:
        ValueError: The time is too short to train and validate in.
    """
    crop = draft.settings["data.crop_size"]
    accumulated = accumulated_batches(draft)
    num_images = _validated_images(draft, data)
    if speed is None:
        # In steps, of which one costs as much as its pixels.
        step, start = 1.0, 0.0
        validation = num_images * size[0] * size[1] * _COST_OF_EVALUATION / (batch * crop[0] * crop[1])
    else:
        step, validation, start = accumulated * speed.step, num_images * speed.image, speed.start
    low, high = _STEPS[kind]
    wanted = round(_PASSES[kind] * data.num_training / batch)
    steps = min(max(wanted, low), high)
    reason = f"{_PASSES[kind]} passes over the images" if steps == wanted else (
        "the least, however few the images" if steps == low else "the most, however many the images"
    )  # fmt: skip
    epochs = draft.given.get("trainer.max_epochs")
    if "trainer.max_steps" not in draft.given and isinstance(epochs, int) and epochs > 0:
        return _epochs(draft, data, epochs, batch, step, validation, start if speed is not None else None)
    is_timed = seconds is not None and speed is not None and "trainer.max_steps" not in draft.given
    if is_timed:
        assert seconds is not None
        number = _number_of_validations(seconds - start, validation)
        left = seconds - start - number * validation
        if left < max(0.25 * seconds, 20 * step):
            least = max(4 / 3 * (start + validation), start + validation + 20 * step)
            gone = f"reading and measuring took {format_duration(spent)}, " if spent else ""
            raise ValueError(
                f"{format_duration(seconds + spent)} are too short: {gone}the start takes {format_duration(start)}, "
                f"a validation of {num_images:,} images {format_duration(validation)} and a step {step:.2g} s; give "
                f"{format_duration(1.1 * least + spent)} or more, or validate on the first fifth of the images: "
                "--trainer.limit_val_batches 0.2"
            )
        steps, reason = int(left / step), f"what fits into {format_duration(seconds)}, which are left"
    steps = draft.given.get("trainer.max_steps", steps)
    number = _number_of_validations(steps * step + validation, validation)
    interval = math.ceil(steps / number)
    if "trainer.max_steps" not in draft.given:
        interval = max(1, steps // number if is_timed else round(steps / number))
        steps = interval * number
    steps = int(draft.set("trainer.max_steps", steps))
    # Lightning counts batches.
    interval = draft.set("trainer.val_check_interval", interval * accumulated)
    draft.decide("steps", f"{steps:,}", reason if "trainer.max_steps" not in draft.given else "",
                 ("trainer.max_steps",))  # fmt: skip
    number = max(1, round(steps * accumulated / interval)) if isinstance(interval, int) else number
    total = None if speed is None else start + steps * step + number * validation
    share = number * validation / (steps * step + number * validation)
    names = ("trainer.val_check_interval",)
    _validation(draft, data, number, share, names, is_measured=speed is not None)
    return steps, total


def accumulated_batches(draft: Draft) -> int:
    """Of how many batches a step of the optimizer is."""
    return int(draft.given.get("trainer.accumulate_grad_batches", 1))


def processes(draft: Draft) -> int:
    """How many processes train together, as far as the options say: each has batches of its own."""
    devices = draft.given.get("trainer.devices")
    count = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else 1
    return max(1, count) * int(draft.given.get("trainer.num_nodes", 1))


def _epochs(
    draft: Draft, data: DataFingerprint, epochs: int, batch: int, step: float, validation: float, start: float | None
) -> tuple[int, float | None]:
    """Decides the same for a number of epochs that the user has given."""
    steps = epochs * max(1, data.num_training // batch)
    draft.set("trainer.max_epochs", epochs)
    every = max(1, math.ceil(epochs / _number_of_validations(steps * step + validation, validation)))
    every = draft.set("trainer.check_val_every_n_epoch", every)
    draft.decide("steps", f"{epochs:,} epochs, about {steps:,} steps", "", ("trainer.max_epochs",))
    number = max(1, epochs // every)
    share = number * validation / (steps * step + number * validation)
    names = ("trainer.check_val_every_n_epoch",)
    _validation(draft, data, number, share, names, is_measured=start is not None)
    return steps, None if start is None else start + steps * step + number * validation


def _validated_images(draft: Draft, data: DataFingerprint) -> int:
    """How many images a validation reads: all, or what `trainer.limit_val_batches` leaves of them."""
    limit = draft.given.get("trainer.limit_val_batches")
    batches = math.ceil(data.num_validation / int(draft.settings["data.eval_batch_size"]))
    if isinstance(limit, float) and 0 <= limit <= 1:
        batches = int(limit * batches)
    elif isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0:
        batches = min(batches, limit)
    return min(data.num_validation, batches * int(draft.settings["data.eval_batch_size"]))


def _number_of_validations(seconds: float, validation: float) -> int:
    """As many as stay below a tenth of the time, at least the one at the end."""
    if validation == 0:
        return 1
    return max(1, min(_MAX_VALIDATIONS, int(_VALIDATION_SHARE * seconds / validation)))


def _validation(
    draft: Draft, data: DataFingerprint, number: int, share: float, names: tuple[str, ...], *, is_measured: bool
) -> None:
    """Says how often is validated, on what, and what that costs, above all where one pass is more than its share."""
    names += ("trainer.limit_val_batches",)
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
    when = "once, at the end" if number == 1 else f"{number} times"
    why += f"{'about ' * (not is_measured)}{100 * share:.2g} % of the time"
    if number == 1 and share > _VALIDATION_SHARE and "trainer.limit_val_batches" not in draft.given:
        why += f" ({100 * _VALIDATION_SHARE:.0f} % is the aim, but the result is to be of all images; "
        why += "--trainer.limit_val_batches 0.2 takes the first fifth of them)"
    draft.decide("validation", f"{when}, {images}", why, names)
