"""How far the difference of two results may be chance of the images: a paired bootstrap."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aucseg.loading.sequences import sequences_of_names

NUM_SAMPLES = 2000
_PERCENTILES = (2.5, 97.5)
# Weights that are in memory at a time.
_MAX_WEIGHTS = 2**24

Overlap = Mapping[str, Mapping[int, Sequence[int]]]
"""For each image the pixels of intersection and union (and what else there is) of each class."""


@dataclass(frozen=True)
class Difference:
    """The difference of a mean IoU, other minus baseline, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class PairedBootstrap:
    """Differences of two results over the images that both have.

    Attributes:
        differences: By name: `miou`, and the groups of classes.
        num_images: Images that both have.
        num_sequences: Sequences that these belong to and that were drawn as a whole, or None where the names tell none.
    """

    differences: dict[str, Difference]
    num_images: int
    num_sequences: int | None


def paired_bootstrap(
    baseline: Overlap,
    other: Overlap,
    num_classes: int,
    groups: Mapping[str, Sequence[int]],
    num_samples: int = NUM_SAMPLES,
) -> PairedBootstrap | None:
    """Resamples images, the same ones for both results, and takes the differences in mean IoU.

    Each sample draws as many images as there are, with replacement, sums the intersections and unions of each class
    over them, and takes the means as `GroupedMeanIoU` does (Efron, *Bootstrap Methods: Another Look at the Jackknife*,
    1979; percentile intervals). Images of one sequence are nearly copies of each other, so whole sequences are drawn
    where the names tell any.

    Args:
        baseline: Overlaps of the one result.
        other: Overlaps of the other.
        num_classes: K.
        groups: Class ids by the name of a group.
        num_samples: How often.

    Returns:
        The same for the same input; None with fewer than two images (or sequences) in common.

    Example:
        >>> one = {"a": {0: (5, 10)}, "b": {0: (2, 8)}, "c": {0: (9, 9)}}
        >>> two = {"a": {0: (6, 10)}, "b": {0: (4, 8)}, "c": {0: (9, 9)}}
        >>> difference = paired_bootstrap(one, two, 1, {}).differences["miou"]
        >>> round(difference.value, 3), round(difference.low, 3), round(difference.high, 3)
        (0.111, 0.0, 0.25)
    """
    names = sorted(baseline.keys() & other.keys())
    sequences = sequences_of_names(names)
    unit = np.arange(len(names)) if sequences is None else np.asarray(sequences)
    num_units = int(unit.max(initial=-1)) + 1
    if num_units < 2:
        return None
    counts = [_by_unit(result, names, unit, num_units, num_classes) for result in (baseline, other)]
    chosen = {"miou": list(range(num_classes)), **{name: list(ids) for name, ids in groups.items() if ids}}
    everything = np.ones((1, num_units))
    values = {name: found[0] for name, found in _differences(everything, counts, chosen).items()}
    generator = np.random.default_rng(0)
    size = max(1, _MAX_WEIGHTS // num_units)
    parts = []
    for start in range(0, num_samples, size):
        shares = np.full(num_units, 1 / num_units)
        weights = generator.multinomial(num_units, shares, size=min(size, num_samples - start)).astype(np.float64)
        parts.append(_differences(weights, counts, chosen))
    differences = {}
    for name, value in values.items():
        sampled = np.concatenate([part[name] for part in parts])
        sampled = sampled[~np.isnan(sampled)]
        if len(sampled) and not np.isnan(value):
            low, high = np.percentile(sampled, _PERCENTILES).tolist()
            differences[name] = Difference(float(value), low, high)
    return PairedBootstrap(differences, len(names), None if sequences is None else num_units)


def _by_unit(
    result: Overlap, names: Sequence[str], unit: NDArray[np.int64], num_units: int, num_classes: int
) -> NDArray[np.float64]:
    """Intersections and unions, (2, units, K)."""
    counts = np.zeros((2, num_units, num_classes))
    for name, place in zip(names, unit.tolist(), strict=True):
        for class_id, pixels in result[name].items():
            if 0 <= class_id < num_classes:
                counts[:, place, class_id] += pixels[:2]
    return counts


def _differences(
    weights: NDArray[np.float64], counts: Sequence[NDArray[np.float64]], chosen: Mapping[str, list[int]]
) -> dict[str, NDArray[np.float64]]:
    """Differences (samples,) of each mean; NaN in samples that hold none of its classes."""
    before, after = (_means(weights, result, chosen) for result in counts)
    return {name: after[name] - before[name] for name in chosen}


def _means(
    weights: NDArray[np.float64], counts: NDArray[np.float64], chosen: Mapping[str, list[int]]
) -> dict[str, NDArray[np.float64]]:
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")
        ious = (weights @ counts[0]) / (weights @ counts[1])  # 0 / 0: the class is not there
        return {name: np.nanmean(ious[:, ids], axis=1) for name, ids in chosen.items()}
