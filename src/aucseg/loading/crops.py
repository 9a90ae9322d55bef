"""Where training images are cut: around pixels of rare classes, and not where one class covers all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aucseg.datasets.counting import count_ids
from aucseg.loading.rare_classes import numbered_generator


class ClassAwareCrop(nn.Module):
    """Random crop that may look for rare classes, and is redrawn where one class covers too much of it.

    *Rare classes.* With `rare_probability` one of the rare classes that the mask holds is drawn, then one of its
    pixels; the crop is a random one that contains this pixel, whatever the shares in it. Otherwise, and where the mask
    holds none of them, every place is as likely as any other.

    *Cap.* A crop in which one class covers more than `max_class_share` of the labelled pixels gives way to the first
    redraw that keeps to it and holds every class of the crop that it replaces. Without this condition the cap would
    take rare classes away: a crop of a small object before a wide background is beyond the cap, the next one without
    the object may not be. Where `num_tries` draws bring no such crop the first one stays. So no class is in fewer
    crops than without the cap.

    Smaller images are padded at the right and the bottom: the image with `fill`, the mask with the ignore label.

    The draws depend on the seed and `sample["draw"]`, which `aucseg.loading.rare_classes.RareClassSampler` hands on:
    the same on any number of ranks and workers, and after a resume. A sample without it uses torch's global generator.

    Args:
        size: `(height, width)` of the crop in pixels.
        rare_classes: Class ids, for example of the tail. The cap spares them: each may fill a crop, and a redraw must
            hold at least as many of its pixels.
        rare_probability: How often to look for one of them, in [0, 1].
        max_class_share: Largest share of the labelled pixels that one class may hold, in (0, 1]; 1 takes the first
            crop.
        num_tries: Crops drawn at most.
        ignore_index: Label of padding; does not count as a class.
        fill: Padding value of each channel, or one for all; rounded for images of integers.
        seed: Seed of the draws for samples with a `"draw"`.

    Raises:
        ValueError: An argument out of its range; a mask whose dtype cannot hold the ignore label that padding needs;
            `fill` that does not fit the image.

    Example:
        >>> mask = torch.zeros(8, 8, dtype=torch.uint8)
        >>> mask[6, 1] = 3
        >>> sample = {"image": torch.zeros(3, 8, 8, dtype=torch.uint8), "mask": mask, "name": "a", "draw": 5}
        >>> crop = ClassAwareCrop((4, 4), rare_classes=[3], rare_probability=1.0)(sample)
        >>> tuple(crop["image"].shape), bool((crop["mask"] == 3).any())
        ((3, 4, 4), True)
    """

    def __init__(
        self,
        size: tuple[int, int],
        rare_classes: Sequence[int] = (),
        *,
        rare_probability: float = 0.0,
        max_class_share: float = 1.0,
        num_tries: int = 10,
        ignore_index: int = 255,
        fill: float | Sequence[float] = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"the crop size must be (height, width), both at least 1, got {tuple(size)}")
        if not 0 < max_class_share <= 1:
            raise ValueError(f"max_class_share must be in (0, 1], got {max_class_share}")
        if num_tries < 1:
            raise ValueError(f"num_tries must be at least 1, got {num_tries}")
        if ignore_index in rare_classes or min(rare_classes, default=0) < 0:
            raise ValueError(f"rare_classes must be class ids, not negative nor the ignore label, got {rare_classes}")
        if not 0 <= rare_probability <= 1:
            raise ValueError(f"the probability of a class-aware crop must be in [0, 1], got {rare_probability}")
        self.size = (int(size[0]), int(size[1]))
        self.rare_classes = tuple(rare_classes)
        self.rare_probability = rare_probability
        self.max_class_share = max_class_share
        self.num_tries = num_tries
        self.ignore_index = ignore_index
        self.fill = fill
        self.seed = seed

    def forward(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Returns a new sample with the cropped image (C, h, w) and mask (h, w), of the types that they have."""
        image, mask = sample["image"].as_subclass(Tensor), sample["mask"].as_subclass(Tensor)
        generator = numbered_generator(self.seed, sample["draw"]) if "draw" in sample else torch.default_generator
        height, width = self.size
        right, below = max(0, width - mask.shape[-1]), max(0, height - mask.shape[-2])
        if right or below:
            image = pad_image(image, right, below, self.fill)
            mask = pad_mask(mask, right, below, self.ignore_index)
        top, left = self._place(mask, generator)
        rows, columns = slice(top, top + height), slice(left, left + width)
        return {
            **sample,
            "image": image[..., rows, columns].as_subclass(type(sample["image"])),
            "mask": mask[rows, columns].as_subclass(type(sample["mask"])),
        }

    def _place(self, mask: Tensor, generator: torch.Generator) -> tuple[int, int]:
        """Draws the top and left of a crop."""
        pixel = None
        if self.rare_probability > 0:
            draw = float(torch.rand((), generator=generator, dtype=torch.float64))
            if draw < self.rare_probability:
                pixel = draw_pixel(mask, self.rare_classes, generator)
        first = self._draw(mask, generator, pixel)
        if pixel is not None or self.max_class_share == 1:
            return first
        counts = self._counts(mask, first)
        if self._within_cap(counts):
            return first
        least = counts.clamp(max=1)
        rare = [class_id for class_id in self.rare_classes if class_id < len(counts)]
        least[rare] = counts[rare]
        for _ in range(self.num_tries - 1):
            place = self._draw(mask, generator)
            counts = self._counts(mask, place, len(least))
            if self._within_cap(counts) and bool((counts[: len(least)] >= least).all()):
                return place
        return first

    def _draw(self, mask: Tensor, generator: torch.Generator, pixel: tuple[int, int] | None = None) -> tuple[int, int]:
        inside_row, inside_column = (None, None) if pixel is None else pixel
        top = draw_start(self.size[0], mask.shape[0], inside_row, generator)
        return top, draw_start(self.size[1], mask.shape[1], inside_column, generator)

    def _counts(self, mask: Tensor, place: tuple[int, int], num_ids: int = 0) -> Tensor:
        """Pixels of each class id in a crop, (at least `num_ids`,) int64."""
        (top, left), (height, width) = place, self.size
        # Wide first: in a narrow dtype another label may equal the ignore label.
        labels = mask[top : top + height, left : left + width].flatten().long()
        return torch.bincount(labels[(labels != self.ignore_index) & (labels >= 0)], minlength=num_ids)

    def _within_cap(self, counts: Tensor) -> bool:
        capped = counts.clone()
        capped[[class_id for class_id in self.rare_classes if class_id < len(counts)]] = 0
        total = int(counts.sum())
        return total > 0 and int(capped.max()) <= self.max_class_share * total


