from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from aucseg.datasets import DatasetCard, SegmentationDataset, duplicates
from aucseg.datasets.card_layout import Layout
from aucseg.datasets.data_report import describe_absent_classes, describe_files
from aucseg.datasets.duplicates import find_duplicates
from aucseg.datasets.file_report import report_files
from aucseg.datasets.pairing import Pair
from aucseg.datasets.propose import propose_card
from aucseg.datasets.scan_cache import ScanCache
from tests.datasets.files import blocks, make, save_image, save_mask

CARD = DatasetCard.from_yaml("""name: t
classes: [{name: a}, {name: b}, {name: c}]
groups: {head: [a], middle: [b], tail: [c]}
splits:
  train: {images: 'images/train/*.jpg', masks: 'masks/train/{stem}.png'}
  val: {images: 'images/val/*.jpg', masks: 'masks/val/{stem}.png'}
""")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for start, split in ((0, "train"), (10, "val")):
        make(tmp_path, *((f"images/{split}/{i}.jpg", f"masks/{split}/{i}.png") for i in range(3)), start=start)
    return tmp_path


def test_every_file_has_its_place(root: Path) -> None:
    clean = report_files(CARD, root)
    assert (clean.problems(), clean.unused, clean.lines()) == ([], [], ["files: train 3 images, val 3 images"])
    save_image(root / "images/train/lost.jpeg", 30)
    save_image(root / "images/train/alone.jpg", 31)
    save_mask(root / "masks/val/orphan.png", blocks([0, 1]))
    save_image(root / "masks_color/train/0.png", 32)
    save_mask(root / "masks/train/0_instances.png", blocks([0, 1]))
    save_image(root / "extra/9.jpg", 33)
    (root / "images/val/Thumbs.db").write_bytes(b"")
    report = report_files(CARD, root)
    assert report.problems() == [
        "images/train/alone.jpg of train: masks/train/alone.png is missing",
        "images/train/lost.jpeg: in no pair",
        "masks/train/0_instances.png: in no pair",
        "masks/val/orphan.png: in no pair",
    ]
    assert report.unused == ["extra/9.jpg", "masks_color/train/0.png"]
    assert report.lines(["train"])[0] == "files: train 3 images, val 3 images (not used here)"
    # Only the folders that the card names, where the root may be large.
    assert report_files(CARD, root, whole_root=False).unused == []
    (lines,) = [describe_files(CARD, root, ["train", "val"])]
    assert "4 not as they should be (all of them: aucseg stats): images/train/alone.jpg of train" in lines[-1]


def test_lists_mean_what_they_name_alone(root: Path) -> None:
    (root / "some.txt").write_text("0\n2\n")
    card = DatasetCard.from_yaml(
        "name: t\nclasses: [{name: a}, {name: b}]\nsplits: {train: {list: some.txt, images: 'images/train/{stem}.jpg', "
        "masks: 'masks/train/{stem}.png'}}"
    )
    report = report_files(card, root)
    assert report.problems() == []
    assert len(report.unused) == 8


def test_splits_that_cannot_be_read_are_told(root: Path) -> None:
    lists = {
        name: (Layout("images/val/{stem}.jpg", "masks/val/{stem}.png", list=f"{name}.txt"),)
        for name in ("gone", "empty", "wrong")
    }
    card = replace(CARD, splits={**CARD.splits, **lists})
    (root / "empty.txt").write_text("\n")
    (root / "wrong.txt").write_text("../0\n")
    report = report_files(card, root)
    assert report.lines(["train"])[1] == "files: gone: nothing found, looked for the list gone.txt, which is not there"
    assert report.problems() == [
        f"split empty: {root}/empty.txt: the list of data set 't' holds no stem; is the file complete?",
        f"split wrong: {root}/wrong.txt:1: '../0' leads out of the root folder; a stem is a name below it",
    ]


def test_a_proposed_card_means_every_file(root: Path) -> None:
    from aucseg.datasets.propose import propose_card

    for i in range(3):
        (root / f"masks/val/{i}.png").unlink()
    save_image(root / "test/images/9.jpg", 40)
    save_image(root / "unlabeled/8.jpg", 41)
    card = propose_card(root)
    assert list(card.splits) == ["train"]
    report = report_files(card, root, is_proposed=True)
    assert report.unpaired == [f"images/val/{i}.jpg" for i in range(3)]
    assert report.unused == ["test/images/9.jpg", "unlabeled/8.jpg"]


