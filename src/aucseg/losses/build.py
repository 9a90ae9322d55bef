"""Every loss by name: AUCSeg's and its rivals'."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from aucseg.hints import check_options, closest, takes_any_option
from aucseg.losses.aucseg import AUCSegLoss
from aucseg.losses.baselines import (
    BalancedSoftmaxLoss,
    BLVLoss,
    ClassBalancedFocalLoss,
    CrossEntropyLoss,
    DiceLoss,
    DisAlignLoss,
    FocalLoss,
    JaccardMetricLoss,
    LDAMLoss,
    LogitAdjustmentLoss,
    LovaszSoftmaxLoss,
    OHEMCrossEntropyLoss,
    SeesawLoss,
    VSLoss,
    WeightedCrossEntropyLoss,
)
from aucseg.losses.class_weights import class_weights
from aucseg.runtime.import_paths import import_object


def _aucseg(
    class_counts: Tensor | Sequence[float] | None,
    *,
    class_weight: Mapping[str, Any] | Tensor | Sequence[float] | None = None,
    **options: Any,
) -> nn.Module:
    if isinstance(class_weight, Mapping):
        if "rule" not in class_weight:
            raise ValueError(f"class_weight {dict(class_weight)} names no rule, as {{rule: inverse, power: 0.15}} does")
        check_options("class_weight", class_weight, partial(class_weights, ()))
        if class_counts is None:
            raise ValueError(f"class_weight {dict(class_weight)} is made of class_counts, which were not given")
        class_weight = class_weights(class_counts, **class_weight)
    return AUCSegLoss(class_weight=class_weight, **options)


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "ce": CrossEntropyLoss,
    "wce-inverse": partial(WeightedCrossEntropyLoss, rule="inverse"),
    "wce-median": partial(WeightedCrossEntropyLoss, rule="median"),
    "wce-effective": partial(WeightedCrossEntropyLoss, rule="effective"),
    "wce-enet": partial(WeightedCrossEntropyLoss, rule="enet"),
    "focal": FocalLoss,
    "cb-focal": ClassBalancedFocalLoss,
    "ohem": OHEMCrossEntropyLoss,
    "ldam": LDAMLoss,
    "la": LogitAdjustmentLoss,
    "vs": VSLoss,
    "balanced-softmax": BalancedSoftmaxLoss,
    "blv": BLVLoss,
    "seesaw": SeesawLoss,
    "dice": DiceLoss,
    "jml": JaccardMetricLoss,
    "lovasz": LovaszSoftmaxLoss,
    "ce-dice": partial(DiceLoss, ce_weight=1.0),
    "ce-jml": partial(JaccardMetricLoss, ce_weight=1.0),
    "ce-lovasz": partial(LovaszSoftmaxLoss, ce_weight=1.0),
    "disalign": DisAlignLoss,
    "aucseg": _aucseg,
}
"""Losses by name. `disalign` is the loss of its second stage, which trains an `aucseg.models.DisAlignModel`."""

RECOMMENDED_OPTIONS: dict[str, Any] = {"auc_weight": 1.0, "class_weight": {"rule": "inverse", "power": 0.25}}
"""Options of `aucseg` that `aucseg stats` and the plan of `aucseg fit FOLDER` advise: mild class weights in the
cross-entropy beside the AUC loss. They were chosen on held-out training images of several data sets
(docs/trials.md)."""


def check_loss_name(name: str) -> None:
    """Raises a `ValueError` where a name is neither a key of `LOSSES` nor the import path of a loss of one's own."""
    if ":" not in name and name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; {closest(name, LOSSES)}; or package.module:Name")


def build_loss(name: str, class_counts: Tensor | Sequence[float] | None = None, **options: Any) -> nn.Module:
    """Makes a loss by its name.

    Args:
        name: A key of `LOSSES`: `ce`, `wce-inverse`, `wce-median`, `wce-effective`, `wce-enet`, `focal`,
            `cb-focal`, `ohem`, `ldam`, `la`, `vs`, `balanced-softmax`, `blv`, `seesaw`, `dice`,
            `jml`, `lovasz`, `ce-dice`, `ce-jml`, `ce-lovasz`, `disalign` or `aucseg`; or
            `package.module:Name`, a class or function of the user's own, whose module may lie in the current folder.
        class_counts: Pixels of each class in the training set (K,); losses that don't need it accept None. The user's
            own get it, and `ignore_index`, if they have parameters of these names.
        **options: Options of the loss, such as `ignore_index`, `gamma` or `tau`. `class_weight` of `aucseg`
            may be the arguments of `aucseg.class_weights` instead of numbers: `{"rule": "inverse", "power": 0.15}`.

    Returns:
        A module with `forward(logits (B, K, *spatial), target (B, *spatial))`, a scalar.

    Raises:
        ValueError: An unknown name, or options out of range.
        TypeError: An option that the loss doesn't have; the nearest one is named. Or what is imported makes no module.
        ImportError: The import path leads nowhere.

    Example:
        >>> build_loss("la", [900, 100], tau=0.5)
        LogitAdjustmentLoss()
        >>> build_loss("aucseg", [800, 150, 50], class_weight={"rule": "inverse", "power": 0.5}).class_weight
        tensor([0.6455, 1.4907, 2.5820])
        >>> build_loss("focl")
        Traceback (most recent call last):
        ValueError: unknown loss 'focl'; did you mean focal...
        >>> build_loss("torch.nn:CrossEntropyLoss", label_smoothing=0.1)
        CrossEntropyLoss()
    """
    check_loss_name(name)
    if ":" in name:
        return _build_own(name, class_counts, options)
    if name != "aucseg":  # which checks its own
        of_the_rule = [partial(class_weights, (), "inverse")] if name.startswith("wce-") else []
        check_options(f"loss {name!r}", options, LOSSES[name], *of_the_rule)
    try:
        return LOSSES[name](class_counts, **options)
    except TypeError as error:
        raise TypeError(f"loss {name!r}: {error}") from error


def _build_own(path: str, class_counts: Tensor | Sequence[float] | None, options: dict[str, Any]) -> nn.Module:
    factory = import_object(path)
    parameters, takes_any = inspect.signature(factory).parameters, takes_any_option(factory)
    if "class_counts" in parameters or takes_any:
        options = {"class_counts": class_counts, **options}
    if "ignore_index" not in parameters and not takes_any:
        options = {key: value for key, value in options.items() if key != "ignore_index"}
    if not takes_any:
        check_options(f"loss {path!r}", options, factory)
    try:
        loss = factory(**options)
    except TypeError as error:
        raise TypeError(f"loss {path!r}: {error}") from error
    if not isinstance(loss, nn.Module):
        raise TypeError(f"loss {path!r} must make a torch.nn.Module, got {type(loss).__name__}")
    return loss
