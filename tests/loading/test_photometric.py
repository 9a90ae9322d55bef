"""PhotometricDistortion against its description, computed pixel by pixel with the standard library's colorsys."""

import colorsys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision import tv_tensors

from aucseg.loading.photometric import PhotometricDistortion, scale_saturation, turn_hue

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


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("seed", range(12))
def test_other_numbers_of_channels_get_brightness_and_contrast_alone(channels: int, seed: int) -> None:
    image = torch.randint(256, (channels, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    (brightness, contrast, _, _), _, shift, alpha, _, _ = drawn(seed)
    expected = image.double()
    if brightness:
        expected = (expected + 255 * shift).clamp(0, 255)
    if contrast:
        expected = (expected * alpha).clamp(0, 255)
    assert (distorted(image, seed).double() - expected).abs().max() <= 0.5 + 1e-3


def recovered(seed: int) -> tuple[float, float, float, float]:
    """Shift, contrast, saturation factor and turn of a draw, from what it does to two greys, a colour and white.

    Nothing is clipped here: a float image has no upper end, and the values stay above the largest shift down.
    """
    colour = (0.6, 0.5, 0.4)
    image = torch.tensor([(0.4,) * 3, (0.8,) * 3, colour, (1.0,) * 3], dtype=torch.float64).T.reshape(3, 1, 4)
    dark, light, result, _ = pixels_of(distorted(image, seed))
    contrast = (light[0] - dark[0]) / 0.4
    shift = dark[0] / contrast - 0.4
    hue, saturation, _ = colorsys.rgb_to_hsv(*result)
    turn = (hue - colorsys.rgb_to_hsv(*colour)[0] + 0.5) % 1 - 0.5
    return shift, contrast, saturation / (0.2 / (0.6 + shift)), turn


def test_probabilities_and_ranges_are_those_described() -> None:
    number = 1000
    draws = torch.tensor([recovered(seed) for seed in range(number)], dtype=torch.float64)
    neutral = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    lowest = torch.tensor([-32 / 255, 0.5, 0.5, -0.1], dtype=torch.float64)
    highest = torch.tensor([32 / 255, 1.5, 1.5, 0.1], dtype=torch.float64)
    applied = (draws - neutral).abs() > 1e-9
    # Each step in half of the draws, independently of the others: within four standard deviations.
    assert (applied.double().mean(0) - 0.5).abs().max() < 4 * 0.5 / number**0.5
    together = torch.corrcoef(applied.double().T) - torch.eye(4, dtype=torch.float64)
    assert together.abs().max() < 4 / number**0.5
    for step in range(4):
        values = draws[applied[:, step], step]
        assert lowest[step] - 1e-9 <= values.min()
        assert values.max() <= highest[step] + 1e-9
        low, high = float(lowest[step]), float(highest[step])
        assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_contrast_comes_first_or_last_and_both_are_tried_above() -> None:
    first, last = (
        {seed for seed in range(60) if drawn(seed)[0] == [True] * 4 and drawn(seed)[1] is contrast_last}
        for contrast_last in (False, True)
    )
    assert first
    assert last


def test_channels_keep_their_places() -> None:
    # Orange, hue 19 degrees: turned by 36 degrees it is still between magenta and yellow, where red is the largest.
    orange = torch.tensor([200, 90, 40], dtype=torch.uint8).view(3, 1, 1)
    for seed in range(300):
        red, green, blue = distorted(orange, seed).flatten().tolist()
        assert red >= max(green, blue)


@given(
    seed=st.integers(0, 10_000), unit=st.sampled_from([1 / 255, 1.0, 10_000 / 255]), channels=st.sampled_from([1, 3, 5])
)
@settings(deadline=None, max_examples=60)
def test_a_floating_image_gets_the_same_distortion_in_any_unit(seed: int, unit: float, channels: int) -> None:
    image = 255 * torch.rand(channels, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        distorted(image * unit, seed), distorted(image, seed) * unit, rtol=1e-9, atol=1e-9 * unit
    )


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [
        (torch.uint8, 255),
        (torch.int16, 4095),
        (torch.uint16, 65535),
        (torch.int32, 4095),
        (torch.float16, 1),
        (torch.bfloat16, 255),
        (torch.float32, 1),
        (torch.float64, 255),
    ],
)
def test_dtype_type_and_range_are_kept(dtype: torch.dtype, largest: int) -> None:
    values = largest * torch.rand(3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[:, 0, 0] = largest
    before = values.to(dtype)
    image = tv_tensors.Image(before.clone())
    exact = torch.finfo(dtype).eps if dtype.is_floating_point else 0.5 / largest
    for seed in range(20):
        result = distorted(image, seed)
        assert isinstance(result, tv_tensors.Image)
        assert result.dtype == dtype
        assert result.shape == image.shape
        plain = result.as_subclass(Tensor).double()
        assert plain.min() >= 0
        assert plain.max() <= (largest if dtype == torch.uint8 else largest * (1 + 32 / 255) * 1.5 * (1 + exact))
        assert torch.equal(image.as_subclass(Tensor), before)
        # Like the distortion in float64, but for the rounding of the dtype and, in integers, the clipping at its end.
        if dtype not in (torch.uint8, torch.uint16):
            wide = distorted(before.double(), seed)
            assert (plain - wide).abs().max() <= 8 * exact * largest


def test_values_below_zero_are_no_colours_and_stay() -> None:
    image = torch.tensor([-20.0, -5.0, -1.0]).view(3, 1, 1)  # decibels, say
    for seed in range(30):
        (brightness, contrast, _, _), _, shift, alpha, _, _ = drawn(seed)
        expected = image + 20 * shift * brightness
        expected = (expected.clamp(min=-20) * (alpha if contrast else 1)).clamp(min=-20)
        torch.testing.assert_close(distorted(image, seed), expected)


def test_what_is_drawn_next_does_not_depend_on_the_image() -> None:
    after = set()
    for image in (torch.zeros(3, 0, 0), torch.rand(3, 2, 2), torch.rand(5, 9, 9)):
        for seed in (0, 1):
            distorted(image, seed)
            after.add((seed, float(torch.rand(()))))
    assert len(after) == 2


def test_everything_but_the_image_is_left_alone() -> None:
    mask = torch.randint(5, (4, 4), dtype=torch.uint8)
    sample = {"image": torch.rand(3, 4, 4), "mask": mask, "name": "a", "draw": 3}
    result = PhotometricDistortion()(sample)
    assert result["mask"] is mask
    assert {key: result[key] for key in ("name", "draw")} == {"name": "a", "draw": 3}
