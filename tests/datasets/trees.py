"""Tiny data sets in the layout, the file names and the encodings of the real ones, with label tables of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

HEIGHT, WIDTH = 24, 36
Mask = npt.NDArray[Any]
# Things that COCO has an index for and never drew: street sign, hat, shoe, eye glasses, plate, mirror, window, desk,
# door, blender, hair brush, as in the label list of COCO-Stuff.
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)


def voc_color(index: int) -> tuple[int, int, int]:
    """The colour map of the VOC development kit: three bits of the index at a time go to the high bits of r, g, b."""
    color = [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            color[channel] |= (index >> channel & 1) << shift
        index >>= 3
    return color[0], color[1], color[2]


def save_gray(mask: Mask, path: Path) -> None:
    Image.fromarray(mask.astype(np.uint8)).save(path)


def save_voc_palette(mask: Mask, path: Path) -> None:
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    image.putdata(mask.reshape(-1).tolist())
    image.putpalette([part for index in range(256) for part in voc_color(index)])
    image.save(path)


def save_mat(mask: Mask, path: Path) -> None:
    from scipy.io import savemat

    fields = {
        "S": mask.astype(np.uint8),
        "regionMapStuff": np.ones_like(mask),
        "captions": np.array(["a", "b"], object),
    }
    savemat(path, fields)


@dataclass(frozen=True)
class Tree:
    """One sample of a data set in its real layout; `table` maps the raw ids of the files to train ids."""

    card: str
    split: str
    image: str
    mask: str
    table: dict[int, int]
    save: Callable[[Mask, Path], None] = save_gray
    lists: tuple[tuple[str, str], ...] = ()

    def make(self, root: Path, seed: int = 0) -> Mask:
        """Writes image and mask below the root, every raw id somewhere in the mask; returns the mask in train ids."""
        rng = np.random.default_rng(seed)
        raw = rng.choice(list(self.table), (HEIGHT, WIDTH))
        raw.reshape(-1)[: len(self.table)] = list(self.table)
        for file in (self.image, self.mask):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(root / self.image)
        self.save(raw, root / self.mask)
        for file, text in self.lists:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text)
        train_ids: Mask = np.vectorize(self.table.__getitem__)(raw)
        return train_ids


def cityscapes_table() -> dict[int, int]:
    from cityscapesscripts.helpers.labels import labels

    return {label.id: label.trainId for label in labels if label.id >= 0}


def coco_table(offset: int, unlabelled: int) -> dict[int, int]:
    """The index in the files is that of the label list less the offset; classes are numbered without the gaps."""
    kept = [index for index in range(1, 183) if index not in COCO_GAPS]
    return {unlabelled: 255} | {index - offset: train_id for train_id, index in enumerate(kept)}


def trees() -> list[Tree]:
    voc = "2007_000032"
    coco10k = "COCO_train2014_000000000077"
    return [
        Tree(
            "cityscapes",
            "train",
            "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",
            "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
            cityscapes_table(),
        ),
        Tree(
            "ade20k",
            "train",
            "images/training/ADE_train_00000001.jpg",
            "annotations/training/ADE_train_00000001.png",
            {0: 255} | {raw: raw - 1 for raw in range(1, 151)},
        ),
        Tree(
            "coco_stuff164k",
            "train",
            "images/train2017/000000000009.jpg",
            "annotations/train2017/000000000009.png",
            coco_table(1, 255),
        ),
        Tree(
            "coco_stuff10k",
            "test",
            f"images/{coco10k}.jpg",
            f"annotations/{coco10k}.mat",
            coco_table(0, 0),
            save_mat,
            (("imageLists/test.txt", f"{coco10k}\n"),),
        ),
        Tree(
            "pascal_voc2012",
            "train",
            f"JPEGImages/{voc}.jpg",
            f"SegmentationClass/{voc}.png",
            {raw: raw for raw in range(21)} | {255: 255},
            save_voc_palette,
            (("ImageSets/Segmentation/train.txt", f"{voc}\n"),),
        ),
        Tree(
            "pascal_context59",
            "val",
            f"JPEGImages/{voc}.jpg",
            f"SegmentationClassContext/{voc}.png",
            {0: 255} | {raw: raw - 1 for raw in range(1, 60)},
            save_gray,
            (("ImageSets/SegmentationContext/val.txt", f"{voc}\n\n"),),
        ),
        Tree(
            "loveda",
            "train",
            "Train/Rural/images_png/0.png",
            "Train/Rural/masks_png/0.png",
            {0: 255} | {raw: raw - 1 for raw in range(1, 8)},
        ),
        Tree(
            "camvid",
            "val",
            "val/0016E5_07959.png",
            "valannot/0016E5_07959.png",
            {raw: raw for raw in range(11)} | {11: 255},
        ),
    ]
