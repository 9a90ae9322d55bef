from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from aucseg.datasets import DatasetCard, Sample, SampleError, SegmentationDataset
from tests.datasets.conftest import MINI, save_mask
from tests.datasets.trees import Tree, save_voc_palette, trees

WriteCard = Callable[..., DatasetCard]


@pytest.mark.parametrize("tree", trees(), ids=lambda tree: tree.card)
def test_every_shipped_card_reads_its_real_layout(tree: Tree, tmp_path: Path) -> None:
    expected = tree.make(tmp_path)
    dataset = SegmentationDataset(tree.card, tmp_path, tree.split)
    assert len(dataset) == 1
    sample = dataset[0]
    assert sample["name"] == tree.image.rsplit(".", 1)[0]
    assert sample["image"].dtype == torch.uint8
    assert sample["image"].shape == (3, *expected.shape)
    assert sample["mask"].dtype == torch.uint8
    np.testing.assert_array_equal(sample["mask"].numpy(), expected)
    with Image.open(tmp_path / tree.image) as image:
        np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), np.asarray(image))


def test_cityscapes_train_ids_are_taken_where_only_they_are_there(tmp_path: Path) -> None:
    tree = trees()[0]
    train_ids = tree.make(tmp_path)
    (tmp_path / tree.mask).unlink()
    save_mask(train_ids, tmp_path / tree.mask.replace("labelIds", "labelTrainIds"))
    sample = SegmentationDataset("cityscapes", tmp_path)[0]
    np.testing.assert_array_equal(sample["mask"].numpy(), train_ids)


def test_ade20k_reduced_already_is_refused_with_the_reason(tmp_path: Path) -> None:
    tree = trees()[1]
    reduced = tree.make(tmp_path)
    save_mask(reduced, tmp_path / tree.mask)
    with pytest.raises(SampleError, match=r"ADE_train_00000001\.png.* 255 \(\d+ pixels\).*reduced already"):
        SegmentationDataset("ade20k", tmp_path)[0]


def test_loveda_pairs_across_folders_and_has_a_test_split_without_masks(tmp_path: Path) -> None:
    for tree in trees():
        if tree.card == "loveda":
            for place in ("Urban", "Rural"):
                Tree(
                    "loveda", "train", tree.image.replace("Rural", place), tree.mask.replace("Rural", place), tree.table
                ).make(tmp_path, seed=len(place))
            Tree("loveda", "test", "Test/Urban/images_png/9.png", "unused.png", tree.table).make(tmp_path)
    dataset = SegmentationDataset("loveda", tmp_path, "train")
    assert [pair.mask for pair in dataset.pairs] == ["Train/Rural/masks_png/0.png", "Train/Urban/masks_png/0.png"]
    test = SegmentationDataset("loveda", tmp_path, "test")
    assert "mask" not in test[0]
    with pytest.raises(SampleError, match="split 'test' of data set 'loveda' has no masks"):
        test.mask_path(0)


def test_double_wildcard_takes_any_folders(write_card: WriteCard, mini_root: Path) -> None:
    (mini_root / "images/a/b").mkdir(parents=True)
    (mini_root / "masks/a/b").mkdir(parents=True)
    (mini_root / "images/0.png").rename(mini_root / "images/a/b/0.png")
    (mini_root / "masks/0.png").rename(mini_root / "masks/a/b/0.png")
    card = write_card(**{"images/*.png": "images/**/*.png", "masks/{stem}.png": "masks/{1}/{2}.png"})
    dataset = SegmentationDataset(card, mini_root)
    assert [pair.mask for pair in dataset.pairs] == [
        "masks/1.png", "masks/2.png", "masks/3.png", "masks/a/b/0.png",
    ]  # fmt: skip


def test_a_range_of_stems_is_a_part_of_a_folder(write_card: WriteCard, mini_root: Path) -> None:
    card = write_card(**{'.png"}': '.png", stems: ["1", "2"]}\n  rest: {images: "images/*.png", stems: ["3", "9"]}'})
    assert DatasetCard.from_yaml(card.to_yaml()).splits == card.splits
    parts = {split: [pair.name for pair in SegmentationDataset(card, mini_root, split).pairs] for split in card.splits}
    assert parts == {"train": ["images/1", "images/2"], "rest": ["images/3"]}


def test_transform_gets_the_sample_and_negative_indices_work(write_card: WriteCard, mini_root: Path) -> None:
    def flip(sample: Sample) -> Sample:
        return {**sample, "mask": sample["mask"].flip(-1)}

    plain = SegmentationDataset(write_card(), mini_root)
    flipped = SegmentationDataset(write_card(), mini_root, transform=flip)
    assert torch.equal(flipped[-1]["mask"], plain[3]["mask"].flip(-1))
    with pytest.raises(IndexError):
        plain[4]


