"""Training and evaluation transforms on torchvision's v2 API.

A sample is a dict ``{"image": uint8 (C, H, W), "mask": uint8 or int64 (H, W), "name": str}``; every transform takes one
and returns one. Images stay uint8: the memory bank pastes and the task normalizes on the device, so that a loader sends
a quarter of the bytes of float images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aucseg.sampling import draw_pixel, draw_start

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
    """Marks image and mask as what they are, so that v2 transforms treat each in its own way."""

    def forward(self, sample: Sample) -> Sample:
        """Returns a shallow copy of ``sample`` with typed tensors."""
        return {**sample, "image": tv_tensors.Image(sample["image"]), "mask": tv_tensors.Mask(sample["mask"])}


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
        height, width = sample["mask"].shape[-2:]
        factor = float(torch.empty(()).uniform_(*self.ratio))
        if self.base_size is not None:
            long, short = max(self.base_size), min(self.base_size)
            factor *= min(long / max(height, width), short / min(height, width))
        size = [max(1, round(height * factor)), max(1, round(width * factor))]
        if size == [height, width]:
            return sample
        return {
            **sample,
            "image": tvf.resize(sample["image"], size, antialias=True),
            "mask": tvf.resize(sample["mask"], size),
        }


class RandomCropWithClassCap(nn.Module):
    """Random crop in which no class covers more than a given share of the labelled pixels, where a few tries find one.

    Smaller images are padded at the right and the bottom: the image with ``fill``, the mask with the ignore label.

    Args:
        size: ``(height, width)`` of the crop in pixels.
        max_class_share: largest share of the labelled pixels that one class may hold, in (0, 1]; 1 takes the first
            crop.
        ignore_index: label of padding; does not count as a class.
        fill: padding value of each channel, or one for all.
        num_tries: crops drawn before the last one is taken as it is.
        rare_classes: class ids to look for.
        rare_probability: how often the crop is one around a pixel of a rare class that the image holds (a class drawn
            first, then its pixel), whatever the shares in it.
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
        crop_height, crop_width = self.size
        pad = [0, 0, max(0, crop_width - mask.shape[-1]), max(0, crop_height - mask.shape[-2])]
        if any(pad):
            fill = self.fill if isinstance(self.fill, (int, float)) else list(self.fill)
            image = tvf.pad(image, pad, fill=fill)
            mask = tvf.pad(mask, pad, fill=self.ignore_index)
        height, width = mask.shape[-2:]
        labels = mask.as_subclass(Tensor)
        top = left = 0
        pixel = None
        if self.rare_probability > 0 and float(torch.rand(())) < self.rare_probability:
            pixel = draw_pixel(labels, self.rare_classes, torch.default_generator)
        if pixel is not None:
            top = draw_start(crop_height, height, pixel[0], torch.default_generator)
            left = draw_start(crop_width, width, pixel[1], torch.default_generator)
        for _ in range(self.num_tries if pixel is None else 0):
            top = int(torch.randint(height - crop_height + 1, ()))
            left = int(torch.randint(width - crop_width + 1, ()))
            if self.max_class_share == 1:
                break
            window = labels[top : top + crop_height, left : left + crop_width].flatten().long()
            counts = torch.bincount(window[window != self.ignore_index])
            # One class alone cannot be capped: a crop of one class is as good as another try's.
            if counts.numel() and int(counts.max()) <= self.max_class_share * int(counts.sum()):
                break
        return {
            **sample,
            "image": tvf.crop(image, top, left, crop_height, crop_width),
            "mask": tvf.crop(mask, top, left, crop_height, crop_width),
        }


class PhotometricDistortion(nn.Module):
    """Random brightness, contrast, saturation and hue; without three channels brightness and contrast only."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb = v2.RandomPhotometricDistort()

    def forward(self, sample: Sample) -> Sample:
        """Returns the sample with a distorted image."""
        image = sample["image"]
        if image.shape[-3] == 3:
            return {**sample, "image": self.rgb(image)}
        brightness, contrast = torch.empty(2).uniform_(0.875, 1.125).tolist()
        plain = image.as_subclass(Tensor).float()
        mean = plain.mean((-2, -1), keepdim=True)
        distorted = ((plain - mean) * contrast + mean) * brightness
        if not image.is_floating_point():
            info = torch.iinfo(image.dtype)
            distorted = distorted.round().clamp(info.min, info.max)
        return {**sample, "image": tv_tensors.wrap(distorted.to(image.dtype), like=image)}


class FitWithin(nn.Module):
    """Resizes the image to fit ``(long, short)`` edges; the mask keeps its size: metrics are at full resolution."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.scale = RandomScale((1.0, 1.0), size)

    def forward(self, sample: Sample) -> Sample:
        """Returns the sample with a resized image."""
        return {**sample, "image": self.scale(sample)["image"]}


def training_transform(
    crop_size: tuple[int, int],
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    base_size: tuple[int, int] | None = None,
    max_class_share: float = 0.75,
    flip: float = 0.5,
    photometric: bool = True,
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
        photometric: whether to distort brightness, contrast, saturation and hue.
        ignore_index: label of padding.
        fill: padding value of the image; the mean of the data set makes it zero after normalization.
        rare_classes: see `RandomCropWithClassCap`.
        rare_probability: see `RandomCropWithClassCap`.

    Returns:
        A transform from sample to sample; its randomness comes from torch's global generator.

    Example:
        >>> image, mask = torch.zeros(3, 60, 80, dtype=torch.uint8), torch.zeros(60, 80, dtype=torch.uint8)
        >>> training_transform((32, 48))({"image": image, "mask": mask})["image"].shape
        torch.Size([3, 32, 48])
    """
    if not 0 <= flip <= 1:
        raise ValueError(f"flip is a probability in [0, 1], got {flip}")
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
        v2.RandomHorizontalFlip(flip),
    ]
    if photometric:
        steps.append(PhotometricDistortion())
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
