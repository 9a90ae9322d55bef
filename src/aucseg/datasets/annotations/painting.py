"""The regions of one image painted as a mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from aucseg.datasets.annotations.model import IGNORED, AnnotatedImage, AnnotationError, Region, Rle
from aucseg.datasets.annotations.shapes import pixels_of
from aucseg.datasets.files import Array
from aucseg.hints import import_extra


@dataclass(frozen=True)
class PaintOptions:
    """How regions become pixels.

    Attributes:
        overlap: Which region gets a pixel that several hold: `small`, that with fewer pixels; `last`, the one that
            comes later in the file. Layers that an annotator set (CVAT) take precedence; regions to ignore compete like
            all.
        unlabelled: What pixels without a region are: `background`, a class of its own, or `ignore`; None for
            `background`, but `ignore` in panoptic files, whose pixels without a segment are not labelled.
        boxes: What becomes of boxes, which are not outlines: `error`, `fill`, or `ignore` their pixels.
        ignored: Labels whose regions are ignored.
        dropped: Labels whose regions are left out, as if they were not there.
    """

    overlap: str = "small"
    unlabelled: str | None = None
    boxes: str = "error"
    ignored: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("overlap", self.overlap, ("small", "last")),
            ("unlabelled", self.unlabelled, (None, "background", "ignore")),
            ("boxes", self.boxes, ("error", "fill", "ignore")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")

    def is_ignored(self, region: Region) -> bool:
        """Returns whether the pixels of a region are ignored."""
        is_label = region.label in IGNORED or region.label in self.ignored
        return region.is_ignored or is_label or (region.is_box and self.boxes == "ignore")


@dataclass
class Painted:
    """A painted mask.

    Attributes:
        mask: (H, W) ids, uint8 or uint16.
        problems: Regions that cannot be used.
        num_regions: Regions that were painted.
        num_vanished: Regions smaller than a pixel, which leave no trace.
        num_contested: Pixels that regions of different labels hold.
    """

    mask: Array
    problems: list[str] = field(default_factory=list)
    num_regions: int = 0
    num_vanished: int = 0
    num_contested: int = 0


def paint(
    image: AnnotatedImage,
    size: tuple[int, int],
    id_of: Mapping[str, int],
    *,
    unlabelled_id: int,
    ignored_id: int,
    options: PaintOptions,
) -> Painted:
    """Paints the regions of an image.

    Args:
        image: The image and its regions.
        size: (height, width) of the mask.
        id_of: The id of each label.
        unlabelled_id: The id of pixels without a region.
        ignored_id: The id of regions to ignore.
        options: The rules.
    """
    library = import_extra("pycocotools.mask", "masks")
    painted = Painted(np.full(size, unlabelled_id, np.uint8 if ignored_id < 256 else np.uint16))
    shapes: list[tuple[int, int, int, Rle]] = []
    for region in image.regions:
        if region.label in options.dropped:
            continue
        if region.is_box and options.boxes == "error":
            painted.problems.append(
                f"{region.where}: a box is not an outline of {region.label!r}; fill boxes (--boxes fill), ignore their "
                "pixels (--boxes ignore), or leave the label out (--drop)"
            )
            continue
        try:
            rle = region.shape(*size)
        except AnnotationError as error:
            painted.problems.append(f"{region.where}: {error}")
            continue
        area = int(library.area(rle))
        if area == 0:
            painted.num_vanished += 1
            continue
        painted.num_regions += 1
        raw = ignored_id if options.is_ignored(region) else id_of[region.label]
        shapes.append((region.layer, -area if options.overlap == "small" else 0, raw, rle))
    seen = np.zeros(size, bool)
    contested = np.zeros(size, bool)
    # Sorting is stable: of equals the later one lies above.
    for _, _, raw, rle in sorted(shapes, key=lambda entry: entry[:2]):
        pixels = pixels_of(rle)
        contested |= pixels & seen & (painted.mask != raw)
        seen |= pixels
        painted.mask[pixels] = raw
    painted.num_contested = int(contested.sum())
    return painted
