"""Whether masks hold ids at all: soft edges, palettes that differ from file to file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aucseg.datasets.colors import unpack_color
from aucseg.datasets.counting import MaskScan, count_ids
from aucseg.datasets.files import Array

# Fewer ids than these are never called soft edges.
_MIN_SOFT_IDS = 6
# An id is soft if this share of its pixels is thin.
_SOFT = 0.5


@dataclass(frozen=True)
class SoftEdges:
    """What speaks for interpolated or lossily compressed masks.

    Attributes:
        soft: Ids that lie along edges or in single pixels, ascending.
        solid: Ids that fill areas, ascending.
    """

    soft: list[int]
    solid: list[int]


def find_soft_edges(masks: Iterable[Array]) -> SoftEdges | None:
    """Returns the ids that resizing with interpolation or lossy compression has made, or None where nothing says so.

    A pixel is thin if it differs from both neighbours in its row, or both in its column. Between two areas
    interpolation leaves many ids of thin pixels alone; real classes fill areas, and thin things have few ids.

    Args:
        masks: Integer arrays (H, W), a few of the data set's.

    Example:
        >>> import numpy as np
        >>> ramp = np.repeat([0] * 20 + list(range(25, 250, 25)) + [255] * 20, 30).reshape(-1, 30)
        >>> find_soft_edges([ramp]).solid
        [0, 255]
    """
    total: dict[int, int] = defaultdict(int)
    thin: dict[int, int] = defaultdict(int)
    for mask in masks:
        for counts, values in ((total, mask), (thin, mask[_is_thin(mask)])):
            for raw, count in zip(*(part.tolist() for part in count_ids(np.sort(values, axis=None))), strict=True):
                counts[raw] += count
    soft = sorted(raw for raw, count in total.items() if thin[raw] >= _SOFT * count)
    solid = sorted(set(total) - set(soft))
    solid_pixels = sum(total[raw] for raw in solid)
    is_soft = len(soft) >= max(_MIN_SOFT_IDS, len(solid)) and 2 * solid_pixels >= sum(total.values())
    return SoftEdges(soft, solid) if is_soft else None


def _is_thin(mask: Array) -> npt.NDArray[np.bool_]:
    is_thin = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        if mask.shape[axis] >= 3:
            differs = np.diff(mask.astype(np.int64), axis=axis) != 0
            inner = is_thin[1:-1] if axis == 0 else is_thin[:, 1:-1]
            inner |= differs[:-1] & differs[1:] if axis == 0 else differs[:, :-1] & differs[:, 1:]
    return is_thin


def describe_soft_edges(found: SoftEdges, is_color: bool = False) -> str:
    """Returns the message about soft edges, with the way out."""

    def shown(ids: list[int]) -> str:
        named = [str(unpack_color(raw) if is_color else raw) for raw in ids[:8]]
        return ", ".join(named) + (", ..." if len(ids) > 8 else "")

    return (
        f"{len(found.soft)} of {len(found.soft) + len(found.solid)} ids lie along edges or in single pixels alone "
        f"({shown(found.soft)}), {len(found.solid)} fill areas ({shown(found.solid)}): the masks were resized with "
        "interpolation, drawn with soft edges, or saved with loss (JPEG); make them again from their source, resized "
        "with nearest neighbour and saved as PNG, or set each pixel to the nearest of the ids that fill areas"
    )


@dataclass
class Palettes:
    """The colours that the indices of palette masks stand for, file by file.

    Attributes:
        colors: For each index its colours (`65536 red + 256 green + blue`), each with the first file that shows it.
    """

    colors: dict[int, dict[int, str]] = field(default_factory=dict)

    def add(self, scan: MaskScan, file: str) -> None:
        """Notes the palette of a mask; masks without one say nothing."""
        if scan.colors is not None:
            for index, color in zip(scan.ids.tolist(), scan.colors.tolist(), strict=True):
                self.colors.setdefault(index, {}).setdefault(color, file)

    @property
    def differ(self) -> bool:
        """Whether an index stands for two colours."""
        return any(len(found) > 1 for found in self.colors.values())

    @property
    def colors_are_ids(self) -> bool:
        """Whether the colours rather than the indices stand for classes: there are not more of them."""
        colors = {color for found in self.colors.values() for color in found}
        return self.differ and -1 not in colors and len(colors) <= len(self.colors)

    def describe(self, indices: Iterable[int] | None = None) -> list[str]:
        """Returns a message for each index (all by default) that stands for two colours."""
        messages = []
        for index in sorted(self.colors if indices is None else set(indices) & set(self.colors)):
            (color, file), *others = self.colors[index].items()
            if others:
                other, other_file = others[0]
                messages.append(
                    f"{other_file}: index {index} of the palette is {_color(other)}, but {_color(color)} in {file}: "
                    "the same index means different things; set mask_encoding: rgb where the colours are the "
                    "classes, or save all masks with one palette where the indices are"
                )
        return messages


def _color(packed: int) -> str:
    return "no colour" if packed < 0 else str(unpack_color(packed))
