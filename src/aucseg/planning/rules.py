"""The rules: from the fingerprint of data and machine to a plan. Nothing here reads a file or asks the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from aucseg.datasets.card_bands import describe_range
from aucseg.datasets.propose_bands import CUT_OFF
from aucseg.hints import counted
from aucseg.losses.build import RECOMMENDED_OPTIONS
from aucseg.memory_bank.paper import with_paper_settings
from aucseg.memory_bank.policy import with_default_policy
from aucseg.models.pretrained import with_pretrained_weights
from aucseg.models.recipes import recipe_of
from aucseg.planning.budget import accumulated_batches, decide_budget, processes
from aucseg.planning.fingerprint import DataFingerprint
from aucseg.planning.machine import Machine
from aucseg.planning.plan import Draft, Plan
from aucseg.runtime.durations import format_duration
from aucseg.statistics.advice import SAMPLER, SAMPLER_OPTIONS, BankAdvice, advise_bank, asks_for_sampler, bank_options

if TYPE_CHECKING:
    from aucseg.training.speed import Speed

_LITE = "tu-tf_efficientnet_lite0"
_LITE_PACKAGE = "package:efficientnet_lite0"
_STRONG = "tu-convnext_tiny"
_RANDOM: dict[str, dict[str, Any]] = {
    "smp": {"encoder_weights": None},
    "torchvision": {"encoder_weights": None},
    "segnext": {"encoder_weights": None},
    "hf": {"pretrained": False},
}
_ORIGINS = {
    None: "random weights, as asked for",
    _LITE_PACKAGE: "ImageNet weights of an installed package",
    "imagenet": "ImageNet weights, downloaded once",
}
_NAMES = {_LITE: "EfficientNet-Lite0", _STRONG: "ConvNeXt-T"}
# Free bytes that the stronger model needs with a batch of 16 crops of 512 x 512.
_STRONG_MEMORY = 12e9
# Short edge of the images as the model sees them, and of the crops, unless small objects ask for more.
_SHORT_EDGE = {"cpu": 192, "gpu": 512}
_CROP = {"cpu": 128, "gpu": 512}
_STRIDE = 32
# With these images are read by windows, or as a stream, so that they are neither scaled to a size nor kept.
_READ_OTHERWISE = ("data.tile", "data.shards")
# Scaling down by less saves too little.
_NEAR = 0.8
# A cell of the logits is 4 x 4 pixels: two of them are the least that an object must be left with.
_MIN_AREA = 32
_BATCH = {"cpu": 8, "gpu": 16}
_WHOLE_IMAGE_PIXELS = 4_000_000
_CACHE_SHARE = 0.25


def make_plan(
    data: DataFingerprint,
    machine: Machine,
    given: Mapping[str, Any] | None = None,
    *,
    speed: Speed | None = None,
    seconds: float | None = None,
    spent: float = 0.0,
    random_weights: bool = False,
    max_batch_size: int | None = None,
) -> Plan:
    """Plans a training.

    Args:
        data: The figures of the data set.
        machine: The figures of the machine.
        given: Settings of the user's, by their names with dots; they stand, and the others follow.
        speed: What was measured with an earlier plan; None plans without an estimate of the time.
        seconds: Time that training and validation are to take; needs `speed`. None takes the number of steps from the
            number of images.
        spent: Seconds that are gone already, for the message about a time that is too short.
        random_weights: Whether the model is to start from random weights.
        max_batch_size: The largest batch that fits into the memory, where that was measured.

    Raises:
        ValueError: `seconds` is too short to train and validate in.
    """
    draft = Draft(given or {})
    kind = "cpu" if machine.device == "cpu" else "gpu"
    draft.set("seed_everything", 0)
    _model(draft, machine, random_weights)
    if data.bands is not None:
        _bands(draft, data, data.bands)
    size = _images(draft, data, kind)
    batch = _batch(draft, data, machine, kind, size, max_batch_size)
    _order(draft, data)
    advice, bank = _loss_and_bank(draft, data, batch)
    batch_of_step = batch * accumulated_batches(draft) * processes(draft)
    steps, total = decide_budget(draft, data, kind, batch_of_step, size, speed, seconds, spent)
    _rates(draft, batch_of_step, steps)
    if total is not None and speed is not None:
        unit, units = ("step", "steps") if accumulated_batches(draft) == 1 else ("batch", "batches")
        measured = f"measured in {speed.steps} {units}"
        how = f"{speed.step:.2g} s a {unit}, {speed.image:.2g} s an image in validation, {measured}"
        draft.decide("time", f"about {format_duration(total)}", how, ())
    draft.set("trainer.enable_model_summary", False)
    height, width = data.size
    title = (
        f"Plan for {data.title}: {data.statistics.num_classes} classes, {data.num_training:,} images to train on and "
        f"{data.num_validation:,} to validate on, {'all' if data.one_size else 'mostly about'} {width} x {height}; "
        f"{machine.name}"
    )
    return draft.finish(title, total, advice, bank)


def _model(draft: Draft, machine: Machine, random_weights: bool) -> None:
    is_strong = machine.device == "cuda" and machine.can_download and machine.free_device_memory > _STRONG_MEMORY
    model = draft.set("model.model", "smp/fpn")
    whole = draft.given.get("model.model_options")
    encoder = (whole or {}).get("encoder") or draft.given.get("model.model_options.encoder")
    chosen: dict[str, Any] = {}
    if model.startswith("smp/"):
        chosen["encoder"] = encoder or (_STRONG if is_strong and not random_weights else _LITE)
        is_lite = chosen["encoder"].removeprefix("tu-") == _LITE.removeprefix("tu-")
        if is_lite:
            chosen["encoder"] = _LITE
        if is_lite and model == "smp/fpn" and whole is None:
            chosen |= {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 64}
    options = dict(draft.set("model.model_options", chosen) or {})
    if "encoder" in chosen:
        options = {"encoder": chosen["encoder"]} | options
    init_from = draft.given.get("model.init_from")
    if random_weights:
        options |= _RANDOM.get(model.partition("/")[0], {})
    elif init_from is None:
        options = with_pretrained_weights(model, options, packaged=machine.has_packaged_weights)
    draft.settings["model.model_options"] = options
    weights = options.get("encoder_weights", "")
    origin = f"the weights of {init_from}" if init_from is not None else _ORIGINS.get(weights, "its own weights")
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
                f"a tenth of the tail's objects has {small:,.0f} pixels or fewer, of which {_MIN_AREA} must be left"
            )
    base = None
    in_windows = draft.given.get("data.tile") is not None
    if factor < _NEAR and not in_windows:
        base = [round(factor * max(height, width)), round(factor * min(height, width))]
    base = draft.set("data.base_size", base)
    evaluated = draft.set("data.eval_base_size", base)
    text = "images at their own size" if base is None else f"images scaled to {base[0]} x {base[1]}"
    if base is None:
        if "data.base_size" in draft.given:
            reason = ""
        elif in_windows:
            reason = "windows of them are read, as data.tile says"
        elif small is None or factor < 1 or small >= _MIN_AREA / _NEAR**2:
            reason = f"with a short edge of {min(height, width)} they are small enough"
        else:
            reason = f"a tenth of the tail's objects has {small:,.0f} pixels or fewer"
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
    channels = data.num_channels * (1 if data.value_range is None else 4)
    needed = data.num_training * data.mean_pixels * (channels + 1)
    fits = needed < _CACHE_SHARE * machine.free_memory
    is_kept = fits and all(draft.given.get(name) is None for name in _READ_OTHERWISE)
    cache = draft.set("data.cache", "memory" if is_kept else None)
    workers = draft.set("data.num_workers", min(2 if kind == "cpu" else 8, max(0, machine.num_cores - 1)))
    pixels = size[0] * size[1]
    per_batch = 8 if kind == "cpu" else 16
    draft.set("data.eval_batch_size", max(1, min(per_batch, int(per_batch * 256 * 256 / pixels))))
    largest = pixels * (data.largest[0] * data.largest[1]) / (data.size[0] * data.size[1])
    if draft.settings["data.eval_base_size"] is not None:
        largest = pixels
    if largest > _WHOLE_IMAGE_PIXELS:
        draft.set("model.evaluation", {"window": [1024, 1024], "stride": [768, 768]})
    if kind == "gpu":
        draft.set("trainer.precision", "bf16-mixed" if machine.has_bfloat16 else "32-true")
        draft.set("data.photometric", "device")
    reason = "the rate was measured with 8" if kind == "cpu" else "larger ones need another rate"
    if limit is not None:
        reason = f"the most that the free memory holds, of {_BATCH[kind]}, as steps of larger ones have shown"
    text = f"{batch} crops, {workers} loader process{'es' * (workers != 1)}"
    text += ", images kept in memory" if cache else ", images read from disk"
    if not fits:
        reason += f"; decoded, the images take {needed / 1e9:.1f} GB, above a quarter of the free memory"
    draft.decide("batch", text, reason, ("data.batch_size", "data.num_workers", "data.cache", "data.eval_batch_size",
                 "model.evaluation", "trainer.precision", "data.photometric"))  # fmt: skip
    return int(batch)


def _bands(draft: Draft, data: DataFingerprint, statistics: tuple[Sequence[float], Sequence[float]]) -> None:
    mean, std = map(list, statistics)
    for name, value in (("model.mean", mean), ("model.std", std), ("data.fill", mean)):
        draft.set(name, value)
    text = f"{data.num_channels} band{'s' * (data.num_channels != 1)}"
    reason = "normalized by mean and deviation of all training pixels"
    if data.value_range is not None:
        text += f", {describe_range(data.value_range)} scaled to 0 to 255 (value_range in the card)"
        if data.proposes_range:
            within = f"it holds {100 - 200 * CUT_OFF:g} % of the pixels of each class"
            reason = f"{within}, and what is beyond is cut off; {reason}"
    draft.decide("bands", text, reason, ("model.mean", "model.std", "data.fill"))


def _order(draft: Draft, data: DataFingerprint) -> None:
    why_not = ""
    if draft.given.get("data.shards") is not None:
        why_not = "shards are read as they come"
    elif draft.given.get("data.on_error") == "skip":
        why_not = "another order needs the counts of all images"
    elif not asks_for_sampler(data.statistics):
        why_not = "no class is in few of them"
    sampler = draft.set("data.sampler", "random" if why_not else SAMPLER)
    names, text, reason = ["data.sampler"], str(sampler), why_not
    if sampler == SAMPLER:
        options = draft.set("data.sampler_options", dict(SAMPLER_OPTIONS)) or {}
        names.append("data.sampler_options")
        rare = 100 * options.get("threshold", SAMPLER_OPTIONS["threshold"])
        text = f"those with a class that is in less than {rare:g} % of them more often, and every one in its turn"
        reason = "on photographs the tail gains by it"
    elif sampler == "random":
        text = "every image once a pass"
    draft.decide("images", text, "" if "data.sampler" in draft.given else reason, names)


def _rates(draft: Draft, batch: int, steps: int) -> None:
    recipe = recipe_of(draft.settings["model.model"], draft.settings["model.model_options"], batch_size=batch)
    rate = draft.set("model.learning_rate", recipe.learning_rate)
    factor = draft.set("model.head_rate_factor", recipe.head_rate_factor)
    draft.set("model.weight_decay", 0.01)
    warmup = draft.set("model.warmup_steps", recipe.warmup_steps(steps))
    text = f"{rate:g}, in the decoder {factor:g} times that, {counted(warmup, 'step')} of warm-up"
    draft.decide("rate", text, recipe.reason, ("model.learning_rate", "model.head_rate_factor", "model.weight_decay",
                 "model.warmup_steps"))  # fmt: skip


def _loss_and_bank(draft: Draft, data: DataFingerprint, batch: int) -> tuple[BankAdvice, dict[str, Any]]:
    """Decides on loss and bank; returns the advice, and the options of a bank to try."""
    loss = draft.set("model.loss", "aucseg")
    if loss == "aucseg":
        options = draft.set("model.loss_options", deepcopy(RECOMMENDED_OPTIONS)) or {}
        is_mild = options.get("class_weight") == RECOMMENDED_OPTIONS["class_weight"]
        text = "mildly weighted cross-entropy" if is_mild else "cross-entropy"
        text += f" + {options.get('auc_weight', 1.0):g} x AUC"
        reason = "rare classes weigh more in the first, and as much as any other in the second"
    else:
        text, reason = str(loss), ""
    draft.decide("loss", text, reason, ("model.loss", "model.loss_options"))
    tail, middle = data.groups["tail"], data.groups["middle"]
    advice = advise_bank(data.statistics, tail, middle, batch_size=batch, by_share=data.by_share)
    to_try = bank_options(advice.settings, data.groups) if advice.settings else {}
    bank = draft.set("model.bank", to_try if advice.use_bank else None)
    text = "none" if bank is None else "yes"
    policy = {} if bank is None else with_default_policy(with_paper_settings(bank))
    if policy.get("presence_target") is not None:
        num_pasted = len(policy.get("tail_classes", tail))
        which = f"{num_pasted} of the {len(tail)} tail classes" if len(tail) > 1 else "the tail class"
        text = f"{which} into {100 * policy['presence_target']:.2g} % of the images"
        if policy.get("max_factor") is not None:
            text += f", at most {policy['max_factor']:g} times as often as now"
    # What the user has set follows from nothing that was counted.
    reason = "" if "model.bank" in draft.given else advice.summary
    draft.decide("bank", text, reason, ("model.bank",))
    return advice, to_try
