"""The training pipeline by what it does to pixels. The distortion has test_photometric, the cap test_class_cap."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torch import Tensor

from aucseg.datasets.dataset import Sample
from aucseg.loading.crops import ClassAwareCrop
from aucseg.loading.transforms import (
    RandomScale,
    UnwrapSample,
    WrapSample,
    evaluation_transform,
    training_transform,
)


def coded_sample(height: int, width: int, num_classes: int = 5, seed: int = 0) -> Sample:
    """A sample whose image encodes its labels: every channel is 40 times the label."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(num_classes, (-(-height // 8), -(-width // 8)), generator=generator, dtype=torch.uint8)
    mask = coarse.repeat_interleave(8, 0).repeat_interleave(8, 1)[:height, :width].contiguous()
    return {"image": (mask * 40).expand(3, height, width).contiguous(), "mask": mask, "name": "coded"}


def placed_sample(height: int, width: int) -> Sample:
    """A sample in which image and mask tell each pixel's place: (row, column, both) and 256 row + column."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return {"image": torch.stack([row, column, 256 * row + column]).int(), "mask": 256 * row + column, "name": "placed"}


def is_uniform(counts: np.ndarray) -> bool:
    return bool(stats.chisquare(counts.flatten()).pvalue > 1e-3)


# Scale


def test_scale_is_uniform_in_its_range() -> None:
    scale = RandomScale((0.5, 2.0))
    sample = WrapSample()({"image": torch.zeros(1, 4000, 1), "mask": torch.zeros(4000, 1, dtype=torch.uint8)})
    torch.manual_seed(0)
    factors = [scale(sample)["mask"].shape[0] / 4000 for _ in range(400)]
    assert min(factors) >= 0.5
    assert max(factors) <= 2
    assert stats.kstest(factors, stats.uniform(0.5, 1.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("size", "base_size", "expected"),
    [
        ((60, 80), None, (30, 40)),
        ((60, 80), (40, 40), (15, 20)),  # the long edge binds
        ((60, 80), (800, 30), (15, 20)),  # the short edge binds
        ((80, 60), (30, 800), (20, 15)),  # in either order, upright too
        ((3, 1), None, (2, 1)),  # no edge vanishes
    ],
)
def test_base_size_is_fitted_before_the_factor(
    size: tuple[int, int], base_size: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    sample = {"image": torch.zeros(2, *size), "mask": torch.zeros(size, dtype=torch.uint8)}
    scaled = RandomScale((0.5, 0.5), base_size)(WrapSample()(sample))
    assert scaled["image"].shape == (2, *expected)
    assert scaled["mask"].shape == expected


@pytest.mark.parametrize("factor", [0.37, 0.5, 0.75, 1.3, 2.0])
def test_scale_is_that_of_pillow(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, 51, 71), dtype=torch.uint8, generator=generator)
    mask = torch.randint(256, (51, 71), dtype=torch.uint8, generator=generator)  # odd: no centre between two pixels
    scaled = UnwrapSample()(RandomScale((factor, factor))(WrapSample()({"image": image, "mask": mask})))
    height, width = round(51 * factor), round(71 * factor)
    smooth = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(scaled["image"].permute(1, 2, 0).int(), np.asarray(smooth).astype(int), atol=1)
    nearest = Image.fromarray(mask.numpy()).resize((width, height), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(scaled["mask"], np.asarray(nearest))


def test_scaled_mask_lies_where_the_scaled_image_lies() -> None:
    row, column = torch.meshgrid(torch.arange(90.0), torch.arange(110.0), indexing="ij")
    mask = ((row - 40) ** 2 + (column - 63) ** 2 < 30**2).to(torch.uint8)
    sample = WrapSample()({"image": mask[None].double(), "mask": mask})
    offsets = []
    for factor in torch.linspace(0.45, 2.1, 60).tolist():
        scaled = UnwrapSample()(RandomScale((factor, factor))(sample))
        centres = []
        for plane in (scaled["image"][0], scaled["mask"].double()):
            places = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in plane.shape), indexing="ij")
            centres.append(torch.stack([(plane * place).sum() / plane.sum() for place in places]))
        offsets.append(centres[0] - centres[1])
    # In output pixels: none on average; each is the rounding of the nearest pixel.
    assert torch.stack(offsets).mean(0).abs().max() < 0.02
    assert torch.stack(offsets).abs().max() < 0.5


def test_scaled_crop_keeps_colours_and_labels_together() -> None:
    torch.manual_seed(0)
    sample = training_transform((64, 64), scale=(2.0, 2.0), photometric=False)(coded_sample(64, 64))
    # Away from label borders the bilinear image still encodes the nearest label.
    agree = sample["image"][0] == sample["mask"] * 40
    assert agree.float().mean() > 0.7


# Crop and padding


@pytest.mark.parametrize("max_class_share", [1.0, 0.75])
def test_every_crop_is_as_likely_and_moves_image_and_mask_to_the_pixel(max_class_share: float) -> None:
    sample = WrapSample()(placed_sample(9, 12))
    crop = ClassAwareCrop((4, 7), max_class_share=max_class_share)
    torch.manual_seed(0)
    counts = np.zeros((9 - 4 + 1, 12 - 7 + 1), dtype=int)
    for _ in range(2000):
        cropped = UnwrapSample()(crop(sample))
        top, left = divmod(int(cropped["mask"][0, 0]), 256)
        counts[top, left] += 1
        assert torch.equal(cropped["image"], sample["image"].as_subclass(Tensor)[:, top : top + 4, left : left + 7])
        assert torch.equal(cropped["mask"], cropped["image"][2])
    assert is_uniform(counts)


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    crop=st.tuples(st.integers(1, 48), st.integers(1, 48)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_image_and_mask_move_together(height: int, width: int, crop: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    transform = training_transform(crop, scale=(1.0, 1.0), photometric=False, fill=200)
    sample = transform(coded_sample(height, width, seed=seed))
    assert sample["image"].shape == (3, *crop)
    assert sample["mask"].shape == crop
    labelled = sample["mask"] != 255
    assert torch.equal(sample["image"][0][labelled], sample["mask"][labelled] * 40)
    assert (sample["image"][:, ~labelled] == 200).all()
    assert int(labelled.sum()) == min(height, crop[0]) * min(width, crop[1])


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.uint8, [124, 116, 104]), (torch.float32, [123.675, 116.28, 103.53])]
)
def test_padding_is_at_the_right_and_the_bottom(dtype: torch.dtype, expected: list[float]) -> None:
    sample = WrapSample()({"image": torch.ones(3, 2, 3, dtype=dtype), "mask": torch.ones(2, 3, dtype=torch.int64)})
    padded = UnwrapSample()(ClassAwareCrop((4, 5), ignore_index=-100, fill=(123.675, 116.28, 103.53))(sample))
    inside = torch.zeros(4, 5, dtype=torch.bool)
    inside[:2, :3] = True
    assert (padded["mask"][inside] == 1).all()
    assert (padded["mask"][~inside] == -100).all()
    assert (padded["image"][:, inside] == 1).all()
    assert torch.equal(padded["image"][:, ~inside], torch.tensor(expected).to(dtype)[:, None].expand(3, 14))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32, torch.float16, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_images_of_any_channels_and_dtype_pass_through_the_pipeline(dtype: torch.dtype, channels: int) -> None:
    image = (200 * torch.rand(channels, 20, 30, dtype=torch.float64)).to(dtype)
    mask = torch.randint(4, (20, 30), dtype=torch.int16)
    sample = training_transform((24, 24), fill=7)({"image": image, "mask": mask, "name": "a", "extra": torch.ones(2)})
    assert sample["image"].shape == (channels, 24, 24)
    assert sample["image"].dtype == dtype
    assert sample["mask"].dtype == torch.int16
    assert type(sample["image"]) is type(sample["mask"]) is Tensor
    assert sample["name"] == "a"
    assert torch.equal(sample["extra"], torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32, torch.int64])
def test_masks_keep_their_dtype_and_labels(dtype: torch.dtype) -> None:
    mask = torch.randint(4, (20, 30)).to(dtype)
    sample = training_transform((24, 24))({"image": torch.zeros(3, 20, 30), "mask": mask})
    assert sample["mask"].dtype == dtype
    assert set(sample["mask"].int().unique().tolist()) <= {0, 1, 2, 3, 255}


# Flip and the whole


def test_flip_mirrors_image_and_mask_in_the_given_share() -> None:
    before = placed_sample(5, 8)
    for probability in (0.0, 0.5, 1.0):
        transform = training_transform((5, 8), scale=(1, 1), photometric=False, flip=probability)
        torch.manual_seed(0)
        flips = 0
        for _ in range(200):
            sample = transform(before)
            flipped = bool(sample["mask"][0, 0] != 0)
            flips += flipped
            for key in ("image", "mask"):
                assert torch.equal(sample[key], before[key].flip(-1) if flipped else before[key])
        assert abs(flips - 200 * probability) <= 4 * (200 * probability * (1 - probability)) ** 0.5


def test_steps_come_in_their_order() -> None:
    # Scale before crop: what is scaled to the crop's size is not padded. Crop before flip: padding at the left.
    sample = coded_sample(16, 16)
    scaled = training_transform((32, 32), scale=(2, 2), photometric=False)(sample)
    assert not (scaled["mask"] == 255).any()
    flipped = training_transform((16, 20), scale=(1, 1), photometric=False, flip=1.0)(sample)
    assert (flipped["mask"][:, :4] == 255).all()
    assert torch.equal(flipped["mask"][:, 4:], sample["mask"].flip(-1))
    # Distortion last: padding is distorted with the image, so that all pixels of one value stay of one value.
    even = {"image": torch.full((3, 8, 8), 100, dtype=torch.uint8), "mask": torch.zeros(8, 8, dtype=torch.uint8)}
    torch.manual_seed(0)
    values = [training_transform((16, 16), scale=(1, 1), fill=100)(even)["image"].unique() for _ in range(20)]
    assert all(len(value) == 1 for value in values)
    assert len({int(value) for value in values}) > 5


def test_same_seed_same_sample_and_other_seed_other_sample() -> None:
    transform = training_transform((32, 32))
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(transform(coded_sample(64, 80))["image"])
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    samples = []
    for default in (torch.float32, dtype):
        torch.set_default_dtype(default)
        try:
            torch.manual_seed(3)
            samples.append(training_transform((32, 48), fill=(1, 2, 3))(coded_sample(64, 80)))
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(samples[0]["image"], samples[1]["image"])
    assert torch.equal(samples[0]["mask"], samples[1]["mask"])


def test_evaluation_keeps_the_mask_at_full_size_and_draws_nothing() -> None:
    sample = coded_sample(60, 100)
    torch.manual_seed(0)
    resized = evaluation_transform(base_size=(50, 30))(sample)
    assert resized["image"].shape == (3, 30, 50)
    assert torch.equal(resized["mask"], sample["mask"])
    assert torch.equal(evaluation_transform()(sample)["image"], sample["image"])
    drawn = torch.rand(())
    torch.manual_seed(0)
    assert drawn == torch.rand(())


# Wrong input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (2.0, 0.5)}, "scale"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"flip": 1.5}, "flip"),
        ({"max_class_share": 0.0}, "max_class_share"),
        ({"rare_classes": [255]}, "rare_classes"),
        ({"rare_classes": [-1]}, "rare_classes"),
        ({"rare_probability": 2.0}, "probability"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_transform((8, 8), **options)  # type: ignore[arg-type]


def test_wrong_sizes_and_tries_are_named() -> None:
    with pytest.raises(ValueError, match="crop size"):
        training_transform((0, 8))
    with pytest.raises(ValueError, match="num_tries"):
        ClassAwareCrop((8, 8), num_tries=0)


@pytest.mark.parametrize(
    ("image", "mask", "error", "message"),
    [
        (torch.zeros(3, 8, 8), torch.zeros(8, 9).long(), ValueError, r"'a'.*same size.*\(3, 8, 8\) and \(8, 9\)"),
        (torch.zeros(8, 8), torch.zeros(8, 8).long(), ValueError, r"must be \(C, H, W\)"),
        (torch.zeros(3, 8, 8), torch.zeros(8, 8), TypeError, "float32"),
        (torch.zeros(3, 8, 8).bool(), torch.zeros(8, 8).long(), TypeError, "bool"),
        # Padding that the mask or the image cannot hold
        (torch.zeros(3, 8, 8), torch.zeros(8, 8).bool(), ValueError, "bool.*ignore label 255"),
        (torch.zeros(3, 8, 8), torch.zeros(8, 8).to(torch.int8), ValueError, "int8.*ignore label 255"),
        (torch.zeros(2, 8, 8), torch.zeros(8, 8).long(), ValueError, "fill has 3 values.*2 channels"),
        (torch.zeros(3, 8, 8).to(torch.int8), torch.zeros(8, 8).long(), ValueError, "int8.*fill"),
    ],
)
def test_unfit_samples_are_named(image: Tensor, mask: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        training_transform((20, 20), scale=(1, 1), fill=(200, 100, 50))({"image": image, "mask": mask, "name": "a"})
