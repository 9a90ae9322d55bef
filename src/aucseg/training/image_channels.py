"""Models for images with other channels than red, green and blue."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from aucseg.datasets.card import DatasetCard
from aucseg.tensors.imagenet import IMAGENET_MEAN, IMAGENET_STD

_WITH_IN_CHANNELS = ("smp", "segnext", "torchvision")


def with_channels(name: str, options: Mapping[str, Any], card: DatasetCard) -> dict[str, Any]:
    """Returns the options of a named model that takes the card's bands.

    Raises:
        ValueError: The options have another number of channels than the card.
    """
    found = dict(options)
    if card.bands is not None and name.split("/")[0] in _WITH_IN_CHANNELS:
        if card.num_channels != 3:
            found.setdefault("in_channels", card.num_channels)
        channels = found.get("in_channels", 3)
        if channels != card.num_channels:
            raise ValueError(
                f"model.model_options: in_channels is {channels}, but the images of card {card.name!r} have "
                f"{card.num_channels} channels; leave in_channels out, or set 'bands' in the card"
            )
    return found


def normalization(
    model: nn.Module, card: DatasetCard, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation of each channel: those given, or those of the model's weights.

    Raises:
        ValueError: They are not as many as the channels, or not finite, or a deviation is not positive.
    """
    mean = getattr(model, "pixel_mean", IMAGENET_MEAN) if mean is None else mean
    std = getattr(model, "pixel_std", IMAGENET_STD) if std is None else std
    for option, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, card.num_channels):
            bands = "channels" if card.bands is None else "bands; 'aucseg stats' prints mean and std of each band"
            raise ValueError(f"model.{option} has {len(values)} values for images of {card.num_channels} {bands}")
        if not all(math.isfinite(value) and (value > 0 or option == "mean") for value in values):
            what = "finite" if option == "mean" else "finite and above 0"
            raise ValueError(f"model.{option} must be {what}, in 0..255 as the images are, got {list(values)}")
    return list(mean), list(std)
