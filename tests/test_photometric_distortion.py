"""PhotometricDistortion against its description, computed pixel by pixel with the standard library's colorsys."""

import colorsys

import pytest
import torch
from torch import Tensor

from aucseg.transforms import PhotometricDistortion, scale_saturation, turn_hue

Pixel = tuple[float, ...]


def distorted(image: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    result: Tensor = PhotometricDistortion()({"image": image})["image"]
    return result


def hsv_oracle(pixel: Pixel, saturation: float = 1.0, turn: float = 0.0) -> Pixel:
    hue, old, value = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb((hue + turn) % 1, min(1.0, old * saturation), value)


def colours(number: int, seed: int = 0) -> Tensor:
    """(3, 1, number) float64 colours in 0..1: any, and the special ones (greys, black, two equal channels)."""
    values = torch.rand(3, 1, number, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values[:, 0, 0] = 0
    values[:, 0, 1:4] = values[0, 0, 1:4].clone()
    values[1, 0, 4:8] = values[0, 0, 4:8]
    values[2, 0, 8:12] = values[1, 0, 8:12]
    return values


def pixels_of(image: Tensor) -> list[Pixel]:
    return [tuple(pixel) for pixel in image.flatten(1).T.tolist()]


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.5])
def test_saturation_is_that_of_colorsys(factor: float) -> None:
    image = colours(200)
    for pixel, result in zip(pixels_of(image), pixels_of(scale_saturation(image, factor)), strict=True):
        assert result == pytest.approx(hsv_oracle(pixel, saturation=factor), abs=1e-12)


@pytest.mark.parametrize("turn", [-0.1, -0.03, 0.0, 0.1, 0.5])
def test_hue_is_that_of_colorsys(turn: float) -> None:
    image = colours(200)
    for pixel, result in zip(pixels_of(image), pixels_of(turn_hue(image, turn)), strict=True):
        assert result == pytest.approx(hsv_oracle(pixel, turn=turn), abs=1e-12)


Draws = tuple[list[bool], bool, float, float, float, float]


def described(image: Tensor, draws: Draws, white: float) -> Tensor:
    """The described steps on a (3, H, W) image, pixel by pixel, without rounding."""
    (brightness, contrast, saturation, hue), contrast_last, shift, alpha, factor, turn = draws

    def clip(pixel: Pixel) -> Pixel:
        return tuple(min(max(value, 0.0), white) for value in pixel)

    results = []
    for pixel in pixels_of(image):
        if brightness:
            pixel = clip(tuple(value + shift * white for value in pixel))
        if contrast and not contrast_last:
            pixel = clip(tuple(value * alpha for value in pixel))
        if saturation:
            pixel = hsv_oracle(pixel, saturation=factor)
        if hue:
            pixel = hsv_oracle(pixel, turn=turn)
        if contrast and contrast_last:
            pixel = clip(tuple(value * alpha for value in pixel))
        results.append(pixel)
    return torch.tensor(results, dtype=torch.float64).T.reshape(image.shape)


def drawn(seed: int) -> Draws:
    """What PhotometricDistortion draws after torch.manual_seed(seed)."""
    torch.manual_seed(seed)
    *applied, contrast_last = [value < 0.5 for value in torch.rand(5, dtype=torch.float64).tolist()]
    shift, contrast, saturation, turn = torch.rand(4, dtype=torch.float64).tolist()
    return (
        applied,
        contrast_last,
        (2 * shift - 1) * 32 / 255,
        0.5 + contrast,
        0.5 + saturation,
        (2 * turn - 1) * 36 / 360,
    )


@pytest.mark.parametrize("seed", range(60))
def test_steps_and_their_order_are_those_described(seed: int) -> None:
    image = (colours(64, seed) * 255).round()
    expected = described(image, drawn(seed), 255.0)
    result = distorted(image.to(torch.uint8), seed)
    assert result.dtype == torch.uint8
    # float32 in place of float64 may round a value in the middle to the other side.
    assert (result.double() - expected).abs().max() <= 0.5 + 1e-3