def test_an_image_in_two_splits(root: Path) -> None:
    card = DatasetCard.from_yaml("""name: t
classes: [{name: a}, {name: b}]
splits:
  train: {images: 'images/*/*.jpg', masks: 'masks/{1}/{2}.png'}
  val: {images: 'images/val/*.jpg', masks: 'masks/val/{stem}.png'}
  trainval: {images: 'images/**/*.jpg', masks: 'masks/{1}/{2}.png'}
""")
    assert report_files(card, root).shared == [f"images/val/{i}.jpg is in split train and in val" for i in range(3)]


def pairs(root: Path) -> dict[str, list[Pair]]:
    return {split: SegmentationDataset(CARD, root, split).pairs for split in ("train", "val")}


def test_copies_in_two_splits_and_with_different_masks(root: Path) -> None:
    assert find_duplicates(root, pairs(root)) == []
    (root / "images/val/1.jpg").write_bytes((root / "images/train/2.jpg").read_bytes())
    (root / "images/train/1.jpg").write_bytes((root / "images/train/0.jpg").read_bytes())
    assert find_duplicates(root, pairs(root)) == [
        "the same image with different masks: images/train/0.jpg with masks/train/0.png, images/train/1.jpg with "
        "masks/train/1.png; keep the right one",
        "the same image in two splits: images/train/2.jpg (train), images/val/1.jpg (val); keep it in one",
    ]
    # The same image with the same mask is not a contradiction.
    (root / "masks/train/1.png").write_bytes((root / "masks/train/0.png").read_bytes())
    assert len(find_duplicates(root, pairs(root))) == 1


def test_files_of_one_size_that_differ_are_no_copies(root: Path) -> None:
    size = 100_000
    for i, split in enumerate(("train", "val")):
        data = bytearray(size)
        data[20_000] = i
        (root / f"images/{split}/0.jpg").write_bytes(data)
    assert find_duplicates(root, pairs(root)) == []


