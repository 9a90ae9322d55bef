from __future__ import annotations

import io
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from aucseg.datasets import DatasetCard, SampleError, SegmentationDataset
from aucseg.datasets.propose import propose_card
from tests.datasets.files import blocks, make, save_palette
from tests.datasets.trees import Mask, save_gray, save_voc_palette

RNG = np.random.default_rng(0)


def add(root: Path, image: str, mask: str, ids: list[int]) -> Mask:
    raw = RNG.choice(ids, (10, 12))
    raw.reshape(-1)[: len(ids)] = ids
    for file in (image, mask):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(root / image)
    if mask.endswith(".npy"):
        np.save(root / mask, raw.astype(np.uint8))
    else:
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
    (
        "images/{split}/Washington/{i}.jpg",
        "masks/{split}/Washington/{i}.png",
        "images/train/Washington/*.jpg",
        "masks/train/Washington/{1}.png",
    ),
    (
        "images/{split}/with_mask/{i}.jpg",
        "labels/{split}/with_mask/{i}.png",
        "images/train/with_mask/*.jpg",
        "labels/train/with_mask/{1}.png",
    ),
    (
        "{split}_set/Images/img_{i}.jpg",
        "{split}_set/GT/mask_{i}.png",
        "train_set/Images/img_*.jpg",
        "train_set/GT/mask_{1}.png",
    ),
    ("data/{split}/{i}.png", "data/{split}/{i}_mask.png", "data/train/*.png", "data/train/{1}_mask.png"),
    ("{split}/{i}/image.png", "{split}/{i}/mask.png", "train/*/image.png", "train/{1}/mask.png"),
    (
        "{split}2017/crack_images/{i}.tif",
        "{split}2017/crack_masks/{i}.npy",
        "train2017/crack_images/*.tif",
        "train2017/crack_masks/{1}.npy",
    ),
    (
        "leftImg8bit/{split}/bonn/b_{i}_leftImg8bit.png",
        "gtFine/{split}/bonn/b_{i}_gtFine_labelIds.png",
        "leftImg8bit/train/bonn/*_leftImg8bit.png",
        "gtFine/train/bonn/{1}_gtFine_labelIds.png",
    ),
    (
        "a [1] {{x}}/{split}/é #1% 'q'/images/{i} (2).png",
        "a [1] {{x}}/{split}/é #1% 'q'/masks/{i} (2).png",
        "a [1] {x}/train/é #1% 'q'/images/*.png",
        "a [1] {{x}}/train/é #1% 'q'/masks/{1}.png",
    ),
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
            name = mask.format(split=split, i=i)
            add(root, image.format(split=split, i=i), name, [0, 3, 7, 255])
    card = propose_card(root)
    assert card.name == "my_data"
    (layout,) = card.splits["train"]
    assert (layout.images, layout.masks) == (images, masks)
    assert ("val" in card.splits) == ("{split}_{i}" not in image)
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
    with pytest.raises(ValueError, match="more than 1024 different values in the masks: these are not ids"):
        propose_card(tmp_path / "soft")


def images_of(card: DatasetCard, root: Path, split: str = "train") -> list[str]:
    return [pair.image for pair in SegmentationDataset(card, root, split).pairs]


def test_every_ending_is_taken(tmp_path: Path) -> None:
    pairs = [("1.jpg", "1.png"), ("2.JPG", "2.PNG"), ("3.jpeg", "3.png"), ("4.png", "4.tif"), ("5.TIF", "5.bmp")]
    make(tmp_path, *((f"images/{image}", f"masks/{mask}") for image, mask in pairs))
    card = propose_card(tmp_path)
    assert [(layout.images, layout.masks) for layout in card.splits["train"]] == [("images/*.*", "masks/{1}.*")]
    assert len(images_of(card, tmp_path)) == 5
    check(tmp_path, card, tmp_path / "card.yaml")


@pytest.mark.parametrize(
    "names",
    [
        [("rgb_0.png", "rgb_0.png"), ("image_0.png", "image_0.png"), ("0.png", "0.png")],
        [("a.jpg", "a.jpg.png"), ("b.jpg", "b.jpg.png")],
        [("a.jpg", "a.jpg.png"), ("a.png", "a.png.png")],
        [("image.jpg", "image.jpg.png"), ("rgb.jpg", "rgb.png")],
        [("rgb_0.jpg", "rgb_0.png"), ("image_0.jpg", "image_0.jpg.png"), ("rgb_1.jpg", "image_1.png")],
    ],
)
@pytest.mark.parametrize("folders", [("images", "masks"), ("x", "y")])
def test_equal_names_go_before_equal_pictures(
    names: list[tuple[str, str]], folders: tuple[str, str], tmp_path: Path
) -> None:
    pairs = [(f"{folders[0]}/{image}", f"{folders[1]}/{mask}") for image, mask in names]
    make(tmp_path, *pairs)
    card = propose_card(tmp_path)
    found = SegmentationDataset(card, tmp_path)
    assert sorted((pair.image, pair.mask) for pair in found.pairs) == sorted(pairs)


