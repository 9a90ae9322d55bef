"""Photometric distortion of training images, in plain tensor operations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from aucseg.datasets.dataset import Sample

COLOUR_CHANGES = "colour_changes"
"""Key of the drawn changes in a sample or a batch."""


class ColourChange(NamedTuple):
    """What `PhotometricDistortion` draws for one image: the neutral values are those here.

    Attributes:
        shift: Added brightness, in units of white.
        contrast: Factor of the values.
        saturation: Factor of the saturation.
        turn: Of the hue, in full circles.
        contrast_last: Whether contrast comes after saturation and hue.
    """

    shift: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    turn: float = 0.0
    contrast_last: bool = False


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

    The ranges, the order and the probabilities are those of `PhotoMetricDistortion` in mmsegmentation, after Liu et
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

    def draw(self) -> ColourChange:
        """Draws the changes of one image, from torch's global generator."""
        # As many numbers for every image, so that what is drawn next does not depend on it.
        brighter, contrasted, saturated, turned, contrast_last = (torch.rand(5, dtype=torch.float64) < 0.5).tolist()
        drawn = torch.rand(4, dtype=torch.float64)
        low, high = self.factors
        contrast, saturation = (low + drawn[1:3] * (high - low)).tolist()
        return ColourChange(
            shift=float(2 * drawn[0] - 1) * self.max_shift if brighter else 0.0,
            contrast=contrast if contrasted else 1.0,
            saturation=saturation if saturated else 1.0,
            turn=float(2 * drawn[3] - 1) * self.max_turn if turned else 0.0,
            contrast_last=contrast_last,
        )

    def forward(self, sample: Sample) -> Sample:
        """Returns the sample with a distorted image (C, H, W) of the same type, dtype and shape."""
        image = sample["image"]
        change = self.draw()
        if change[:4] == ColourChange()[:4] or not image.numel():
            return sample
        plain = image.as_subclass(Tensor)
        pixels = plain if plain.dtype == torch.float64 else plain.float()
        smallest, largest = (float(value) for value in torch.aminmax(pixels))
        white = 255.0 if plain.dtype == torch.uint8 else max(abs(smallest), abs(largest))
        lowest, highest = min(0.0, smallest), 255.0 if plain.dtype == torch.uint8 else None
        coloured = pixels.shape[-3] == 3 and smallest >= 0
        if change.shift != 0:
            pixels = (pixels + change.shift * white).clamp(lowest, highest)
        if change.contrast != 1 and not change.contrast_last:
            pixels = (pixels * change.contrast).clamp(lowest, highest)
        if change.saturation != 1 and coloured:
            pixels = scale_saturation(pixels, change.saturation)
        if change.turn != 0 and coloured:
            pixels = turn_hue(pixels, change.turn)
        if change.contrast != 1 and change.contrast_last:
            pixels = (pixels * change.contrast).clamp(lowest, highest)
        if not plain.is_floating_point():
            info = torch.iinfo(plain.dtype)
            pixels = pixels.round().clamp(info.min, info.max)
        return {**sample, "image": pixels.to(plain.dtype).as_subclass(type(image))}


class DrawColourChange(nn.Module):
    """Draws what `PhotometricDistortion` would, for `distort_colours` to do to the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.distortion = PhotometricDistortion()

    def forward(self, sample: Sample) -> Sample:
        """Returns the sample with its `ColourChange` as a tensor (5,), under the key `"colour_changes"`."""
        return {**sample, COLOUR_CHANGES: torch.tensor(self.distortion.draw(), dtype=torch.float32)}


def distort_colours(images: Tensor, changes: Tensor) -> Tensor:
    """Does to a batch what `PhotometricDistortion` does to one image, with numbers drawn before.

    Nothing waits for the device. An image is what it would have been on the host, but for the last bit of float32.

    Args:
        images: (B, C, H, W), uint8 or any other type.
        changes: (B, 5): of each image what `PhotometricDistortion.draw` has drawn.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: For other shapes.

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


def scale_saturation(pixels: Tensor, factor: float | Tensor) -> Tensor:
    """Multiplies the HSV saturation of colours (..., 3, H, W) of at least 0 by `factor`, to at most 1.

    With V the largest channel of a pixel and m the smallest, its saturation is (V - m) / V. A channel c becomes
    V - k (V - c), where k is `factor` or, if less, what gives saturation 1. A tensor of factors is broadcast.
    """
    smallest, value = torch.aminmax(pixels, dim=-3, keepdim=True)
    largest_factor = value / (value - smallest)  # grey: infinite, or NaN for black, of which nothing changes
    largest_factor = largest_factor.nan_to_num(nan=torch.inf, posinf=torch.inf)
    used = torch.minimum(largest_factor, factor) if isinstance(factor, Tensor) else largest_factor.clamp(max=factor)
    return (value - (value - pixels) * used).clamp(min=0)


def turn_hue(pixels: Tensor, turn: float | Tensor) -> Tensor:
    """Turns the HSV hue of colours (..., 3, H, W) by `turn`, in full circles; saturation and value stay."""
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
    places = torch.arange(0, 6, 2, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
    distance = ((hue - places + 3).remainder(6) - 3).abs()
    return smallest + chroma * (2 - distance).clamp(0, 1)
