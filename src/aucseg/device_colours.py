"""Colour distortion of whole batches, on the device that they are on."""

from __future__ import annotations

import torch
from torch import Tensor

from aucseg.transforms import scale_saturation, turn_hue

COLOUR_CHANGES = "colour_changes"
"""Key of the drawn changes in a sample or a batch."""


def distort_colours(images: Tensor, changes: Tensor) -> Tensor:
    """Does to a batch what `aucseg.transforms.PhotometricDistortion` does to one image, with numbers drawn before.

    Nothing waits for the device. An image is what it would have been on the host, but for the last bit of float32.

    Args:
        images: (B, C, H, W), uint8 or any other type.
        changes: (B, 5): of each image what `aucseg.transforms.PhotometricDistortion.draw` has drawn.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: for other shapes.

    Example:
        >>> orange = torch.tensor([200, 90, 40], dtype=torch.uint8).view(1, 3, 1, 1)
        >>> brighter = torch.tensor([[0.2, 1.0, 1.0, 0.0, 0.0]])  # a shift by a fifth of white
        >>> distort_colours(orange, brighter).flatten().tolist()
        [251, 141, 91]
    """
    if images.ndim != 4 or changes.shape != (len(images), 5):
        raise ValueError(
            f"expected images (B, C, H, W) and changes (B, 5), got {tuple(images.shape)} and {tuple(changes.shape)}"
        )
    if not images.numel():
        return images
    pixels = images if images.dtype == torch.float64 else images.float()
    shift, contrast, saturation, turn, contrast_last = changes.to(pixels).T[..., None, None, None]
    if images.dtype == torch.uint8:
        lowest, highest = pixels.new_zeros(()), pixels.new_full((), 255.0)
        white = highest
    else:
        smallest, largest = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
        white = torch.maximum(smallest.abs(), largest.abs())
        lowest, highest = smallest.clamp(max=0), torch.full_like(largest, torch.inf)
    pixels = (pixels + shift * white).clamp(lowest, highest)
    pixels = (pixels * contrast.where(contrast_last == 0, 1)).clamp(lowest, highest)
    if pixels.shape[1] == 3:
        coloured = turn_hue(scale_saturation(pixels, saturation), turn)
        pixels = coloured.where(lowest == 0, pixels)
    pixels = (pixels * contrast.where(contrast_last != 0, 1)).clamp(lowest, highest)
    if not images.is_floating_point():
        info = torch.iinfo(images.dtype)
        pixels = pixels.round().clamp(info.min, info.max)
    distorted: Tensor = pixels.to(images.dtype)
    return distorted