def test_a_stray_mask_of_an_equal_name_is_not_taken(tmp_path: Path) -> None:
    make(tmp_path, *((f"images/{i}.jpg", f"masks/{i}_mask.png") for i in range(3)))
    make(tmp_path, ("unused/0.jpg", "masks/0.png"))
    (tmp_path / "unused/0.jpg").unlink()
    (layout,) = propose_card(tmp_path).splits["train"]
    assert (layout.images, layout.masks) == ("images/*.jpg", "masks/{1}_mask.png")


def test_names_in_other_cases_and_normal_forms(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Straßé") for form in ("NFC", "NFD"))
    make(tmp_path, (f"images/{composed}1.jpg", f"masks/{decomposed}1.PNG"), ("images/IMG_2.jpg", "masks/img_2.png"))
    card = propose_card(tmp_path)
    assert len(images_of(card, tmp_path)) == 2


def test_a_split_in_two_ways_of_naming_is_their_union(tmp_path: Path) -> None:
    make(tmp_path, ("a/images/1.jpg", "a/masks/1.png"), ("b/2.png", "b/2_mask.png"), ("b/3.png", "b/3_gt.png"))
    card = propose_card(tmp_path)
    assert images_of(card, tmp_path) == ["a/images/1.jpg", "b/2.png", "b/3.png"]
    check(tmp_path, card, tmp_path / "card.yaml")


def test_a_pattern_for_several_places_leaves_other_splits_alone(tmp_path: Path) -> None:
    places = ("bonn", "köln", "ulm")
    make(tmp_path, *((f"{place}/images/{i}.jpg", f"{place}/masks/{i}.png") for place in places for i in range(2)))
    make(tmp_path, ("val/images/9.jpg", "val/masks/9.png"), start=10)
    card = propose_card(tmp_path)
    assert len(images_of(card, tmp_path)) == 6
    assert images_of(card, tmp_path, "val") == ["val/images/9.jpg"]


def test_masks_of_another_place_are_not_taken(tmp_path: Path) -> None:
    make(tmp_path, *((f"images/{i}/frame.jpg", f"masks/{i}/frame.png") for i in range(4)))
    (tmp_path / "masks/2/frame.png").unlink()
    card = propose_card(tmp_path)
    dataset = SegmentationDataset(card, tmp_path, on_error="skip")
    assert [(pair.image, pair.mask) for pair in dataset.pairs] == [
        (f"images/{i}/frame.jpg", f"masks/{i}/frame.png") for i in (0, 1, 3)
    ]


def test_split_names(tmp_path: Path) -> None:
    for folder in ("training", "validation", "testing"):
        make(tmp_path / "a", (f"{folder}/images/{folder}.jpg", f"{folder}/masks/{folder}.png"))
    assert list(propose_card(tmp_path / "a").splits) == ["train", "val", "test"]
    for folder in ("train", "valid", "valencia", "train_station"):
        make(tmp_path / "b", (f"images/{folder}/{folder}.jpg", f"masks/{folder}/{folder}.png"))
    card = propose_card(tmp_path / "b")
    assert images_of(card, tmp_path / "b", "val") == ["images/valid/valid.jpg"]
    assert len(images_of(card, tmp_path / "b")) == 3


COLORS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)


def test_palettes_that_differ_become_classes_by_colour(tmp_path: Path) -> None:
    make(tmp_path, *((f"images/{i}.png", f"masks/{i}.png") for i in range(3)))
    for i, order in enumerate(((0, 1, 2), (2, 0, 1), (1, 2, 0))):
        mask = blocks([0, 1, 2], seed=i)
        save_palette(tmp_path / f"masks/{i}.png", np.argsort(order)[mask], [tuple(COLORS[c].tolist()) for c in order])
    card = propose_card(tmp_path)
    assert (card.mask_encoding, card.class_names) == ("rgb", ("class_0_0_0", "class_0_255_0", "class_255_0_0"))
    dataset = SegmentationDataset(card, tmp_path)
    for i in range(3):
        shown = np.array(card.palette, np.uint8)[dataset[i]["mask"].numpy()]
        np.testing.assert_array_equal(shown, COLORS[blocks([0, 1, 2], seed=i)])


