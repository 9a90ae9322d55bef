"""Training and evaluation transforms on torchvision's v2 API.

A sample is a dict `{"image": uint8 (C, H, W), "mask": uint8 or int64 (H, W), "name": str}`; every transform takes one
and returns one. Images stay uint8: the memory bank pastes and the task normalizes on the device, so that a loader sends
a quarter of the bytes of float images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aucseg.datasets.dataset import Sample
from aucseg.hints import check_choice
from aucseg.loading.crops import ClassAwareCrop
from aucseg.loading.own_augmentation import OwnAugmentation
from aucseg.loading.photometric import DrawColourChange, PhotometricDistortion

try:
    from torchvision import tv_tensors
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as tvf
except ImportError as error:  # pragma: no cover - depends on the environment
    raise ImportError('aucseg.loading.transforms needs torchvision: pip install "aucseg[train]"') from error


class WrapSample(nn.Module):
    """Marks image and mask as what they are, so that v2 transforms treat each in its own way.

    Raises:
        ValueError: An image that is not (C, H, W), or a mask that is not (H, W) of the same size.
        TypeError: An image that is neither of integers nor floating, a mask that is not of integers.
    """

    def forward(self, sample: Sample) -> Sample:
        """Returns a shallow copy of `sample` with typed tensors."""
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
        """Returns a shallow copy of `sample` with plain tensors."""
        return {
            **sample,
            "image": sample["image"].as_subclass(Tensor).contiguous(),
            "mask": sample["mask"].as_subclass(Tensor).contiguous(),
        }


class RandomScale(nn.Module):
    """Resizes image (bilinear, antialiased) and mask (nearest) by one random factor, keeping the aspect.

    Both take pixel centres to pixel centres: row i of h comes from the place (i + 1/2) H / h of the H rows.

    Args:
        ratio: Range of the factor, uniform.
        base_size: `(long, short)` edge in pixels that the image is fitted into before the factor applies, or None
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
    """The (height, width) of `size` fitted into `base_size = (long, short)`, times `factor`; at least 1.

    Example:
        >>> scaled_size((60, 80), 2.0, base_size=(40, 40))
        (60, 80)
    """
    height, width = size
    if base_size is not None:
        factor *= min(max(base_size) / max(height, width), min(base_size) / min(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def nearest_places(old: int, new: int) -> Tensor:
    """For each of `new` pixels in a row the one of `old` pixels that holds its centre: floor((i + 1/2) old / new).

    Example:
        >>> nearest_places(6, 2).tolist()
        [1, 4]
    """
    return torch.div((2 * torch.arange(new) + 1) * old, 2 * new, rounding_mode="floor")


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
    """Resizes the image to fit `(long, short)` edges; the mask keeps its size: metrics are at full resolution."""

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
    augmentation: Sequence[Any] = (),
) -> v2.Compose:
    """The usual training pipeline: scale, crop with a cap on one class's share, flip, photometric distortion.

    Args:
        crop_size: `(height, width)` of the crops in pixels.
        scale: Range of the random scale factor.
        base_size: `(long, short)` edge that images are fitted into before `scale` applies; None for their own size.
        max_class_share: See `aucseg.loading.crops.ClassAwareCrop`.
        flip: Probability of a horizontal flip.
        photometric: Whether to distort brightness, contrast, saturation and hue, see `PhotometricDistortion`; "device"
            draws the changes alone, see `aucseg.loading.photometric.DrawColourChange`.
        ignore_index: Label of padding.
        fill: Padding value of the image; with the mean of the data set it is about zero after normalization (exactly
            so without rounding and distortion).
        rare_classes: See `aucseg.loading.crops.ClassAwareCrop`.
        rare_probability: See `aucseg.loading.crops.ClassAwareCrop`.
        augmentation: What else is done to a crop, before the photometric distortion: entries of
            `aucseg.loading.own_augmentation.OwnAugmentation`.

    Returns:
        A transform from sample to sample; its randomness comes from torch's global generator.

    Example:
        >>> image, mask = torch.zeros(3, 60, 80, dtype=torch.uint8), torch.zeros(60, 80, dtype=torch.uint8)
        >>> training_transform((32, 48))({"image": image, "mask": mask})["image"].shape
        torch.Size([3, 32, 48])
    """
    steps: list[Callable[[Sample], Sample]] = [
        WrapSample(),
        RandomScale(scale, base_size),
        ClassAwareCrop(
            crop_size,
            rare_classes,
            rare_probability=rare_probability,
            max_class_share=max_class_share,
            ignore_index=ignore_index,
            fill=fill,
        ),
        RandomFlip(flip),
    ]
    if augmentation:
        steps.append(OwnAugmentation(augmentation, ignore_index=ignore_index, fill=fill))
    check_choice("photometric", photometric, (True, False, "device"))
    if photometric:
        steps.append(DrawColourChange() if photometric == "device" else PhotometricDistortion())
    return v2.Compose([*steps, UnwrapSample()])


def evaluation_transform(*, base_size: tuple[int, int] | None = None) -> v2.Compose:
    """Leaves the sample as it is, or fits the image (not the mask) into `base_size = (long, short)` edges.

    Example:
        >>> image, mask = torch.zeros(3, 60, 80, dtype=torch.uint8), torch.zeros(60, 80, dtype=torch.uint8)
        >>> evaluation_transform(base_size=(40, 30))({"image": image, "mask": mask})["image"].shape
        torch.Size([3, 30, 40])
    """
    resize = [FitWithin(base_size)] if base_size is not None else []
    return v2.Compose([WrapSample(), *resize, UnwrapSample()])
