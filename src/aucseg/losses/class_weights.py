"""Weights of classes from their pixel counts, by the usual rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

WeightRule = Literal["inverse", "effective", "median", "enet"]
# The one rule that takes each option, and the value that stands for none.
_OPTIONS: dict[str, tuple[WeightRule, float | None]] = {
    "power": ("inverse", 1.0),
    "beta": ("effective", None),
    "offset": ("enet", 1.02),
}


@runtime_checkable
class PixelCounts(Protocol):
    """What has counted a training set, as `aucseg.ClassStatistics` has.

    Attributes:
        pixel_counts: Pixels of each class (K,).
        labelled_counts: Labelled pixels of the images that hold each class (K,).
    """

    pixel_counts: Any
    labelled_counts: Any


def check_class_counts(counts: Tensor | Sequence[float], name: str = "class_counts") -> Tensor:
    """Returns `counts` as a float64 tensor, on the CPU, in which absent classes have the smallest count of the others.

    A class that is missing from the counts but occurs later is rarer than all others, as far as anybody knows; a
    count of zero would give it an infinite weight or a prior of zero.

    Args:
        counts: Pixels (or images) of each class (K,), finite and not negative, K at least 2.
        name: What to call them in messages.

    Raises:
        TypeError: A mapping.
        ValueError: Counts of another shape, negative or non-finite counts, or nothing but zeros.
    """
    values = _float64(counts)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"{name} must hold one count for each of at least 2 classes, not shape {tuple(values.shape)}")
    invalid = ~(values.isfinite() & (values >= 0))
    if invalid.any():
        class_id = int(invalid.nonzero()[0])
        raise ValueError(
            f"{name} must be finite and not negative, but that of class {class_id} is {values[class_id]:g}"
        )
    present = values > 0
    if not present.any():
        raise ValueError(f"{name} are all zero: count the labels of the training set first")
    return values.where(present, values[present].min())


def _float64(counts: Tensor | Sequence[float]) -> Tensor:
    if isinstance(counts, PixelCounts):
        raise ValueError(
            "class_counts must be numbers, one for each class: give the pixel_counts of the statistics, not the "
            f"{type(counts).__name__} itself"
        )
    if isinstance(counts, Mapping):
        raise TypeError(f"class_counts must be numbers, one for each class in their order, not a mapping: {counts!r}")
    # A few numbers, once: on the CPU, as not every device has float64.
    return torch.as_tensor(counts.cpu() if isinstance(counts, Tensor) else counts, dtype=torch.float64, device="cpu")


def class_weights(
    counts: PixelCounts | Tensor | Sequence[float],
    rule: WeightRule,
    *,
    power: float = 1.0,
    beta: float | None = None,
    image_pixels: Tensor | Sequence[float] | None = None,
    offset: float = 1.02,
) -> Tensor:
    r"""Weight of every class in a loss, from its count n_c; N is the sum of the counts.

    - `inverse`: :math:`(N / (K n_c))^\rho`, :math:`\rho` = `power`: 1 for a class of average frequency.
    - `effective`: :math:`\propto (1 - \beta) / (1 - \beta^{n_c})`, with sum K (Cui et al., *Class-Balanced Loss Based
      on Effective Number of Samples*, CVPR 2019).
    - `median`: :math:`\mathrm{median}(f) / f_c`, with f_c the share of class c in the pixels of the images that
      contain it (Eigen and Fergus, *Predicting Depth, Surface Normals and Semantic Labels*, ICCV 2015).
    - `enet`: :math:`1 / \log(\mathrm{offset} + n_c / N)` (Paszke et al., *ENet*, 2016).

    Classes that are absent from the counts get the weight of the rarest class.

    Args:
        counts: Pixels (or images) of each class (K,), or what has counted them, such as the `aucseg.ClassStatistics` of
            the training set: of these the pixel counts are taken and, for the `median` rule, the labelled pixels of
            the images with a class.
        rule: One of the names above.
        power: Of the `inverse` rule, at least 0: weights go with the frequency to the power `-power`; 0.5 is the
            common softened form.
        beta: Of the `effective` rule, in 0..1. Classes with far more than 1 / (1 - beta) counts weigh the same, so
            that the 0.9999 that is common for images levels pixel counts out. None for 1 - 1 / median(counts).
        image_pixels: For the `median` rule, the labelled pixels of the images that contain each class (K,); None for
            the same number for all classes.
        offset: Of the `enet` rule, above 1.

    Returns:
        Weights (K,), float32, positive, on the CPU.

    Raises:
        ValueError: Bad counts, an unknown rule, options out of range or of another rule.

    Example:
        >>> class_weights([800, 150, 50], "inverse")
        tensor([0.4167, 2.2222, 6.6667])
        >>> class_weights([800, 150, 50], "median")
        tensor([0.1875, 1.0000, 3.0000])
    """
    given_pixels = image_pixels is not None
    if isinstance(counts, PixelCounts):
        if image_pixels is None:
            image_pixels = torch.as_tensor(counts.labelled_counts)
        counts = torch.as_tensor(counts.pixel_counts)
    values = check_class_counts(counts, "counts")
    options: dict[str, Any] = {"power": power, "beta": beta, "offset": offset}
    for name, value in options.items():
        if not (isinstance(value, Real) and math.isfinite(value)) and (name, value) != ("beta", None):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
        owner, default = _OPTIONS[name]
        if value != default and rule != owner and rule in get_args(WeightRule):
            raise ValueError(f"{name} {value} goes with the rule {owner!r}, but the rule is {rule!r}: leave one out")
    if given_pixels and rule != "median" and rule in get_args(WeightRule):
        raise ValueError(f"image_pixels goes with the rule 'median', but the rule is {rule!r}: leave one out")
    if rule == "inverse":
        if power < 0:
            raise ValueError(f"power must be at least 0, got {power}: 0.25 weighs by the frequency to the power -0.25")
        weights = (values.mean() / values) ** power
        if not weights.float().isfinite().all():
            raise ValueError(f"power {power} makes a weight that float32 does not hold: take a smaller one")
    elif rule == "effective":
        if beta is not None and not 0 <= beta < 1:
            raise ValueError(f"beta must be at least 0 and below 1, got {beta}")
        prototypes = values.quantile(0.5) if beta is None else values.new_tensor(1 / (1 - beta))
        if prototypes < 1:
            raise ValueError("the effective rule needs counts of pixels or images, not shares")
        weights = -1 / torch.expm1(values * torch.log1p(-1 / prototypes))
        weights = weights * len(values) / weights.sum()
    elif rule == "median":
        frequency = values
        if image_pixels is not None:
            pixels = check_class_counts(image_pixels, "image_pixels")
            if pixels.shape != values.shape:
                raise ValueError(f"image_pixels has {len(pixels)} classes, but counts has {len(values)}")
            frequency = check_class_counts(values.where(_float64(counts) > 0, 0) / pixels, "counts")
        weights = frequency.quantile(0.5) / frequency
    elif rule == "enet":
        if offset <= 1:
            raise ValueError(f"offset must be above 1, got {offset}: the weight of a rare class would not be positive")
        weights = 1 / torch.log(offset + values / values.sum())
    else:
        raise ValueError(f"rule must be one of {', '.join(get_args(WeightRule))}, got {rule!r}")
    return weights.float()
