"""Photometric distortion of training images, in plain tensor operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Sample = dict[str, Any]


class PhotometricDistortion(nn.Module):
    r"""Random brightness, contrast, saturation and hue, each in half of the draws; channels keep their places.

    The steps, in this order, each on its own with probability 1/2 and uniform in its range:

    1. brightness: :math:`x + \delta`, with :math:`\delta` in -32/255..32/255 of white;
    2. contrast: :math:`\alpha x`, with :math:`\alpha` in 0.5..1.5;
    3. saturation: that of the HSV colour times 0.5..1.5, at most 1;
    4. hue: that of the HSV colour turned by -36..36 degrees.

    In half of the draws contrast comes last instead. Images without three channels have no colours: of them brightness
    and contrast alone change, all channels alike. So it is with three channels of which a value is negative.

    White is 255 for uint8. Other dtypes have no white of their own (0..1, 12 of 16 bits, reflectance, ...): the largest
    absolute value of the image stands for it, so that an image in other units gets the same distortion. After each
    step values below 0 (or below the smallest value of the image, where that is negative) and, of uint8, above 255
    are clipped; an integer image is rounded once, at the end.

    The ranges, the order and the probabilities are those of ``PhotoMetricDistortion`` in mmsegmentation, after Liu et
    al., "SSD: Single Shot MultiBox Detector", ECCV 2016.

    Example:
        >>> orange = torch.tensor([200, 90, 40], dtype=torch.uint8).view(3, 1, 1)
        >>> _ = torch.manual_seed(0)
        >>> PhotometricDistortion()({"image": orange})["image"].flatten().tolist()
        [200, 106, 64]
    """

    max_shift = 32 / 255
    factors = (0.5, 1.5)
    max_turn = 36 / 360

    def forward(self, sample: Sample) -> Sample:
        """Returns the sample with a distorted image (C, H, W) of the same type, dtype and shape."""
        image = sample["image"]
        # As many numbers for every image, so that what is drawn next does not depend on it.
        *applied, contrast_last = (torch.rand(5, dtype=torch.float64) < 0.5).tolist()
        drawn = torch.rand(4, dtype=torch.float64)
        shift = float(2 * drawn[0] - 1) * self.max_shift
        low, high = self.factors
        contrast, saturation = (low + drawn[1:3] * (high - low)).tolist()
        turn = float(2 * drawn[3] - 1) * self.max_turn
        if not any(applied) or not image.numel():
            return sample
        plain = image.as_subclass(Tensor)
        pixels = plain if plain.dtype == torch.float64 else plain.float()
        smallest, largest = (float(value) for value in torch.aminmax(pixels))
        white = 255.0 if plain.dtype == torch.uint8 else max(abs(smallest), abs(largest))
        lowest, highest = min(0.0, smallest), 255.0 if plain.dtype == torch.uint8 else None
        coloured = pixels.shape[-3] == 3 and smallest >= 0
        if applied[0]:
            pixels = (pixels + shift * white).clamp(lowest, highest)
        if applied[1] and not contrast_last:
            pixels = (pixels * contrast).clamp(lowest, highest)
        if applied[2] and coloured:
            pixels = scale_saturation(pixels, saturation)
        if applied[3] and coloured:
            pixels = turn_hue(pixels, turn)
        if applied[1] and contrast_last:
            pixels = (pixels * contrast).clamp(lowest, highest)
        if not plain.is_floating_point():
            info = torch.iinfo(plain.dtype)
            pixels = pixels.round().clamp(info.min, info.max)
        return {**sample, "image": pixels.to(plain.dtype).as_subclass(type(image))}


def scale_saturation(pixels: Tensor, factor: float) -> Tensor:
    """Multiplies the HSV saturation of colours (..., 3, H, W) of at least 0 by ``factor``, to at most 1.

    With V the largest channel of a pixel and m the smallest, its saturation is (V - m) / V. A channel c becomes
    V - k (V - c), where k is ``factor`` or, if less, what gives saturation 1.
    """
    smallest, value = torch.aminmax(pixels, dim=-3, keepdim=True)
    largest_factor = value / (value - smallest)  # grey: infinite, or NaN for black, of which nothing changes
    return (value - (value - pixels) * largest_factor.nan_to_num(nan=factor).clamp(max=factor)).clamp(min=0)


def turn_hue(pixels: Tensor, turn: float) -> Tensor:
    """Turns the HSV hue of colours (..., 3, H, W) by ``turn``, in full circles; saturation and value stay."""
    smallest, value = torch.aminmax(pixels, dim=-3, keepdim=True)
    chroma = value - smallest
    unit = chroma.masked_fill(chroma == 0, 1)  # grey has no hue, and none is needed
    red, green, blue = pixels.tensor_split(3, dim=-3)
    hue = torch.where(  # in sixths of the circle from red
        red == value,
        (green - blue) / unit,
        torch.where(green == value, (blue - red) / unit + 2, (red - green) / unit + 4),
    )
    hue = hue + 6 * turn
    # Each channel is a trapezoid over the hue: full within one sixth of its own place, nothing beyond two sixths.
    places = torch.tensor([0, 2, 4], dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
    distance = ((hue - places + 3).remainder(6) - 3).abs()
    return smallest + chroma * (2 - distance).clamp(0, 1)