def test_the_same_pixels_in_another_format(root: Path) -> None:
    with Image.open(root / "images/train/1.jpg") as image:
        image.save(root / "images/val/1.png")
    found = {"train": pairs(root)["train"], "val": [Pair("images/val/1.png", "masks/val/1.png")]}
    assert find_duplicates(root, found) == [
        "the same image in two splits: images/train/1.jpg (train), images/val/1.png (val); keep it in one"
    ]
    save_image(root / "images/val/1.png", 77)
    assert find_duplicates(root, found) == []


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp"])
def test_an_image_saved_anew_without_loss_is_found_under_any_name(
    ending: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a photograph"
    with Image.open(root / "images/train/1.jpg") as image:
        image.convert("RGB").save(root / f"images/val/other.{ending}", lossless=True, exif=exif)
        image.convert("RGB").save(root / "images/train/again.png", compress_level=1)
    found = pairs(root)
    found["val"].append(Pair(f"images/val/other.{ending}", "masks/val/1.png"))
    message = (
        f"the same image in two splits: images/train/1.jpg (train), images/val/other.{ending} (val); keep it in one"
    )
    cache = ScanCache(tmp_path / "cache.sqlite")
    assert find_duplicates(root, found, CARD, cache=cache) == [message]
    # What is many is decoded where it is asked for.
    monkeypatch.setattr(duplicates, "_MAX_IMAGES", 6)
    assert find_duplicates(root, found, CARD) == []
    monkeypatch.setattr(duplicates, "read_card_image", lambda *_: pytest.fail("decoded again"))
    assert find_duplicates(root, found, CARD, decode=True, cache=cache) == [message]


def test_one_image_in_two_formats_with_masks_of_the_same_ids_is_no_contradiction(root: Path) -> None:
    with Image.open(root / "images/train/1.jpg") as image, Image.open(root / "masks/train/1.png") as mask:
        image.save(root / "images/train/again.png")
        mask.save(root / "masks/train/again.png", compress_level=0)
        found = {"train": [*pairs(root)["train"], Pair("images/train/again.png", "masks/train/again.png")]}
        assert find_duplicates(root, found, CARD) == []
        mask.putpixel((0, 0), 2 - mask.getpixel((0, 0)))  # type: ignore[operator]
        mask.save(root / "masks/train/again.png")
    assert "with different masks" in find_duplicates(root, found, CARD)[0]


def test_images_of_one_size_with_other_pixels_are_no_copies(root: Path) -> None:
    for place in ((0, 0), (31, 23)):
        with Image.open(root / "images/train/1.jpg") as image:
            pixels = image.convert("RGB")
        red, green, blue = pixels.getpixel(place)  # type: ignore[misc]
        pixels.putpixel(place, (red ^ 1, green, blue))
        pixels.save(root / "images/val/1.png")
        found = {"train": pairs(root)["train"], "val": [Pair("images/val/1.png", "masks/val/1.png")]}
        assert find_duplicates(root, found, CARD) == []


def test_what_cannot_be_read_is_like_nothing_else(root: Path) -> None:
    found = pairs(root)
    for split in ("train", "val"):
        os.unlink(root / f"images/{split}/0.jpg")
    assert find_duplicates(root, found) == []


def test_classes_in_no_validation_image_are_told(root: Path) -> None:
    assert describe_absent_classes(SegmentationDataset(CARD, root, "val")) == []
    for i in range(3):
        save_mask(root / f"masks/val/{i}.png", blocks([0, 1]))
    assert describe_absent_classes(SegmentationDataset(CARD, root, "val")) == [
        "in no validation image: c; their IoU will be NaN, or 0 where they are predicted all the same",
        "val/tail will be NaN, so nothing may wait for it: an EarlyStopping that monitors it stops at once",
    ]


SITES = DatasetCard.from_yaml("""name: t
classes: [{name: a}, {name: b}, {name: c}]
splits:
  train: {images: '*/images/*.jpg', masks: '{1}/masks/{stem}.png'}
""")


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    for start, site in ((0, "siteA"), (3, "siteB")):
        make(tmp_path, *((f"{site}/images/{i}.jpg", f"{site}/masks/{i}.png") for i in range(3)), start=start)
    return tmp_path


def test_a_link_in_a_circle_costs_itself_alone(sites: Path) -> None:
    (sites / "siteB/images/latest.jpg").symlink_to("latest.jpg")
    report = report_files(SITES, sites)
    assert len(report.splits["train"].pairs) == 6
    assert report.problems() == ["siteB/images/latest.jpg of train: siteB/masks/latest.png is missing"]


@pytest.mark.parametrize("link", ["latest", "other/images"])
def test_folders_that_links_lead_to_again_are_used_once(sites: Path, link: str) -> None:
    (sites / link).parent.mkdir(exist_ok=True)
    (sites / link).symlink_to(sites / "siteB" / ("images" if link.endswith("images") else ""))
    report = report_files(SITES, sites)
    assert [pair.image for pair in report.splits["train"].pairs] == [
        f"{site}/images/{i}.jpg" for site in ("siteA", "siteB") for i in range(3)
    ]
    again = link if link.endswith("images") else f"{link}/images"
    assert report.lines()[-1] == f"files: {again} is a link to siteB/images, whose files are used once"
    assert report.problems() == []


def test_a_split_that_links_make_of_another_is_told_where_no_card_names_it(tmp_path: Path) -> None:
    make(tmp_path, *((f"train/images/{i}.jpg", f"train/masks/{i}.png") for i in range(3)))
    (tmp_path / "val").mkdir()
    for folder in ("images", "masks"):
        (tmp_path / "val" / folder).symlink_to(tmp_path / "train" / folder)
    (tmp_path / "val" / "all").symlink_to(tmp_path)
    card = propose_card(tmp_path)
    assert list(card.splits) == ["train"]
    assert report_files(card, tmp_path, is_proposed=True).lines()[1:] == [
        "files: val/all is a link to ., whose files are used once",
        "files: val/images is a link to train/images, whose files are used once",
        "files: val/masks is a link to train/masks, whose files are used once",
    ]
    splits = {name: (Layout(f"{name}/images/*.jpg", f"{name}/masks/{{stem}}.png"),) for name in ("train", "val")}
    report = report_files(replace(card, splits=splits), tmp_path)
    assert {split: len(files.pairs) for split, files in report.splits.items()} == {"train": 3, "val": 3}
    assert report.lines()[1:] == ["files: val/all is a link to ., whose files are used once"]


def test_a_folder_that_cannot_be_listed_is_a_problem(sites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if str(path).endswith("siteB"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = report_files(SITES, sites)
    assert len(report.splits["train"].pairs) == 3
    assert report.problems() == ["siteB: not a readable folder: Permission denied"]


def test_copies_that_may_be_held_out(sites: Path) -> None:
    for kind, ending in (("images", "jpg"), ("masks", "png")):
        (sites / f"siteA/{kind}/copy.{ending}").write_bytes((sites / f"siteA/{kind}/0.{ending}").read_bytes())
    splits = {"train": report_files(SITES, sites).splits["train"].pairs}
    assert find_duplicates(sites, splits) == []
    assert find_duplicates(sites, splits, held_out=True) == [
        "the same image 2 times: siteA/images/0.jpg, siteA/images/copy.jpg; keep one, or a copy may be validated on"
    ]