def pad_image(image: Tensor, right: int, below: int, fill: float | Sequence[float]) -> Tensor:
    """Pads an image (C, H, W) with one value for each channel, or one for all."""
    values = torch.tensor([fill] if isinstance(fill, (int, float)) else list(fill), dtype=torch.float64)
    channels, height, width = image.shape
    if len(values) not in (1, channels):
        raise ValueError(
            f"fill has {len(values)} values for an image of {channels} channels: give one for each, or one"
        )
    if not image.is_floating_point():
        values = values.round()
        if not torch.equal(values.to(image.dtype).double(), values):
            raise ValueError(f"an image of {image.dtype} cannot be padded with fill {fill}")
    padded = values.to(image.dtype).view(-1, 1, 1).repeat(channels // len(values), height + below, width + right)
    padded[:, :height, :width] = image
    return padded


def draw_pixel(mask: Tensor, classes: Sequence[int], generator: torch.Generator) -> tuple[int, int] | None:
    """Draws one of the classes that the mask (H, W) holds, then the (row, column) of one of its pixels; or None."""
    ids, counts = count_ids(mask.numpy())
    present = [i for i, class_id in enumerate(ids.tolist()) if class_id in classes]
    if not present:
        return None
    drawn = present[int(torch.randint(len(present), (), generator=generator))]
    place = int(torch.randint(int(counts[drawn]), (), generator=generator))
    return divmod(int((mask == int(ids[drawn])).flatten().nonzero()[place]), mask.shape[1])


def draw_start(size: int, length: int, inside: int | None, generator: torch.Generator) -> int:
    """Draws the start of an interval of `size` within `length` that contains the position `inside`."""
    low = 0 if inside is None else max(inside - size + 1, 0)
    high = length - size if inside is None else min(inside, length - size)
    return int(torch.randint(low, high + 1, (), generator=generator))


def pad_mask(mask: Tensor, right: int, below: int, ignore_index: int) -> Tensor:
    """Pads a mask (H, W) with the ignore label.

    Raises:
        ValueError: The mask's dtype cannot hold the ignore label, which would become that of a class.
    """
    if mask.dtype == torch.bool or not torch.iinfo(mask.dtype).min <= ignore_index <= torch.iinfo(mask.dtype).max:
        raise ValueError(
            f"a mask of {mask.dtype} cannot be padded with the ignore label {ignore_index}: "
            "give masks of a dtype that holds it, such as int64"
        )
    return F.pad(mask, (0, right, 0, below), value=ignore_index)
