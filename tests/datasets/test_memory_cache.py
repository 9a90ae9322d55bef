from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from aucseg.datasets import DatasetCard, SampleError, SegmentationDataset, memory_cache
from tests.datasets.conftest import save_mask

WriteCard = Callable[..., DatasetCard]


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_kept_in_memory_are_those_of_the_files(workers: int, write_card: WriteCard, mini_root: Path) -> None:
    card = write_card()
    for index in range(4):  # unequal sizes, more than one buffer
        height = 5 + 3 * index
        pixels = np.random.default_rng(index).integers(0, 256, (height, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(mini_root / f"images/{index}.png")
        save_mask(np.full((height, 7), 7 + index % 3), mini_root / f"masks/{index}.png")
    plain, kept = SegmentationDataset(card, mini_root), SegmentationDataset(card, mini_root)
    assert kept.keep_in_memory(num_threads=2) > 0
    loaded = list(DataLoader(kept, batch_size=None, num_workers=workers))
    expected = list(plain)  # type: ignore[call-overload]
    for path in (mini_root / "images").iterdir():
        path.unlink()
    for found, wanted in zip(loaded, expected, strict=True):
        assert found["name"] == wanted["name"]
        for key in ("image", "mask"):
            assert torch.equal(found[key], wanted[key])
            assert found[key].dtype == wanted[key].dtype
            assert found[key].stride() == wanted[key].stride()
    kept[0]["image"].zero_()
    assert torch.equal(kept[0]["image"], expected[0]["image"])


def test_a_full_memory_is_told_and_bad_files_stay_what_they_are(
    write_card: WriteCard, mini_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mini_root / "images/1.png").write_bytes(b"no picture")
    dataset = SegmentationDataset(write_card(), mini_root)
    dataset.keep_in_memory()
    with pytest.raises(SampleError, match=r"1\.png"):
        dataset[1]
    skipping = SegmentationDataset(write_card(), mini_root, on_error="skip")
    skipping.keep_in_memory()
    assert skipping[1]["name"] == "images/2"
    assert skipping.num_skipped == 1
    monkeypatch.setattr(memory_cache, "free_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"0 of 4 samples .* leave data\.cache out"):
        dataset.keep_in_memory()


def test_masks_of_many_classes_are_kept_in_their_dtype(write_card: WriteCard, mini_root: Path) -> None:
    classes = "".join(f"  - {{name: c{i}, ids: [{i}]}}\n" for i in range(256))
    text = f"name: many\nignore_index: -1\nclasses:\n{classes}splits:\n"
    card = write_card(text + '  train: {images: "images/*.png", masks: "masks/{stem}.png"}\n')
    plain, kept = SegmentationDataset(card, mini_root), SegmentationDataset(card, mini_root)
    kept.keep_in_memory()
    assert kept[1]["mask"].dtype == torch.int64
    assert all(torch.equal(kept[i]["mask"], plain[i]["mask"]) for i in range(4))
