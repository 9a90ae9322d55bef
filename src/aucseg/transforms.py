"""Training and evaluation transforms on torchvision's v2 API.

A sample is a dict ``{"image": uint8 (C, H, W), "mask": uint8 or int64 (H, W), "name": str}``; every transform takes one
and returns one. Images stay uint8: the memory bank pastes and the task normalizes on the device, so that a loader sends
a quarter of the bytes of float images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

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
            window = labels[top : top + crop_height, left : left + crop_width].flatten()
            counts = torch.bincount(window[window != self.ignore_index].long())
            # One class alone cannot be capped: a crop of one class is as good as another try's.
            if counts.numel() and int(counts.max()) <= self.max_class_share * int(counts.sum()):
                break
        return {
            **sample,
            "image": tvf.crop(image, top, left, crop_height, crop_width),
            "mask": tvf.crop(mask, top, left, crop_height, crop_width),
        }


class ColourChange(NamedTuple):
    """What `PhotometricDistortion` draws for one image: the neutral values are those here.

    Attributes:
        shift: added brightness, in units of white.
        contrast: factor of the values.
        saturation: factor of the saturation.
        turn: of the hue, in full circles.
        contrast_last: whether contrast comes after saturation and hue.
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

    def draw(self) -> ColourChange:
        """Draws the changes of one image, from torch's global generator."""
        # As many numbers for every image, so that what is drawn next does not depend on it.
        *applied, contrast_last = (torch.rand(5, dtype=torch.float64) < 0.5).tolist()
        drawn = torch.rand(4, dtype=torch.float64)
        shift = float(2 * drawn[0] - 1) * self.max_shift
        low, high = self.factors
        contrast, saturation = (low + drawn[1:3] * (high - low)).tolist()
        turn = float(2 * drawn[3] - 1) * self.max_turn
        brighter, contrasted, saturated, turned = applied
        return ColourChange(
            shift if brighter else 0.0,
            contrast if contrasted else 1.0,
            saturation if saturated else 1.0,
            turn if turned else 0.0,
            contrast_last,
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
        return {**sample, "image": tv_tensors.wrap(pixels.to(plain.dtype), like=image)}


class DrawColourChange(nn.Module):
    """Draws what `PhotometricDistortion` would; `aucseg.device_colours.distort_colours` does it to the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.distortion = PhotometricDistortion()

    def forward(self, sample: Sample) -> Sample:
        """Returns the sample with ``"colour_changes"``, a `ColourChange` as a tensor (5,)."""
        return {**sample, "colour_changes": torch.tensor(self.distortion.draw(), dtype=torch.float32)}


def scale_saturation(pixels: Tensor, factor: float | Tensor) -> Tensor:
    """Multiplies the HSV saturation of colours (..., 3, H, W) of at least 0 by ``factor``, to at most 1.

    With V the largest channel of a pixel and m the smallest, its saturation is (V - m) / V. A channel c becomes
    V - k (V - c), where k is ``factor`` or, if less, what gives saturation 1. A tensor of factors is broadcast.
    """
    smallest, value = torch.aminmax(pixels, dim=-3, keepdim=True)
    largest_factor = value / (value - smallest)  # grey: infinite, or NaN for black, of which nothing changes
    largest_factor = largest_factor.nan_to_num(nan=torch.inf, posinf=torch.inf)
    used = torch.minimum(largest_factor, factor) if isinstance(factor, Tensor) else largest_factor.clamp(max=factor)
    return (value - (value - pixels) * used).clamp(min=0)


def turn_hue(pixels: Tensor, turn: float | Tensor) -> Tensor:
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
            draws the changes alone, see `DrawColourChange`.
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
    if photometric not in (True, False, "device"):
        raise ValueError(f"photometric must be true, false or 'device', not {photometric!r}")
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
