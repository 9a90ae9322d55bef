"""Training and evaluation transforms on torchvision's v2 API.

A sample is a dict ``{"image": uint8 (C, H, W), "mask": uint8 or int64 (H, W), "name": str}``; every transform takes one
and returns one. Images stay uint8: the memory bank pastes and the task normalizes on the device, so that a loader sends
a quarter of the bytes of float images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aucseg.photometric import DrawColourChange, PhotometricDistortion
from aucseg.sampling import draw_pixel, draw_start, pad_mask

try:
    from torchvision import tv_tensors
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as tvf
except ImportError as error:  # pragma: no cover - depends on the environment
    raise ImportError('aucseg.transforms needs torchvision: pip install "aucseg[train]"') from error

Sample = dict[str, Any]

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""Mean of the ImageNet training images, in units of 0..255."""
IMAGENET_STD = (58.395, 57.12, 57.375)
"""Standard deviation of the ImageNet training images, in units of 0..255."""


class WrapSample(nn.Module):
    """Marks image and mask as what they are, so that v2 transforms treat each in its own way.

    Raises:
        ValueError: an image that is not (C, H, W), or a mask that is not (H, W) of the same size.
        TypeError: an image that is neither of integers nor floating, a mask that is not of integers.
    """

    def forward(self, sample: Sample) -> Sample:
        """Returns a shallow copy of ``sample`` with typed tensors."""
        image, mask = sample["image"], sample["mask"]
        if image.ndim != 3 or mask.shape != image.shape[1:]:
            raise ValueError(
                f"sample {sample.get('name', '')!r}: the image must be (C, H, W) and the mask (H, W) of the same size, "
                f"got {tuple(image.shape)} and {tuple(mask.shape)}"
            )
        if image.dtype == torch.bool or image.is_complex() or mask.is_floating_point() or mask.is_complex():
            raise TypeError(
                f"sample {sample.get('name', '')!r}: the image must be of integers or floating-point numbers and the "
                f"mask of integers, got {image.dtype} and {mask.dtype}"
            )
        return {**sample, "image": tv_tensors.Image(image), "mask": tv_tensors.Mask(mask)}


class UnwrapSample(nn.Module):
    """Turns typed tensors back to plain, contiguous ones, which collate faster."""

    def forward(self, sample: Sample) -> Sample:
        """Returns a shallow copy of ``sample`` with plain tensors."""
        return {
            **sample,
            "image": sample["image"].as_subclass(Tensor).contiguous(),
            "mask": sample["mask"].as_subclass(Tensor).contiguous(),
        }


class RandomScale(nn.Module):
    """Resizes image (bilinear, antialiased) and mask (nearest) by one random factor, keeping the aspect.

    Both take pixel centres to pixel centres: row i of h comes from the place (i + 1/2) H / h of the H rows.

    Args:
        ratio: range of the factor, uniform.
        base_size: ``(long, short)`` edge in pixels that the image is fitted into before the factor applies, or None
            for its own size.

    Example:
        >>> image, mask = torch.zeros(3, 60, 80, dtype=torch.uint8), torch.zeros(60, 80, dtype=torch.uint8)
        >>> sample = {"image": image, "mask": mask}
        >>> RandomScale((0.5, 0.5))(WrapSample()(sample))["image"].shape
        torch.Size([3, 30, 40])
    """

    def __init__(self, ratio: tuple[float, float] = (0.5, 2.0), base_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"scale must be a range (low, high) with 0 < low <= high, got {tuple(ratio)}")
        self.ratio = ratio
        self.base_size = base_size

    def forward(self, sample: Sample) -> Sample:
        """Returns the scaled sample."""
        image, mask = sample["image"], sample["mask"]
        low, high = self.ratio
        factor = low + (high - low) * float(torch.rand((), dtype=torch.float64))
        height, width = scaled_size(mask.shape, factor, self.base_size)
        if (height, width) == mask.shape:
            return sample
        rows, columns = (nearest_places(old, new) for old, new in zip(mask.shape, (height, width), strict=True))
        # Not torchvision's resize, which takes row floor(i H / h): half an output pixel up and left of the image's.
        nearest = mask.as_subclass(Tensor).index_select(0, rows).index_select(1, columns)
        return {
            **sample,
            "image": tvf.resize(image, [height, width], antialias=True),
            "mask": tv_tensors.wrap(nearest, like=mask),
        }


