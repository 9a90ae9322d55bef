from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aucseg.datasets import DatasetCard, SegmentationDataset
from aucseg.datasets.propose import propose_card
from tests.datasets.trees import Mask, save_gray, save_voc_palette

RNG = np.random.default_rng(0)


def add(root: Path, image: str, mask: str, ids: list[int]) -> Mask:
    raw = RNG.choice(ids, (10, 12))
    raw.reshape(-1)[: len(ids)] = ids
    for file in (image, mask):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(root / image)
    save_gray(raw, root / mask)
    return raw


def check(root: Path, card: DatasetCard, path: Path) -> None:
    """The proposed card, written and read back, reads every sample of every split."""
    path.write_text(card.to_yaml())
    for split in card.splits:
        dataset = SegmentationDataset(DatasetCard.load(path), root, split)
        for i in range(len(dataset)):
            assert int(dataset[i]["mask"].max()) < 256


# Folders of images and masks as people have them.
LAYOUTS = [
    ("images/{split}/{i}.jpg", "masks/{split}/{i}.png", "images/train/*.jpg", "masks/train/{1}.png"),
    ("{split}/img/{i}.png", "{split}/ann_labels/{i}.png", "train/img/*.png", "train/ann_labels/{1}.png"),
    ("{split}/{i}.png", "{split}annot/{i}.png", "train/*.png", "trainannot/{1}.png"),
    ("{split}/a/{i}_img.png", "{split}/b/{i}_mask.png", "train/a/*_img.png", "train/b/{1}_mask.png"),
    (
        "JPEGImages/{split}_{i}.jpg",
        "SegmentationClass/{split}_{i}.png",
        "JPEGImages/*.jpg",
        "SegmentationClass/{1}.png",
    ),
]


@pytest.mark.parametrize(("image", "mask", "images", "masks"), LAYOUTS, ids=[layout[0] for layout in LAYOUTS])
def test_layouts(image: str, mask: str, images: str, masks: str, tmp_path: Path) -> None:
    root = tmp_path / "my data"
    for split in ("train", "val"):
        for i in range(8, 12):
            add(root, image.format(split=split, i=i), mask.format(split=split, i=i), [0, 3, 7, 255])
    card = propose_card(root)
    assert card.name == "my_data"
    (layout,) = card.splits["train"]
    assert (layout.images, layout.masks) == (images, masks)
    assert ("val" in card.splits) == ("{split}/" in image)
    assert card.class_names == ("class_0", "class_3", "class_7")
    assert (card.raw_ids, card.ignore_ids) == (((0,), (3,), (7,)), (255,))
    check(root, card, tmp_path / "card.yaml")


def test_places_within_a_split_become_a_wildcard(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for place in ("north", "south", "west"):
        add(root, f"train/{place}/images/1.png", f"train/{place}/masks/1.png", [0, 1, 2])
    card = propose_card(root)
    assert card.splits["train"][0].images == "train/*/images/*.png"
    assert len(SegmentationDataset(card, root)) == 3
    check(root, card, tmp_path / "card.yaml")


def test_binary_masks_of_0_and_255_are_two_classes(tmp_path: Path) -> None:
    add(tmp_path / "d", "images/1.png", "masks/1.png", [0, 255])
    card = propose_card(tmp_path / "d")
    assert (card.raw_ids, card.ignore_ids) == (((0,), (255,)), ())


def test_palette_16_bit_and_colour_masks(tmp_path: Path) -> None:
    raw = add(tmp_path / "p", "images/1.png", "masks/1.png", [0, 1, 2, 255])
    save_voc_palette(raw, tmp_path / "p/masks/1.png")
    card = propose_card(tmp_path / "p")
    assert (card.mask_encoding, card.num_classes) == ("palette", 3)
    check(tmp_path / "p", card, tmp_path / "p.yaml")

    add(tmp_path / "w", "images/1.png", "masks/1.png", [0])
    Image.fromarray((np.arange(120).reshape(10, 12) * 5).astype(np.uint16)).save(tmp_path / "w/masks/1.png")
    card = propose_card(tmp_path / "w")
    assert (card.mask_encoding, card.num_classes) == ("gray16", 120)
    check(tmp_path / "w", card, tmp_path / "w.yaml")

    add(tmp_path / "c", "images/1.png", "masks/1.png", [0])
    colors = np.array([(255, 0, 0), (0, 0, 255)], np.uint8)[RNG.integers(0, 2, (10, 12))]
    Image.fromarray(colors).save(tmp_path / "c/masks/1.png")
    card = propose_card(tmp_path / "c")
    assert (card.mask_encoding, card.class_names) == ("rgb", ("class_0_0_255", "class_255_0_0"))
    check(tmp_path / "c", card, tmp_path / "c.yaml")


def test_what_cannot_be_proposed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such folder, and no data set card of this name"):
        propose_card(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found no images and masks"):
        propose_card(tmp_path / "empty")
    add(tmp_path / "x", "images/a.png", "masks/b.png", [0])
    with pytest.raises(ValueError, match="the images in images and the masks in masks have no names in common"):
        propose_card(tmp_path / "x")
    add(tmp_path / "soft", "images/1.png", "masks/1.png", [0])
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for folder in ("images", "masks"):
        Image.fromarray(noise).save(tmp_path / f"soft/{folder}/1.png")
    with pytest.raises(ValueError, match="more than 1024 different values in the masks: these are no ids"):
        propose_card(tmp_path / "soft")