def test_iteration_ends(write_card: WriteCard, mini_root: Path) -> None:
    dataset: Any = SegmentationDataset(write_card(), mini_root)
    assert [sample["name"] for sample in dataset] == [f"images/{i}" for i in range(4)]


def test_more_classes_than_a_byte_holds_give_int64(write_card: WriteCard, mini_root: Path) -> None:
    classes = "".join(f"  - {{name: c{i}, ids: [{i + 1000}]}}\n" for i in range(300))
    text = f"name: many\nmask_encoding: gray16\nignore_index: -1\nignore_ids: [65535]\nclasses:\n{classes}"
    card = write_card(text + MINI[MINI.index("splits:") :])
    raw = np.full((12, 16), 65535, np.uint16)
    raw[0] = np.arange(1000, 1016)
    raw[1, 0] = 1299
    for i in range(4):
        Image.fromarray(raw).save(mini_root / f"masks/{i}.png")
    mask = SegmentationDataset(card, mini_root)[0]["mask"]
    assert mask.dtype == torch.int64
    assert mask[0].tolist() == list(range(16))
    assert (int(mask[1, 0]), int(mask[2, 0])) == (299, -1)


def test_rgb_masks(write_card: WriteCard, mini_root: Path) -> None:
    text = MINI.replace("gray", "rgb").replace("ignore_ids: [255]", "ignore_colors: [[0, 0, 0]]")
    text = text.replace(", ids: [7, 8]", "").replace(", ids: [9]", "")
    card = write_card(text)
    colors = np.array([*card.palette, (0, 0, 0)], np.uint8)
    ids = np.random.default_rng(1).integers(0, 4, (12, 16))
    for i in range(4):
        Image.fromarray(colors[ids]).save(mini_root / f"masks/{i}.png")
    dataset = SegmentationDataset(card, mini_root)
    expected = np.where(ids == 3, 255, ids)
    np.testing.assert_array_equal(dataset[0]["mask"].numpy(), expected)
    # The table of all colours is made anew in a worker, not sent to it.
    assert len(pickle.dumps(dataset)) < 100_000
    Image.fromarray(colors[ids] + np.uint8(1)).save(mini_root / "masks/1.png")
    with pytest.raises(SampleError, match=r"1\.png: raw ids .* does not know: \(1, 1, 1\)"):
        dataset[1]


def test_gray_files_of_few_bits_keep_their_ids(write_card: WriteCard, mini_root: Path) -> None:
    def png(bits: int, rows: list[bytes]) -> bytes:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", 16, 12, bits, 0, 0, 0, 0)
        data = zlib.compress(b"".join(b"\0" + row for row in rows))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")

    # Sixteen pixels a row, the first two with ids 1 and 0, all others 0.
    for bits, first in ((1, 0b10000000), (2, 0b01000000), (4, 0b00010000)):
        for i in range(4):
            (mini_root / f"masks/{i}.png").write_bytes(png(bits, [bytes([first]) + bytes(2 * bits - 1)] * 12))
        mask = SegmentationDataset(write_card(**{"ids: [7, 8]": "ids: [1]"}), mini_root)[0]["mask"]
        assert mask[0].tolist() == [1] + [0] * 15


def test_unmapped_ids_are_errors_or_ignored(write_card: WriteCard, mini_root: Path) -> None:
    mask = np.zeros((12, 16))
    mask[0, :3] = 77
    save_mask(mask, mini_root / "masks/2.png")
    dataset = SegmentationDataset(write_card(), mini_root)
    with pytest.raises(SampleError, match=r"masks/2\.png: raw ids .*'mini' does not know: 77 \(3 pixels\); map them"):
        dataset[2]
    ignoring = SegmentationDataset(write_card(ignore_ids="unmapped: ignore\nignore_ids"), mini_root)
    assert ignoring[2]["mask"][0].tolist() == [255] * 3 + [0] * 13


def test_missing_masks_are_named(write_card: WriteCard, mini_root: Path) -> None:
    (mini_root / "masks/1.png").unlink()
    with pytest.raises(
        ValueError, match=r"1 of 4 samples .* images/1\.png needs masks/1\.png. Add the files"
    ) as raised:
        SegmentationDataset(write_card(), mini_root)
    # Other commands have no such option.
    assert "'aucseg fit' with --data.on_error skip) and 'aucseg stats' (--on-error skip)" in str(raised.value)
    dataset = SegmentationDataset(write_card(), mini_root, on_error="skip")
    assert (len(dataset), dataset.num_skipped) == (3, 1)