def scaled_size(size: Sequence[int], factor: float, base_size: tuple[int, int] | None) -> tuple[int, int]:
    """The (height, width) of ``size`` fitted into ``base_size = (long, short)``, times ``factor``; at least 1.

    Example:
        >>> scaled_size((60, 80), 2.0, base_size=(40, 40))
        (60, 80)
    """
    height, width = size
    if base_size is not None:
        factor *= min(max(base_size) / max(height, width), min(base_size) / min(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def nearest_places(old: int, new: int) -> Tensor:
    """For each of ``new`` pixels in a row the one of ``old`` pixels that holds its centre: floor((i + 1/2) old / new).

    Example:
        >>> nearest_places(6, 2).tolist()
        [1, 4]
    """
    return torch.div((2 * torch.arange(new) + 1) * old, 2 * new, rounding_mode="floor")


class RandomCropWithClassCap(nn.Module):
    """Random crop, redrawn where one class covers more than a given share of its labelled pixels.

    Every place is as likely as any other. A crop beyond the cap gives way to the first redraw that keeps to it and
    holds every class of the crop that it replaces. Without this condition the cap would take rare classes away: a crop
    of a small object before a wide background is beyond the cap, the next one without the object may not be. Where
    ``num_tries`` draws bring no such crop the first one stays. So no class is in fewer crops than without the cap.

    Smaller images are padded at the right and the bottom: the image with ``fill``, the mask with the ignore label.

    Args:
        size: ``(height, width)`` of the crop in pixels.
        max_class_share: largest share of the labelled pixels that one class may hold, in (0, 1]; 1 takes the first
            crop.
        ignore_index: label of padding; does not count as a class.
        fill: padding value of each channel, or one for all; rounded for images of integers.
        num_tries: crops drawn at most.
        rare_classes: class ids that the cap spares: each may fill a crop, and a redraw must hold at least as many of
            its pixels.
        rare_probability: how often the crop is one around a pixel of a rare class that the image holds (a class drawn
            first, then its pixel), whatever the shares in it.

    Raises:
        ValueError: an argument out of its range; a mask whose dtype cannot hold the ignore label that padding needs;
            ``fill`` that does not fit the image.
    """

    def __init__(
        self,
        size: tuple[int, int],
        max_class_share: float = 0.75,
        ignore_index: int = 255,
        fill: float | Sequence[float] = 0,
        num_tries: int = 10,
        rare_classes: Sequence[int] = (),
        rare_probability: float = 0.0,
    ) -> None:
        super().__init__()
        if min(size) < 1:
            raise ValueError(f"crop size must be positive, got {tuple(size)}")
        if not 0 < max_class_share <= 1:
            raise ValueError(f"max_class_share must be in (0, 1], got {max_class_share}")
        if num_tries < 1:
            raise ValueError(f"num_tries must be at least 1, got {num_tries}")
        if ignore_index in rare_classes or min(rare_classes, default=0) < 0:
            raise ValueError(f"rare_classes must be class ids, not negative nor the ignore label, got {rare_classes}")
        if not 0 <= rare_probability <= 1:
            raise ValueError(f"the probability of a class-aware crop must be in [0, 1], got {rare_probability}")
        self.size = (int(size[0]), int(size[1]))
        self.max_class_share = max_class_share
        self.ignore_index = ignore_index
        self.fill = fill
        self.num_tries = num_tries
        self.rare_classes = tuple(rare_classes)
        self.rare_probability = rare_probability

    def forward(self, sample: Sample) -> Sample:
        """Returns the cropped sample."""
        image, mask = sample["image"], sample["mask"]
        height, width = self.size
        right, below = max(0, width - mask.shape[-1]), max(0, height - mask.shape[-2])
        if right or below:
            image = tv_tensors.wrap(pad_image(image.as_subclass(Tensor), right, below, self.fill), like=image)
            mask = tv_tensors.wrap(pad_mask(mask.as_subclass(Tensor), right, below, self.ignore_index), like=mask)
        top, left = self._place(mask.as_subclass(Tensor))
        return {
            **sample,
            "image": tvf.crop(image, top, left, height, width),
            "mask": tvf.crop(mask, top, left, height, width),
        }

    def _place(self, mask: Tensor) -> tuple[int, int]:
        """Draws the top and left of a crop."""
        pixel = None
        if self.rare_probability > 0 and float(torch.rand((), dtype=torch.float64)) < self.rare_probability:
            pixel = draw_pixel(mask, self.rare_classes, torch.default_generator)
        first = self._draw(mask, pixel)
        if pixel is not None or self.max_class_share == 1:
            return first
        counts = self._counts(mask, first)
        if self._within_cap(counts):
            return first
        least = counts.clamp(max=1)
        rare = [class_id for class_id in self.rare_classes if class_id < len(counts)]
        least[rare] = counts[rare]
        for _ in range(self.num_tries - 1):
            place = self._draw(mask)
            counts = self._counts(mask, place, len(least))
            if self._within_cap(counts) and bool((counts[: len(least)] >= least).all()):
                return place
        return first

    def _draw(self, mask: Tensor, pixel: tuple[int, int] | None = None) -> tuple[int, int]:
        inside_row, inside_column = (None, None) if pixel is None else pixel
        top = draw_start(self.size[0], mask.shape[0], inside_row, torch.default_generator)
        return top, draw_start(self.size[1], mask.shape[1], inside_column, torch.default_generator)

    def _counts(self, mask: Tensor, place: tuple[int, int], num_ids: int = 0) -> Tensor:
        """Pixels of each class id in a crop, (at least ``num_ids``,) int64."""
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


class RandomFlip(nn.Module):
    """Mirrors image and mask, left to right, with a probability."""

    def __init__(self, probability: float = 0.5) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"flip is a probability in [0, 1], got {probability}")
        self.probability = probability

    def forward(self, sample: Sample) -> Sample:
        """Returns the sample, mirrored or as it is."""
        if float(torch.rand((), dtype=torch.float64)) >= self.probability:
            return sample
        return {
            **sample,
            "image": tvf.horizontal_flip(sample["image"]),
            "mask": tvf.horizontal_flip(sample["mask"]),
        }


class FitWithin(nn.Module):
    """Resizes the image to fit ``(long, short)`` edges; the mask keeps its size: metrics are at full resolution."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, sample: Sample) -> Sample:
        """Returns the sample with a resized image."""
        image = sample["image"]
        return {**sample, "image": tvf.resize(image, scaled_size(image.shape[1:], 1.0, self.size), antialias=True)}


def training_transform(
    crop_size: tuple[int, int],
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    base_size: tuple[int, int] | None = None,
    max_class_share: float = 0.75,
    flip: float = 0.5,
    photometric: bool | Literal["device"] = True,
    ignore_index: int = 255,
    fill: float | Sequence[float] = 0,
    rare_classes: Sequence[int] = (),
    rare_probability: float = 0.0,
) -> v2.Compose:
    """The usual training pipeline: scale, crop with a cap on one class's share, flip, photometric distortion.

    Args:
        crop_size: ``(height, width)`` of the crops in pixels.
        scale: range of the random scale factor.
        base_size: ``(long, short)`` edge that images are fitted into before ``scale`` applies; None for their own size.
        max_class_share: see `RandomCropWithClassCap`.
        flip: probability of a horizontal flip.
        photometric: whether to distort brightness, contrast, saturation and hue, see `PhotometricDistortion`; "device"
            draws the changes alone, see `aucseg.photometric.DrawColourChange`.
        ignore_index: label of padding.
        fill: padding value of the image; with the mean of the data set it is about zero after normalization (exactly
            so without rounding and distortion).
        rare_classes: see `RandomCropWithClassCap`.
        rare_probability: see `RandomCropWithClassCap`.

    Returns:
        A transform from sample to sample; its randomness comes from torch's global generator.

    Example:
        >>> image, mask = torch.zeros(3, 60, 80, dtype=torch.uint8), torch.zeros(60, 80, dtype=torch.uint8)
        >>> training_transform((32, 48))({"image": image, "mask": mask})["image"].shape
        torch.Size([3, 32, 48])
    """
    steps: list[nn.Module] = [
        WrapSample(),
        RandomScale(scale, base_size),
        RandomCropWithClassCap(
            crop_size,
            max_class_share,
            ignore_index,
            fill,
            rare_classes=rare_classes,
            rare_probability=rare_probability,
        ),
        RandomFlip(flip),
    ]
    if photometric not in (True, False, "device"):
        raise ValueError(f"photometric must be true, false or 'device', not {photometric!r}")
    if photometric:
        steps.append(DrawColourChange() if photometric == "device" else PhotometricDistortion())
    return v2.Compose([*steps, UnwrapSample()])


def evaluation_transform(*, base_size: tuple[int, int] | None = None) -> v2.Compose:
    """Leaves the sample as it is, or fits the image (not the mask) into ``base_size = (long, short)`` edges.

    Example:
        >>> image, mask = torch.zeros(3, 60, 80, dtype=torch.uint8), torch.zeros(60, 80, dtype=torch.uint8)
        >>> evaluation_transform(base_size=(40, 30))({"image": image, "mask": mask})["image"].shape
        torch.Size([3, 30, 40])
    """
    resize = [FitWithin(base_size)] if base_size is not None else []
    return v2.Compose([WrapSample(), *resize, UnwrapSample()])
