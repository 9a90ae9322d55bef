"""Bands and range of values for a folder whose images are not photographs of 8 bits, proposed from what is in them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aucseg.datasets.bands import open_raster, read_values
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.files import SampleError, bits_per_channel, open_image, without_pixel_limit
from aucseg.datasets.split import SplitOfFiles, evenly_spaced
from aucseg.runtime.announce import LONG_PATIENCE, Announcement

# The share of each class's pixels that lies below the range, and above it: single hot pixels do not stretch it.
CUT_OFF = 0.005
# Images that are opened to tell what a folder holds; that are read for the range, and more for each class.
_OPENED, _READ, _READ_PER_CLASS = 32, 32, 8
# Of a class in an image.
_MAX_PIXELS = 4096
_EXTRA_SAMPLES_TAG, _SAMPLES_TAG = 338, 277
_UNSPECIFIED = 0


@dataclass(frozen=True)
class _Kind:
    """What the images of a folder are, beyond photographs of 8 bits."""

    num_bands: int
    is_8_bit: bool

    def __str__(self) -> str:
        return f"{self.num_bands} band{'s' * (self.num_bands != 1)} of {'8' if self.is_8_bit else 'more than 8'} bits"


def with_bands(
    card: DatasetCard, datasets: Sequence[SplitOfFiles], images_with: Mapping[int, Sequence[int]]
) -> DatasetCard:
    """Returns the card with `bands` and `value_range`, where the images are not grey or colours of 8 bits.

    All bands but transparency are read. The range of a band leaves out `CUT_OFF` of the pixels of a class at each end,
    and holds that of every class: a rare class is often the brightest, and would be cut off by that of all pixels.

    Args:
        card: The proposed card, with its classes.
        datasets: Its splits, that of the training first.
        images_with: For each raw id the places of the training images with it.

    Raises:
        ValueError: Images of several kinds, or of one value alone.
        ImportError: Rasterio is missing.
    """
    training = datasets[0]
    if all(_is_photograph(training.image_path(index)) for index in evenly_spaced(range(len(training)), _OPENED)):
        return card
    kinds: Counter[_Kind | None] = Counter()
    example: dict[_Kind | None, Path] = {}
    with Announcement("looking at the bands of the images", patience=LONG_PATIENCE):
        for dataset in datasets:
            for path in dict.fromkeys(dataset.image_path(index) for index in range(len(dataset))):
                try:
                    kind = None if _is_photograph(path) else _kind_of(path)
                except SampleError:  # reported where the files are checked
                    continue
                kinds[kind] += 1
                example.setdefault(kind, path)
    if len(kinds) > 1:
        found = (f"{count:,} of {kind or 'photographs of 8 bits'} ({example[kind]})" for kind, count in kinds.items())
        raise ValueError(
            f"{training.root}: the images are of several kinds: {', '.join(found)}; save them in one form, or write a "
            "card with the bands that all have"
        )
    kind = next(iter(kinds), None)
    if kind is None:
        return card
    bands = tuple(range(1, kind.num_bands + 1))
    card = replace(card, bands=bands)
    return card if kind.is_8_bit else replace(card, value_range=_value_range(training, bands, images_with))


def _is_photograph(path: Path) -> bool:
    """Whether Pillow reads an image as it is: at most 8 bits a channel, and no channel of which nobody says what it is.

    Damaged files are passed over: they are reported where the files are checked.
    """
    try:
        with without_pixel_limit(), open_image(path) as image:
            tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
            extra = tags.get(_EXTRA_SAMPLES_TAG, ())
            is_known = int(tags.get(_SAMPLES_TAG, 1)) == 1 or _UNSPECIFIED not in extra
            return bits_per_channel(image) <= 8 and is_known
    except SampleError:
        return not (path.is_file() and path.suffix.lower() in (".tif", ".tiff"))


def _kind_of(path: Path) -> _Kind:
    with open_raster(path) as raster:
        is_alpha = [color.name == "alpha" for color in raster.colorinterp]
        # Of transparency that is not the last band the others would have no simple numbers.
        num_bands = raster.count - (raster.count > 1 and is_alpha[-1])
        return _Kind(num_bands, set(raster.dtypes) == {"uint8"})


def _value_range(
    training: SplitOfFiles, bands: tuple[int, ...], images_with: Mapping[int, Sequence[int]]
) -> tuple[tuple[float, float], ...]:
    chosen = set(evenly_spaced(range(len(training)), _READ))
    for places in images_with.values():
        chosen.update(evenly_spaced(places, _READ_PER_CLASS))
    of_class: dict[int, list[np.ndarray]] = {raw: [] for raw in images_with}
    with Announcement("looking at the values of the images", patience=LONG_PATIENCE):
        for index in sorted(chosen):
            tile = training.pairs[index].tile
            window = None if tile is None else tile.core
            try:
                values, valid = read_values(training.image_path(index), bands, window)
                mask = training.read_raw(index)
            except SampleError:  # reported where the files are checked
                continue
            if mask.shape != valid.shape:
                continue
            for raw, parts in of_class.items():
                pixels = values[valid & (mask == raw)].astype(np.float64)
                parts.append(pixels[:: max(1, len(pixels) // _MAX_PIXELS)])
    quantiles = [
        np.quantile(pixels, (CUT_OFF, 1 - CUT_OFF), axis=0)
        for pixels in (np.concatenate(parts) for parts in of_class.values() if parts)
        if len(pixels)
    ]
    if not quantiles:
        raise ValueError(f"{training.root}: not one of the images that were read has a pixel with data and a class")
    lows, highs = np.min(quantiles, axis=0)[0], np.max(quantiles, axis=0)[1]
    for band, low, high in zip(bands, lows, highs, strict=True):
        if not low < high:
            raise ValueError(
                f"{training.root}: nearly all pixels of band {band} are {low:g}, so there is nothing to see in it; are "
                "these the images? If they are, write a card with the bands that count"
            )
    return tuple(_rounded(float(low), float(high)) for low, high in zip(lows, highs, strict=True))


def _rounded(low: float, high: float) -> tuple[float, float]:
    """A range with ends of few digits around another.

    Example:
        >>> _rounded(103.2, 22871.0), _rounded(-0.0123, 1.77)
        ((100, 22900), (-0.02, 1.77))
    """
    digits = 2 - math.floor(math.log10(high - low))
    step = 10.0**-digits
    ends = (round(math.floor(low / step) * step, digits), round(math.ceil(high / step) * step, digits))
    return (int(ends[0]), int(ends[1])) if digits <= 0 else ends