def test_two_images_for_one_mask(write_card: WriteCard, mini_root: Path) -> None:
    (mini_root / "images/1.jpg").write_bytes((mini_root / "images/1.png").read_bytes())
    with pytest.raises(ValueError, match=r"images/1\.jpg and images/1\.png share the mask masks/1\.png"):
        SegmentationDataset(write_card(**{"images/*.png": "images/*"}), mini_root)


def test_wrong_root_split_and_name(write_card: WriteCard, mini_root: Path) -> None:
    card = write_card()
    with pytest.raises(ValueError, match="has no split 'val'; it has train"):
        SegmentationDataset(card, mini_root, "val")
    with pytest.raises(ValueError, match=r"no such folder; give the folder that holds images/.* \(--root DIR, or"):
        SegmentationDataset(card, mini_root / "nowhere")
    with pytest.raises(ValueError, match=r"no image of split 'train' of 'mini'; looked for images/\*\.png"):
        SegmentationDataset(card, mini_root / "images")
    with pytest.raises(
        ValueError, match=r"'cityscapes' is not embedded in the package: give its root folder \(--root DIR\)\. Get"
    ):
        SegmentationDataset("cityscapes")
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'skip'"):
        SegmentationDataset(card, mini_root, on_error="ignore")


def test_lists_must_not_lead_out_of_the_root(write_card: WriteCard, mini_root: Path) -> None:
    card = write_card(**{'images: "images/*.png"': 'list: train.txt, images: "images/{stem}.png"'})
    (mini_root / "train.txt").write_text("0\n2 1\n")
    assert [pair.name for pair in SegmentationDataset(card, mini_root).pairs] == ["images/0", "images/2"]
    (mini_root / "train.txt").write_text("0\n../../etc/passwd\n")
    with pytest.raises(ValueError, match=r"train\.txt:2: '../../etc/passwd' leads out of the root folder"):
        SegmentationDataset(card, mini_root)
    (mini_root / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no stem"):
        SegmentationDataset(card, mini_root)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_symbolic_links_out_of_the_root_are_followed_unless_forbidden(
    what: str, write_card: WriteCard, mini_root: Path, tmp_path: Path
) -> None:
    link = mini_root / ("masks/0.png" if what == "file" else "masks")
    target = tmp_path / "outside"
    link.rename(target)
    link.symlink_to(target)
    with pytest.raises(SampleError, match=r"a symbolic link leads out of the root folder.*follow_symlinks=True"):
        SegmentationDataset(write_card(), mini_root, follow_symlinks=False)[0]
    assert "mask" in SegmentationDataset(write_card(), mini_root)[0]
    # A root that is itself a link is nobody's trick.
    link.unlink()
    target.rename(link)
    (tmp_path / "link").symlink_to(mini_root)
    assert "mask" in SegmentationDataset(write_card(), tmp_path / "link", follow_symlinks=False)[0]


def bad_files(root: Path, kind: str) -> str:
    """Spoils sample 1; returns the pattern of the message."""
    image, mask = root / "images/1.png", root / "masks/1.png"
    if kind == "size":
        save_mask(np.zeros((16, 12)), mask)
        return r"masks/1\.png: the mask is 12 x 16 \(width x height\), its image .*images/1\.png is 16 x 12; pair them"
    if kind == "jpeg mask":
        Image.open(mask).save(mask, format="JPEG")
        return r"masks/1\.png: the mask is a JPEG file.*make it again from its source as PNG"
    if kind == "palette":
        save_voc_palette(np.zeros((12, 16), int), mask)
        return r"masks/1\.png: the card says gray masks, but this file has mode P: .*set mask_encoding: palette"
    if kind == "16 bits":
        Image.fromarray(np.zeros((12, 16), np.uint16)).save(mask)
        return r"masks/1\.png: .*mode I;16: .*set mask_encoding: gray16"
    if kind == "colours":
        Image.new("RGB", (16, 12)).save(mask)
        return r"masks/1\.png: .*mode RGB: colours were baked in"
    if kind == "truncated image":
        image.write_bytes(image.read_bytes()[:200])
        return r"images/1\.png: truncated or damaged: .*fetch or export the file again"
    if kind == "truncated mask":
        mask.write_bytes(mask.read_bytes()[:50])
        return r"masks/1\.png: .*fetch or export the file again"
    if kind == "no image":
        image.write_bytes(b"<html>404</html>")
        return r"images/1\.png: not a readable image; fetch or export the file again"
    if kind == "16-bit image":
        Image.fromarray(np.zeros((12, 16), np.uint16)).save(image)
        return r"images/1\.png: the image has mode I;16 \(more than 8 bits a channel\); convert it to 8 bits"
    if kind == "exif":
        tags = Image.Exif()
        tags[0x0112] = 6
        Image.open(image).save(image, exif=tags)
        return r"images/1\.png: EXIF orientation 6: .*'exif: ignore'.*'exif: apply'"
    assert kind == "bomb"
    header = bytearray(image.read_bytes())
    header[16:24] = struct.pack(">II", 60000, 60000)
    header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
    image.write_bytes(header)
    return r"images/1\.png: Image size \(3600000000 pixels\) exceeds limit.*MAX_IMAGE_PIXELS"


KINDS = [
    "size", "jpeg mask", "palette", "16 bits", "colours", "truncated image", "truncated mask", "no image",
    "16-bit image", "exif", "bomb",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_bad_files_are_named_with_the_fix_or_skipped(kind: str, write_card: WriteCard, mini_root: Path) -> None:
    message = bad_files(mini_root, kind)
    dataset = SegmentationDataset(write_card(), mini_root)
    with pytest.raises(SampleError, match=message):
        dataset[1]
    assert dataset[0]["name"] == "images/0"
    skipping = SegmentationDataset(write_card(), mini_root, on_error="skip")
    assert skipping[1]["name"] == "images/2"
    assert skipping.num_skipped == 1


def test_nothing_readable_is_an_error_even_when_skipping(write_card: WriteCard, mini_root: Path) -> None:
    for i in range(4):
        (mini_root / f"images/{i}.png").write_bytes(b"")
    with pytest.raises(SampleError, match="not one of the 4 samples of split 'train' can be read"):
        SegmentationDataset(write_card(), mini_root, on_error="skip")[0]


def test_skips_in_worker_processes_are_counted(write_card: WriteCard, mini_root: Path) -> None:
    bad_files(mini_root, "no image")
    dataset = SegmentationDataset(write_card(), mini_root, on_error="skip")
    loader = DataLoader(dataset, batch_size=2, num_workers=1, multiprocessing_context="spawn")
    assert [batch["name"] for batch in loader] == [["images/0", "images/2"], ["images/2", "images/3"]]
    assert dataset.num_skipped == 1


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_applied_or_ignored(orientation: int, write_card: WriteCard, mini_root: Path) -> None:
    path = mini_root / "images/0.png"
    stored = np.asarray(Image.open(path))
    tags = Image.Exif()
    tags[0x0112] = orientation
    Image.fromarray(stored).save(path, exif=tags)
    ignoring = SegmentationDataset(write_card(ignore_ids="exif: ignore\nignore_ids"), mini_root)
    np.testing.assert_array_equal(ignoring[0]["image"].permute(1, 2, 0).numpy(), stored)
    # The EXIF standard: where row 0 and column 0 of the stored pixels lie in the picture as shown.
    shown = {
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }[orientation]
    save_mask(np.zeros(shown.shape[:2]), mini_root / "masks/0.png")
    applying = SegmentationDataset(write_card(ignore_ids="exif: apply\nignore_ids"), mini_root)
    np.testing.assert_array_equal(applying[0]["image"].permute(1, 2, 0).numpy(), shown)


def test_reordered_palette_is_noticed(tmp_path: Path) -> None:
    tree = next(tree for tree in trees() if tree.card == "pascal_voc2012")
    tree.make(tmp_path)
    with Image.open(tmp_path / tree.mask) as mask:
        indices, palette = np.asarray(mask), np.array(mask.getpalette()).reshape(-1, 3)
    # What an optimizer does: the same picture, with the indices renumbered.
    renumbered = Image.fromarray(255 - indices).convert("P")
    renumbered.putdata((255 - indices).reshape(-1).tolist())
    renumbered.putpalette(palette[::-1].reshape(-1).tolist())
    renumbered.save(tmp_path / tree.mask)
    with pytest.raises(SampleError, match="a program that re-saved the mask has reordered the palette"):
        SegmentationDataset("pascal_voc2012", tmp_path)[0]


def test_matlab_masks_that_are_none(tmp_path: Path) -> None:
    from scipy.io import savemat

    tree = next(tree for tree in trees() if tree.card == "coco_stuff10k")
    tree.make(tmp_path)
    dataset = SegmentationDataset("coco_stuff10k", tmp_path, "test")
    for fields, message in (
        ({"T": np.zeros((2, 2))}, "holds no matrix 'S'; set mat_key"),
        ({"S": np.zeros((2, 2)) + 0.5}, "are not all whole numbers"),
        ({"S": np.zeros((2, 2, 3))}, "is not a matrix of ids"),
    ):
        savemat(tmp_path / tree.mask, fields)
        with pytest.raises(SampleError, match=message):
            dataset[0]
    (tmp_path / tree.mask).write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(SampleError, match="not a readable MATLAB file"):
        dataset[0]
