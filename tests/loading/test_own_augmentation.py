from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from aucseg.loading.own_augmentation import OwnAugmentation


def turn(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "image": sample["image"].flip(-1), "mask": sample["mask"].flip(-1)}


def forget(sample: dict[str, Any]) -> Tensor:
    image: Tensor = sample["image"]
    return image


def a_sample(label: int = 1, dtype: torch.dtype = torch.uint8) -> dict[str, Any]:
    """The image holds where each pixel comes from: its row, its column, and its label."""
    rows, columns = torch.meshgrid(torch.arange(1, 41), torch.arange(1, 49), indexing="ij")
    mask = (rows > 20).to(dtype) * label
    image = torch.stack([rows, columns, (rows > 20) * 100 + 10]).to(torch.uint8)
    return {"image": tv_tensors.Image(image), "mask": tv_tensors.Mask(mask), "name": "a"}


ROTATIONS = (
    {"class_path": "RandomRotation", "init_args": {"degrees": [30, 30]}},
    {"class_path": "RandomApply", "init_args": {"transforms": [
        {"class_path": "torchvision.transforms.v2.RandomRotation", "init_args": {"degrees": [30, 30]}}], "p": 1.0}},
    {"class_path": "albumentations.Rotate", "init_args": {"limit": [30, 30], "border_mode": 0, "p": 1.0}},
    {"class_path": "albumentations.OneOf", "init_args": {"transforms": [
        {"class_path": "albumentations.Rotate", "init_args": {"limit": [30, 30], "border_mode": 0, "p": 1.0}}],
        "p": 1.0}},
)  # fmt: skip


@pytest.mark.parametrize("entry", ROTATIONS)
@pytest.mark.parametrize(("label", "dtype"), [(1, torch.uint8), (300, torch.int64)])
def test_masks_turn_with_their_images_and_empty_places_are_ignored(entry: Any, label: int, dtype: torch.dtype) -> None:
    sample = a_sample(label, dtype)
    torch.manual_seed(0)
    result = OwnAugmentation([entry], ignore_index=255)(sample)
    image, mask = result["image"], result["mask"]
    assert isinstance(image, tv_tensors.Image)
    assert isinstance(mask, tv_tensors.Mask)
    assert mask.dtype == dtype
    assert set(mask.unique().tolist()) == {0, label, 255}
    # Nobody has filled a corner with class 0, and no label has left its pixels but by a step of the nearest one.
    filled = image[0] == 0
    assert filled.any()
    assert (mask[filled] == 255).float().mean() > 0.95
    inside = (image[2] == 10) | (image[2] == 110)  # not at a border, where colours mix
    expected = (image[2] == 110).to(dtype) * label
    assert (mask == expected)[inside].float().mean() > 0.98


def test_images_are_filled_with_what_the_data_module_fills() -> None:
    result = OwnAugmentation(ROTATIONS[:1], ignore_index=255, fill=(7.0, 8.0, 9.0))(a_sample())
    assert result["image"][:, 0, 0].tolist() == [7, 8, 9]


def test_draws_follow_from_torchs_generator() -> None:
    entries = [
        {"class_path": "RandomRotation", "init_args": {"degrees": 45}},
        {"class_path": "albumentations.GridDistortion", "init_args": {"p": 0.9}},
        f"{__name__}:turn",
    ]
    augmentation = OwnAugmentation(entries, ignore_index=255)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        image: Tensor = augmentation(a_sample())["image"]
        return image

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"class_path": "CenterCrop", "init_args": {"size": 8}}, ValueError, "CenterCrop changes the size of a train"),
        ({"class_path": "albumentations.Resize", "init_args": {"height": 8, "width": 8}}, ValueError, "Resize changes"),
        (
            {"class_path": "albumentations.ToFloat"},
            ValueError,
            "must leave the image torch.uint8, as it came, not torch.f",
        ),
        (f"{__name__}:forget", ValueError, "forget must return a sample with image and mask"),
        (7, TypeError, "must be an import path, or class_path with all options in init_args, got 7"),
        ("torch.nn.Idntity", ImportError, "did you mean Identity"),
    ],
)
def test_what_is_no_augmentation_is_refused(entry: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OwnAugmentation([entry], ignore_index=255)(a_sample())
