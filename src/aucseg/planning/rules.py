"""The rules: from the fingerprint of data and machine to a plan. Nothing here reads a file or asks the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aucseg.planning.durations import format_duration
from aucseg.planning.fingerprint import DataFingerprint
from aucseg.planning.machine import Machine
from aucseg.planning.plan import Draft, Plan
from aucseg.statistics.advice import advise_bank, bank_options

if TYPE_CHECKING:
    from aucseg.training.speed import Speed

_LITE = "tu-tf_efficientnet_lite0"
_LITE_PACKAGE = "package:efficientnet_lite0"
_STRONG = "tu-convnext_tiny"
_NAMES = {_LITE: "EfficientNet-Lite0", _STRONG: "ConvNeXt-T"}
# Free bytes that the stronger model needs with a batch of 16 crops of 512 x 512.
_STRONG_MEMORY = 12e9
# Short edge of the images as the model sees them, and of the crops, unless small objects ask for more.
_SHORT_EDGE = {"cpu": 192, "cuda": 512}
_CROP = {"cpu": 128, "cuda": 512}
_STRIDE = 32
# Scaling down by less saves too little.
_NEAR = 0.8
# A cell of the logits is 4 x 4 pixels: two of them are the least that an object must be left with.
_MIN_AREA = 32
_BATCH = {"cpu": 8, "cuda": 16}
# Passes over the training images, and the fewest and most steps.
_PASSES = {"cpu": 40, "cuda": 60}
_STEPS = {"cpu": (600, 4000), "cuda": (2000, 20000)}
_MAX_VALIDATIONS = 10
_VALIDATION_SHARE = 0.1
# Of an image's forward pass, with metrics, in training steps a pixel.
_COST_OF_EVALUATION = 0.5
_WHOLE_IMAGE_PIXELS = 4_000_000
_CACHE_SHARE = 0.25


@dataclass(frozen=True)
class _Recipe:
    """Settings of the optimizer for a family of models."""

    learning_rate: float
    head_rate_factor: float
    weight_decay: float
    warmup: int
    reason: str


_MEASURED = _Recipe(
    *(4e-3, 3.0, 0.01, 200),
    "the best of five for this model on Freedoom-LT, for cross-entropy and AUCSeg",
)
_CUSTOMARY = "customary for such a model, not measured here"
_CONVOLUTIONS = _Recipe(1e-3, 3.0, 0.01, 200, _CUSTOMARY)
_TRANSFORMERS = _Recipe(1e-4, 10.0, 0.01, 500, _CUSTOMARY)
_TRANSFORMER_NAMES = ("hf/", "segnext/", "mit_", "swin", "vit", "segformer", "convnext", "dinov", "beit", "pvt")


def make_plan(
    data: DataFingerprint,
    machine: Machine,
    given: Mapping[str, Any] | None = None,
    *,
    speed: Speed | None = None,
    seconds: float | None = None,
    random_weights: bool = False,
    max_batch_size: int | None = None,
) -> Plan:
    """Plans a training.

    Args:
        data: The figures of the data set.
        machine: The figures of the machine.
        given: Settings of the user's, by their names with dots; they stand, and the others follow.
        speed: What was measured with an earlier plan; None plans without an estimate of the time.
        seconds: Time that training and validation are to take; needs ``speed``. None takes the number of steps from the
            number of images.
        random_weights: Whether the model is to start from random weights.
        max_batch_size: The largest batch that fits into the memory, where that was measured.

    Raises:
        ValueError: ``seconds`` is too short to train and validate in.
    """
    draft = Draft(given or {})
    kind = "cpu" if machine.device == "cpu" else "cuda"
    draft.set("seed_everything", 0)
    _model(draft, data, machine, random_weights)
    size = _images(draft, data, kind)
    batch = _batch(draft, data, machine, kind, size, max_batch_size)
    bank = _loss_and_bank(draft, data, batch)
    steps, total = _budget(draft, data, kind, batch, size, speed, seconds)
    _rates(draft, batch, steps)
    if data.bands is not None:
        mean, std = (list(values) for values in data.bands)
        for name, value in (("model.mean", mean), ("model.std", std), ("data.fill", mean)):
            draft.set(name, value)
        draft.decide("bands", f"{data.num_channels} bands, normalized", "mean and deviation of all training pixels",
                     ("model.mean", "model.std", "data.fill"))  # fmt: skip
    if total is not None and speed is not None:
        how = f"{speed.step:.2g} s a step, {speed.image:.2g} s an image in validation, measured in {speed.steps} steps"
        draft.decide("time", f"about {format_duration(total)}", how, ())
    draft.set("trainer.enable_model_summary", False)
    height, width = data.size
    title = (
        f"Plan for {data.title}: {data.statistics.num_classes} classes, {data.num_training:,} images to train on and "
        f"{data.num_validation:,} to validate on, {'all' if data.one_size else 'mostly about'} {width} x {height}; "
        f"{machine.name}"
    )
    return draft.finish(title, total, bank)


def _model(draft: Draft, data: DataFingerprint, machine: Machine, random_weights: bool) -> None:
    is_strong = machine.device == "cuda" and machine.can_download and machine.free_device_memory > _STRONG_MEMORY
    model = draft.set("model.model", "smp/fpn")
    encoder = draft.given.get("model.model_options.encoder", _STRONG if is_strong and not random_weights else _LITE)
    options: dict[str, Any] = {}
    if isinstance(model, str) and model.startswith("smp/"):
        options["encoder"] = encoder
        if encoder.removeprefix("tu-") == _LITE.removeprefix("tu-"):
            options["encoder"] = _LITE
            options["encoder_weights"] = _LITE_PACKAGE if machine.has_packaged_weights else "imagenet"
            if model == "smp/fpn":
                options |= {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 64}
        else:
            options["encoder_weights"] = "imagenet"
        if random_weights:
            options["encoder_weights"] = None
    options = draft.set("model.model_options", options) or {}
    weights = options.get("encoder_weights", "")
    origin = {None: "random weights, as asked for", _LITE_PACKAGE: "ImageNet weights of an installed package"}.get(
        weights, "ImageNet weights, downloaded once" if weights == "imagenet" else "its own weights"
    )
    if "model.model" in draft.given or "model.model_options.encoder" in draft.given:
        reason = ""
    elif is_strong:
        reason = "a strong encoder that this GPU has room for"
    elif machine.device == "cuda":
        reason = "small; a stronger one needs weights from the network and 12 GB of free memory on the GPU"
    else:
        reason = "small, for a machine without a CUDA GPU"
    name = str(model)
    if "encoder" in options:
        name += f" on {_NAMES.get(options['encoder'], options['encoder'])}"
    draft.decide("model", f"{name}, {origin}", reason, ("model.model", "model.model_options"))


def _images(draft: Draft, data: DataFingerprint, kind: str) -> tuple[int, int]:
    """Decides how large images are seen; returns the median (height, width) in validation."""
    height, width = data.size
    factor = min(1.0, _SHORT_EDGE[kind] / min(height, width))
    reason = f"their short edge is at most {_SHORT_EDGE[kind]}"
    small = None if data.tail_share is None else data.tail_share * height * width
    if small is not None and factor < 1:
        least = min(1.0, math.sqrt(_MIN_AREA / small)) if small else 1.0
        if least > factor:
            factor = least
            reason = (
                f"one of ten occurrences of a tail class has {small:,.0f} pixels or fewer: {_MIN_AREA} must be left"
            )
    base = None
    if factor < _NEAR:
        base = [round(factor * max(height, width)), round(factor * min(height, width))]
    base = draft.set("data.base_size", base)
    evaluated = draft.set("data.eval_base_size", base)
    text = "images at their own size" if base is None else f"images scaled to {base[0]} x {base[1]}"
    if base is None:
        if "data.base_size" in draft.given:
            reason = ""
        elif small is None or factor < 1 or small >= _MIN_AREA / _NEAR**2:
            reason = f"with a short edge of {min(height, width)} they are small enough"
        else:
            reason = f"the tail's objects are small: one of ten has {small:,.0f} pixels or fewer in an image"
    draft.decide("size", text, reason, ("data.base_size", "data.eval_base_size"))
    if base is not None:
        scale = min(max(base) / max(height, width), min(base) / min(height, width))
        height, width = round(scale * height), round(scale * width)
    _crops(draft, data, kind, (height, width))
    size = data.size
    if evaluated is not None:
        scale = min(max(evaluated) / max(size), min(evaluated) / min(size))
        size = round(scale * size[0]), round(scale * size[1])
    return size


def _crops(draft: Draft, data: DataFingerprint, kind: str, size: tuple[int, int]) -> None:
    crop = draft.set("data.crop_size", [min(_CROP[kind], _STRIDE * math.ceil(edge / _STRIDE)) for edge in size])
    # An object of which half the size leaves less than a cell of the logits is not halved.
    is_small = data.tail_share is not None and data.tail_share * size[0] * size[1] / 4 < _MIN_AREA
    scale = draft.set("data.scale", [0.75, 1.5] if is_small else [0.5, 2.0])
    reason = f"the size for a {'CPU' if kind == 'cpu' else 'GPU'}, in multiples of 32"
    reason += "; not scaled to half, which would lose the tail's smallest objects" if is_small else ""
    draft.decide("crops", f"{crop[1]} x {crop[0]}, scaled by {scale[0]:g} to {scale[1]:g}", reason,
                 ("data.crop_size", "data.scale"))  # fmt: skip


def _batch(
    draft: Draft, data: DataFingerprint, machine: Machine, kind: str, size: tuple[int, int], limit: int | None
) -> int:
    batch = draft.set("data.batch_size", min(_BATCH[kind], limit or _BATCH[kind]))
    channels = data.num_channels * (4 if data.bands is not None else 1)
    needed = data.num_training * data.mean_pixels * (channels + 1)
    fits = needed < _CACHE_SHARE * machine.free_memory
    cache = draft.set("data.cache", "memory" if fits else None)
    workers = draft.set("data.num_workers", min(2 if kind == "cpu" else 8, max(0, machine.num_cores - 1)))
    pixels = size[0] * size[1]
    per_batch = 8 if kind == "cpu" else 16
    draft.set("data.eval_batch_size", max(1, min(per_batch, int(per_batch * 256 * 256 / pixels))))
    largest = pixels * (data.largest[0] * data.largest[1]) / (data.size[0] * data.size[1])
    if draft.settings["data.eval_base_size"] is not None:
        largest = pixels
    if largest > _WHOLE_IMAGE_PIXELS:
        draft.set("model.evaluation", {"window": [1024, 1024], "stride": [768, 768]})
    if kind == "cuda":
        draft.set("trainer.precision", "bf16-mixed" if machine.has_bfloat16 else "32-true")
        draft.set("data.photometric", "device")
    reason = (
        "as the rate was measured with"
        if kind == "cpu"
        else "one step fits into the free memory (measured)"
        if limit is not None
        else "larger ones need another rate"
    )
    text = f"{batch} crops, {workers} loader process{'es' * (workers != 1)}"
    text += ", images kept in memory" if cache else ", images read from disk"
    if not cache:
        reason += f"; decoded, the images take {needed / 1e9:.1f} GB, above a quarter of the free memory"
    draft.decide("batch", text, reason, ("data.batch_size", "data.num_workers", "data.cache", "data.eval_batch_size",
                 "model.evaluation", "trainer.precision", "data.photometric"))  # fmt: skip
    return int(batch)


def _budget(
    draft: Draft,
    data: DataFingerprint,
    kind: str,
    batch: int,
    size: tuple[int, int],
    speed: Speed | None,
    seconds: float | None,
) -> tuple[int, float | None]:
    """Decides on steps and validations; returns the steps, and the seconds of all."""
    crop = draft.settings["data.crop_size"]
    if speed is None:
        # In steps, of which one costs as much as its pixels.
        step, start = 1.0, 0.0
        validation = data.num_validation * size[0] * size[1] * _COST_OF_EVALUATION / (batch * crop[0] * crop[1])
    else:
        step, validation, start = speed.step, data.num_validation * speed.image, speed.start
    low, high = _STEPS[kind]
    wanted = round(_PASSES[kind] * data.num_training / batch)
    steps = min(max(wanted, low), high)
    reason = f"{_PASSES[kind]} passes over the images" if steps == wanted else (
        f"at least {low:,} steps, whatever the number of images" if steps == low else f"at most {high:,} steps"
    )  # fmt: skip
    is_timed = seconds is not None and speed is not None and "trainer.max_steps" not in draft.given
    if is_timed:
        assert seconds is not None
        number = _number_of_validations(seconds - start, validation)
        left = seconds - start - number * validation
        if left < max(0.25 * seconds, 20 * step):
            least = max(4 / 3 * (start + validation), start + validation + 20 * step)
            raise ValueError(
                f"{format_duration(seconds)} are too short: the start takes {format_duration(start)}, a validation of "
                f"{data.num_validation:,} images {format_duration(validation)} and a step {step:.2g} s; give "
                f"{format_duration(1.1 * least)} or more"
            )
        steps, reason = int(left / step), f"what fits into {format_duration(seconds)}"
    steps = draft.given.get("trainer.max_steps", steps)
    number = _number_of_validations(steps * step + validation, validation)
    interval = math.ceil(steps / number)
    if "trainer.max_steps" not in draft.given:
        interval = max(1, steps // number if is_timed else round(steps / number))
        steps = interval * number
    steps = int(draft.set("trainer.max_steps", steps))
    interval = draft.set("trainer.val_check_interval", interval)
    draft.decide("steps", f"{steps:,}", reason if "trainer.max_steps" not in draft.given else "",
                 ("trainer.max_steps",))  # fmt: skip
    number = max(1, round(steps / interval)) if isinstance(interval, int) else number
    total = None if speed is None else start + steps * step + number * validation
    share = number * validation / (steps * step + number * validation)
    _validation(draft, data, number, share, is_measured=speed is not None)
    return steps, total


def _number_of_validations(seconds: float, validation: float) -> int:
    """As many as stay below a tenth of the time, at least the one at the end."""
    return max(1, min(_MAX_VALIDATIONS, int(_VALIDATION_SHARE * seconds / validation)))


def _validation(draft: Draft, data: DataFingerprint, number: int, share: float, *, is_measured: bool) -> None:
    names = ["trainer.val_check_interval"]
    if data.val_split is None:
        draft.set("data.held_out_share", data.held_out_share)
        names.append("data.held_out_share")
        images = f"on the {100 * data.held_out_share:.0f} % of the training images that are held out"
        why = "there is no validation split; "
    else:
        draft.set("data.val_split", data.val_split)
        names.append("data.val_split")
        images, why = f"on all {data.num_validation:,} images of {data.val_split!r}", ""
    when = "once, at the end" if number == 1 else f"{number} times"
    why += f"{'about ' * (not is_measured)}{100 * share:.2g} % of the time"
    draft.decide("validation", f"{when}, {images}", why, names)


def _rates(draft: Draft, batch: int, steps: int) -> None:
    model, options = draft.settings["model.model"], draft.settings["model.model_options"] or {}
    name = f"{model} {options.get('encoder', '')}"
    if options.get("encoder") == _LITE and model in ("smp/fpn", "smp/segformer"):
        recipe = _MEASURED
    else:
        recipe = _TRANSFORMERS if any(part in name for part in _TRANSFORMER_NAMES) else _CONVOLUTIONS
    # Of small batches the gradient is noisier: the rate goes with the square root.
    base = recipe.learning_rate * min(1.0, math.sqrt(batch / 8))
    rate = draft.set("model.learning_rate", float(f"{base:.2g}"))
    factor = draft.set("model.head_rate_factor", recipe.head_rate_factor)
    draft.set("model.weight_decay", recipe.weight_decay)
    warmup = draft.set("model.warmup_steps", max(1, min(recipe.warmup, steps // 10)))
    text = f"{rate:g}, in the decoder {factor:g} times that, {warmup} steps of warm-up"
    draft.decide("rate", text, recipe.reason, ("model.learning_rate", "model.head_rate_factor", "model.weight_decay",
                 "model.warmup_steps"))  # fmt: skip


def _loss_and_bank(draft: Draft, data: DataFingerprint, batch: int) -> dict[str, Any]:
    """Decides on loss and bank; returns the options of a bank to try."""
    loss = draft.set("model.loss", "aucseg")
    if loss == "aucseg":
        options = draft.set("model.loss_options", {"auc_weight": 1.0})
        text = f"cross-entropy + {options.get('auc_weight', 1.0):g} x AUC" if options else "cross-entropy + AUC"
        reason = "does not depend on how rare a class is"
    else:
        text, reason = str(loss), ""
    draft.decide("loss", text, reason, ("model.loss", "model.loss_options"))
    tail, middle = data.groups["tail"], data.groups["middle"]
    advice = advise_bank(data.statistics, tail, middle, batch_size=batch, by_share=data.by_share)
    to_try = bank_options(advice["settings"], data.groups) if advice["settings"] else {}
    bank = draft.set("model.bank", to_try if advice["use_bank"] else None)
    text = "none" if bank is None else "yes"
    if bank and bank.get("presence_target") is not None:
        num_pasted = len(bank.get("tail_classes", tail))
        text = f"{num_pasted} of the {len(tail)} tail classes into {100 * bank['presence_target']:.2g} % of the images"
    # What the user has set follows from nothing that was counted.
    reason = "" if "model.bank" in draft.given else str(advice["summary"])
    draft.decide("bank", text, reason, ("model.bank",))
    return to_try