def test_palettes_that_differ_without_telling_what_counts_are_refused(tmp_path: Path) -> None:
    make(tmp_path, *((f"images/{i}.png", f"masks/{i}.png") for i in range(2)))
    for i in range(2):
        save_palette(tmp_path / f"masks/{i}.png", blocks([0, 1], seed=i), [(i, 0, 0), (9, i, 0), (9, 9, 9)])
    with pytest.raises(ValueError, match=r"index 0 of the palette is \(1, 0, 0\), but \(0, 0, 0\) in masks/0\.png"):
        propose_card(tmp_path)


def test_the_colours_of_one_palette_are_those_of_the_classes(tmp_path: Path) -> None:
    make(tmp_path, *((f"images/{i}.png", f"masks/{i}.png") for i in range(2)))
    for i in range(2):
        save_palette(tmp_path / f"masks/{i}.png", blocks([0, 2], seed=i), [(1, 2, 3), (0, 0, 0), (4, 5, 6)])
    card = propose_card(tmp_path)
    assert (card.palette, card.check_palette) == (((1, 2, 3), (4, 5, 6)), True)
    save_palette(tmp_path / "masks/1.png", blocks([0, 2]), [(4, 5, 6), (0, 0, 0), (1, 2, 3)])
    with pytest.raises(SampleError, match="reordered the palette"):
        SegmentationDataset(card, tmp_path)[1]


@pytest.mark.parametrize("how", ["bilinear", "smaller", "jpeg", "jpeg colours", "soft brush"])
def test_masks_with_soft_edges_are_refused(how: str, tmp_path: Path) -> None:
    make(tmp_path, *((f"images/{i}.png", f"masks/{i}.png") for i in range(4)))
    for i in range(4):
        mask = Image.fromarray((blocks([0, 1, 2], seed=i, size=(120, 160)) * 120).astype(np.uint8))
        mask.paste(240, (40, 40, 90, 70))
        if how == "bilinear":
            mask = mask.resize((600, 400), Image.Resampling.BILINEAR)
        elif how == "smaller":
            mask = mask.resize((100, 70), Image.Resampling.LANCZOS)
        elif how == "soft brush":
            mask = mask.filter(ImageFilter.GaussianBlur(1))
        else:
            buffer = io.BytesIO()
            (mask.convert("RGB") if "colours" in how else mask).save(buffer, format="JPEG", quality=85)
            mask = Image.open(buffer)
        mask.save(tmp_path / f"masks/{i}.png")
    with pytest.raises(ValueError, match=r"fill areas .*: the masks were resized with interpolation|these are not ids"):
        propose_card(tmp_path)


def test_many_classes_are_no_soft_edges(tmp_path: Path) -> None:
    for i in range(4):
        mask = blocks(list(range(0, 60, 2)), seed=i, size=(120, 160))
        # Poles: thin, but few.
        mask[10:100, 20 + i] = 61
        mask[50 + i, 10:100] = 63
        make(tmp_path, (f"images/{i}.png", f"masks/{i}.png"))
        save_gray(mask, tmp_path / f"masks/{i}.png")
    assert propose_card(tmp_path).num_classes == 32


def test_masks_without_anything_to_tell_apart(tmp_path: Path) -> None:
    make(tmp_path / "one", ("images/1.png", "masks/1.png"), ids=(3,))
    with pytest.raises(ValueError, match="all masks hold the id 3 alone"):
        propose_card(tmp_path / "one")
    make(tmp_path / "bits", ("images/1.png", "masks/1.png"), ("images/2.png", "masks/2.png"))
    Image.fromarray(blocks([0, 1]) == 1).save(tmp_path / "bits/masks/1.png")
    with pytest.raises(ValueError, match=r"a mask of 1 bit a pixel, .* of 8"):
        propose_card(tmp_path / "bits")
    make(tmp_path / "lossy", ("images/1.png", "masks/1.png"))
    Image.fromarray(blocks([0, 1]).astype(np.uint8)).save(tmp_path / "lossy/masks/1.png", format="JPEG")
    with pytest.raises(ValueError, match=r"not one mask can be read as gray: .* JPEG file, whose compression"):
        propose_card(tmp_path / "lossy")
