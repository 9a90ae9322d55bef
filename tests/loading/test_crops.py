"""Crops: that they find rare classes, that the cap on one class's share holds, and that it takes no class away."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from aucseg.loading.crops import ClassAwareCrop
from aucseg.loading.transforms import UnwrapSample, WrapSample

IGNORE = 255


def crops(mask: Tensor, crop: ClassAwareCrop, number: int = 1, seed: int = 0) -> list[Tensor]:
    """Masks of crops; crop i of a seed begins with the same draws whatever the cap."""
    sample = WrapSample()({"image": torch.zeros(1, *mask.shape, dtype=torch.uint8), "mask": mask})
    result = []
    for index in range(number):
        torch.manual_seed(1000 * seed + index)
        result.append(UnwrapSample()(crop(sample))["mask"])
    return result


def shares(mask: Tensor) -> dict[int, int]:
    """Pixels of each class, counted in plain numpy."""
    ids, counts = np.unique(mask.numpy()[mask.numpy() != IGNORE], return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def test_the_cap_holds_where_a_crop_exists() -> None:
    mask = torch.zeros(64, 256, dtype=torch.uint8)
    mask[:, 224:] = 1
    capped = crops(mask, ClassAwareCrop((64, 64), max_class_share=0.75, num_tries=1000), 20)
    assert all(0.25 <= float(crop.double().mean()) <= 0.75 for crop in capped)
    uncapped = crops(mask, ClassAwareCrop((64, 64), max_class_share=1.0), 20)
    assert min(float(crop.double().mean()) for crop in uncapped) == 0


def test_ignored_pixels_do_not_count_for_the_cap() -> None:
    # Without them class 0 holds 64 of 96 pixels in this crop, the only one.
    mask = torch.full((16, 32), IGNORE, dtype=torch.uint8)
    mask[:, :4], mask[:, 4:6] = 0, 1
    assert set(shares(crops(mask, ClassAwareCrop((16, 32), max_class_share=0.7))[0])) == {0, 1}
    # A crop without a label is beyond the cap: here a redraw finds the stripes.
    found = crops(mask, ClassAwareCrop((16, 8), max_class_share=0.7, num_tries=500), 20)
    assert all(len(shares(crop)) == 2 for crop in found)


def test_a_class_of_another_number_is_not_taken_for_the_ignore_label() -> None:
    # 156 is -100 in 8 bits.
    mask = torch.full((8, 8), 156, dtype=torch.uint8)
    mask[0] = 3
    crop = ClassAwareCrop((4, 4), max_class_share=0.9, ignore_index=-100, num_tries=200)
    assert all((found == 3).any() for found in crops(mask, crop, 10))


@given(seed=st.integers(0, 10_000), share=st.floats(0.3, 1.0), rare=st.lists(st.integers(0, 4), max_size=2))
@settings(max_examples=150, deadline=None)
def test_a_redraw_keeps_every_class_and_every_pixel_of_rare_ones(seed: int, share: float, rare: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(24, 32, dtype=torch.uint8)
    for _ in range(6):
        y, x = int(torch.randint(24, (), generator=generator)), int(torch.randint(32, (), generator=generator))
        height, width = torch.randint(1, 16, (2,), generator=generator).tolist()
        mask[y : y + height, x : x + width] = int(torch.tensor([1, 2, 3, 4, IGNORE])[y % 5])
    first = crops(mask, ClassAwareCrop((10, 12), max_class_share=1.0), seed=seed)[0]
    found = crops(mask, ClassAwareCrop((10, 12), max_class_share=share, rare_classes=rare), seed=seed)[0]
    before, after = shares(first), shares(found)

    def within(counts: dict[int, int]) -> bool:
        common = max((count for class_id, count in counts.items() if class_id not in rare), default=0)
        return bool(counts) and common <= share * sum(counts.values())

    assert set(before) <= set(after)
    assert all(after.get(class_id, 0) >= before.get(class_id, 0) for class_id in rare)
    if within(before) or not within(after):
        assert torch.equal(first, found)


def test_the_cap_does_not_take_small_objects_before_a_wide_background_away() -> None:
    """A scratch far from everything else: only crops beyond the cap hold it."""
    mask = torch.zeros(96, 96, dtype=torch.uint8)
    mask[:30] = 1
    mask[80:82, 40:60] = 2
    holding = {}
    for share in (1.0, 0.75):
        found = crops(mask, ClassAwareCrop((32, 32), max_class_share=share), 400)
        holding[share] = sum(2 in shares(crop) for crop in found)
    assert holding[0.75] >= holding[1.0] > 50


def test_a_rare_class_may_fill_a_crop() -> None:
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[:, 16:] = 1
    pixels = {}
    for share, rare in ((1.0, ()), (0.75, ()), (0.75, (1,))):
        crop = ClassAwareCrop((32, 32), max_class_share=share, rare_classes=rare)
        pixels[share, rare] = sum(int((found == 1).sum()) for found in crops(mask, crop, 200))
    assert pixels[0.75, ()] < 0.95 * pixels[1.0, ()]
    assert pixels[0.75, (1,)] >= pixels[1.0, ()]


def test_a_redraw_never_has_fewer_pixels_of_a_rare_class() -> None:
    mask = torch.zeros(48, 48, dtype=torch.uint8)
    mask[:, :10] = 1
    mask[:, 18:21] = 2
    first = crops(mask, ClassAwareCrop((16, 16), max_class_share=1.0), 150)
    fewer = {}
    for rare in ((), (2,)):
        found = crops(mask, ClassAwareCrop((16, 16), max_class_share=0.6, rare_classes=rare), 150)
        pixels = [[int((crop == 2).sum()) for crop in part] for part in (first, found)]
        fewer[rare] = sum(after < before for before, after in zip(*pixels, strict=True))
    assert fewer[()] > 10
    assert fewer[2,] == 0


def test_crops_around_a_rare_pixel() -> None:
    """In the given share of draws; the class first, then the pixel, then any place that holds it."""
    mask = torch.zeros(40, 40, dtype=torch.uint8)
    mask[5, 20] = 2  # one pixel of class 2, 200 of class 3
    mask[30:35] = 3
    always = crops(mask, ClassAwareCrop((6, 6), rare_classes=[2, 3, 9], rare_probability=1.0), 1500)
    with_2 = [crop for crop in always if (crop == 2).any()]
    assert all((crop >= 2).any() for crop in always)
    assert abs(len(with_2) - 750) < 4 * 1500**0.5 / 2
    places = np.zeros((6, 6), dtype=int)
    for crop in with_2:
        row, column = (crop == 2).nonzero()[0].tolist()
        places[row, column] += 1
    assert stats.chisquare(places.flatten()).pvalue > 1e-3
    half = crops(mask, ClassAwareCrop((6, 6), max_class_share=1.0, rare_classes=[2], rare_probability=0.5), 600)
    # 36 of the 35 x 35 other crops hold the pixel as well.
    expected = 0.5 + 0.5 * 36 / 35**2
    assert sum(bool((crop == 2).any()) for crop in half) / 600 == pytest.approx(expected, abs=4 * 0.5 / 600**0.5)
    nowhere = crops(mask, ClassAwareCrop((6, 6), max_class_share=1.0, rare_classes=[9], rare_probability=1.0), 50)
    assert len({tuple(crop.flatten().tolist()) for crop in nowhere}) > 5


def sample(height: int = 40, width: int = 50) -> dict[str, object]:
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[3, width - 2] = 5
    mask[height - 1, 0] = 6
    image = torch.arange(height * width).remainder(251).to(torch.uint8).reshape(1, height, width).repeat(3, 1, 1)
    image[0] = mask
    return {"image": image, "mask": mask, "name": "x"}


def test_crops_hold_the_class_at_every_place() -> None:
    crop = ClassAwareCrop((16, 16), rare_classes=[5, 6], rare_probability=1.0)
    seen = set()
    for draw in range(200):
        result = crop({**sample(), "draw": draw})
        mask = result["mask"]
        assert mask.shape == (16, 16)
        # Image and mask are cut at the same place.
        assert torch.equal(result["image"][0], mask)
        classes = set(mask.unique().tolist()) - {0}
        assert len(classes) == 1
        (class_id,) = classes
        seen.add((class_id, *(mask == class_id).nonzero()[0].tolist()))
    # Class 5 may stand in 4 rows (it is near the top) and 2 columns, at which it is seen; class 6 sits in the corner.
    assert seen == {(5, row, column) for row in range(4) for column in (14, 15)} | {(6, 15, 0)}


def test_crops_without_the_class_are_anywhere() -> None:
    crop = ClassAwareCrop((1, 1), rare_classes=[5], rare_probability=0.0)
    hits = sum(int(crop({**sample(4, 4), "draw": draw})["mask"]) == 5 for draw in range(1600))
    assert hits == pytest.approx(100, abs=40)
    nowhere = ClassAwareCrop((4, 4), rare_classes=[9], rare_probability=1.0)
    assert nowhere({**sample(), "draw": 0})["mask"].shape == (4, 4)


def test_small_images_are_padded() -> None:
    result = ClassAwareCrop((64, 64), rare_classes=[5], rare_probability=1.0)({**sample(), "draw": 1})
    assert result["image"].shape == (3, 64, 64)
    assert int((result["mask"] == 255).sum()) == 64 * 64 - 40 * 50
    assert int(result["image"][:, 40:].sum()) == 0
    assert int((result["mask"] == 5).sum()) == 1


def test_crops_depend_on_seed_and_draw_alone() -> None:
    crop = ClassAwareCrop((8, 8), rare_classes=[], seed=1)
    first = [crop({**sample(), "draw": draw})["image"] for draw in range(20)]
    torch.manual_seed(99)
    again = [crop({**sample(), "draw": draw})["image"] for draw in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = ClassAwareCrop((8, 8), rare_classes=[], seed=2)
    assert any(not torch.equal(a, other({**sample(), "draw": d})["image"]) for d, a in enumerate(first))
    torch.manual_seed(7)
    one = crop(sample())["image"]
    torch.manual_seed(7)
    assert torch.equal(one, crop(sample())["image"])


def test_crop_refuses() -> None:
    for arguments, message in (
        ({"size": (0, 4)}, "crop size must be"),
        ({"size": (4,)}, "crop size must be"),
        ({"rare_probability": 1.5}, "probability of a class-aware crop must be in"),
        ({"rare_classes": [255]}, "not negative nor the ignore label"),
    ):
        with pytest.raises(ValueError, match=message):
            ClassAwareCrop(**({"size": (4, 4), "rare_classes": [1]} | arguments))


def test_padding_never_becomes_a_class() -> None:
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    small = {"image": torch.zeros(3, 4, 4, dtype=torch.uint8), "mask": mask, "name": "a"}
    crop = ClassAwareCrop((8, 8), rare_classes=[], ignore_index=-100)
    with pytest.raises(ValueError, match=r"uint8.*ignore label -100.*int64"):  # in 8 bits it would be class 156
        crop(small)
    padded = crop({**small, "mask": mask.long()})["mask"]
    assert (padded == -100).sum() == 64 - 16
