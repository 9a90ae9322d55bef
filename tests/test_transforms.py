import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aucseg.transforms import (
    RandomCropWithClassCap,
    Sample,
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


def test_scaled_crop_keeps_colours_and_labels_together() -> None:
    torch.manual_seed(0)
    sample = training_transform((64, 64), scale=(2.0, 2.0), photometric=False)(coded_sample(64, 64))
    # Away from label borders the bilinear image still encodes the nearest label.
    agree = sample["image"][0] == sample["mask"] * 40
    assert agree.float().mean() > 0.7


def test_same_seed_same_sample_and_other_seed_other_sample() -> None:
    transform = training_transform((32, 32))
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(transform(coded_sample(64, 80))["image"])
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_crop_respects_the_cap_where_a_crop_exists() -> None:
    mask = torch.zeros(64, 256, dtype=torch.uint8)
    mask[:, 224:] = 1
    sample = {"image": torch.zeros(3, 64, 256, dtype=torch.uint8), "mask": mask}
    crop = RandomCropWithClassCap((64, 64), max_class_share=0.75, num_tries=1000)
    for seed in range(5):
        torch.manual_seed(seed)
        share = crop(WrapSample()(sample))["mask"].float().mean()
        assert 0.25 <= share <= 0.75
    torch.manual_seed(0)
    uncapped = [RandomCropWithClassCap((64, 64), 1.0)(WrapSample()(sample))["mask"].float().mean() for _ in range(20)]
    assert min(uncapped) == 0


def test_ignored_pixels_do_not_count_for_the_cap() -> None:
    mask = torch.full((16, 16), 255, dtype=torch.uint8)
    mask[:, :4], mask[:, 4:6] = 0, 1
    sample = WrapSample()({"image": torch.zeros(3, 16, 16, dtype=torch.uint8), "mask": mask})
    cropped = RandomCropWithClassCap((16, 16), max_class_share=0.7)(sample)
    assert torch.equal(UnwrapSample()(cropped)["mask"], mask)


def test_evaluation_keeps_the_mask_at_full_size() -> None:
    sample = coded_sample(60, 100)
    resized = evaluation_transform(base_size=(50, 30))(sample)
    assert resized["image"].shape == (3, 30, 50)
    assert torch.equal(resized["mask"], sample["mask"])
    assert torch.equal(evaluation_transform()(sample)["image"], sample["image"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (2.0, 0.5)}, "scale"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"flip": 1.5}, "flip"),
        ({"max_class_share": 0.0}, "max_class_share"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_transform((8, 8), **options)  # type: ignore[arg-type]


def test_wrong_crop_size_is_named() -> None:
    with pytest.raises(ValueError, match="crop size"):
        training_transform((0, 8))
