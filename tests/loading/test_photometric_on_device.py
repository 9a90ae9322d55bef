"""Colours of a batch on its device are what PhotometricDistortion makes of each image on the host."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from aucseg.loading.photometric import ColourChange, DrawColourChange, PhotometricDistortion, distort_colours
from aucseg.loading.transforms import training_transform
from aucseg.training.datamodule import SegmentationDataModule
from tests.small_runs import make_trainer
from tests.training.tiny_tasks import make_task


def images_of(kind: str) -> torch.Tensor:
    """64 images, some grey, one black."""
    generator = torch.Generator().manual_seed(0)
    channels = 5 if kind == "multispectral" else 3
    images = torch.randint(256, (64, channels, 9, 11), generator=generator, dtype=torch.uint8)
    images[:8] = images[:8, :1]
    images[8] = 0
    if kind == "unit float":
        return images / 255
    if kind == "signed":
        return images / 255 - (torch.arange(64) % 2 / 3).view(-1, 1, 1, 1)  # every second image has negative values
    return images.to(torch.int16) * 16 if kind == "int16" else images


@pytest.mark.parametrize("kind", ["uint8", "multispectral", "unit float", "signed", "int16"])
def test_batch_equals_the_images_one_by_one(kind: str) -> None:
    images = images_of(kind)
    torch.manual_seed(0)
    expected = torch.stack([PhotometricDistortion()({"image": image})["image"] for image in images])
    torch.manual_seed(0)
    changes = torch.stack([DrawColourChange()({})["colour_changes"] for _ in images])
    found = distort_colours(images, changes)
    assert found.dtype == images.dtype
    assert not torch.equal(found, images)
    if kind in ("unit float", "signed"):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    else:  # what lies in the middle of two integers may be rounded to either
        difference = (found.double() - expected.double()).abs()
        assert difference.max() <= 1
        assert (difference > 0).double().mean() < 1e-3


def test_neutral_changes_leave_images_alone() -> None:
    images = images_of("uint8")
    assert torch.equal(distort_colours(images, torch.tensor([ColourChange()] * 64)), images)
    assert distort_colours(images[:0], torch.zeros(0, 5)).shape == (0, 3, 9, 11)
    with pytest.raises(ValueError, match=r"got \(64, 3, 9, 11\) and \(3, 5\)"):
        distort_colours(images, torch.zeros(3, 5))
    with pytest.raises(ValueError, match="photometric must be True, False or 'device', got 'gpu'"):
        training_transform((8, 8), photometric="gpu")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["uint8", "signed"])
def test_a_gpu_gives_what_the_cpu_gives_and_is_not_waited_for(kind: str) -> None:
    images = images_of(kind)
    changes = torch.stack([DrawColourChange()({})["colour_changes"] for _ in images])
    there = images.cuda(), changes.cuda()
    distort_colours(*there)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = distort_colours(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    difference = (found.cpu().double() - distort_colours(images, changes).double()).abs()
    assert difference.max() <= (1 if kind == "uint8" else 1e-5)
    assert (difference > 1e-5).double().mean() < 1e-3


def batches(card: Path, photometric: Any, num_workers: int = 0) -> list[dict[str, Any]]:
    options: dict[str, Any] = {"batch_size": 4, "crop_size": (32, 40), "num_workers": num_workers}
    module = SegmentationDataModule(str(card), str(card.parent), photometric=photometric, **options)
    return [module.on_after_batch_transfer(batch, 0) for batch in islice(module.train_dataloader(), 3)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_wherever_colours_are_distorted(tiny_card: Path, num_workers: int) -> None:
    for device, host in zip(batches(tiny_card, "device", num_workers), batches(tiny_card, True), strict=True):
        assert device.keys() == host.keys()
        assert device["name"] == host["name"]
        assert torch.equal(device["mask"], host["mask"])
        difference = (device["image"].short() - host["image"].short()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 1e-3


def test_a_trained_batch_is_distorted(tiny_card: Path, tmp_path: Path) -> None:
    seen = []
    ways: list[Any] = ["device", True, False]
    for photometric in ways:
        data = SegmentationDataModule(
            str(tiny_card), str(tiny_card.parent), batch_size=4, crop_size=(32, 40), num_workers=0,
            photometric=photometric,
        )  # fmt: skip
        task = make_task(tiny_card)
        make_trainer(tmp_path, 1).fit(task, data)
        assert task.last_input is not None
        seen.append(task.last_input[0].short())
    device, host, plain = seen
    assert (device - host).abs().max() <= 1
    assert (host - plain).abs().float().mean() > 5
