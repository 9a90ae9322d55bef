"""Small exports of annotation tools, and the masks that they must give, drawn without the code under test."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

HEIGHT, WIDTH = 40, 60
Points = list[tuple[float, float]]
Mask = npt.NDArray[np.bool_]

BIG: Points = [(5, 4), (45, 6), (50, 36), (8, 33)]
SMALL: Points = [(20, 12), (30, 12), (30, 20), (20, 20)]


def save_photo(path: Path, height: int = HEIGHT, width: int = WIDTH, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum((path.parent.name + path.name).encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def flat(points: Points) -> list[float]:
    return [value for point in points for value in point]


def inside(points: Points, height: int = HEIGHT, width: int = WIDTH) -> tuple[Mask, Mask]:
    """Pixels whose centres lie in a polygon, by crossing numbers, and those farther than a pixel from its outline."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    odd = np.zeros((height, width), bool)
    distance = np.full((height, width), np.inf)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            odd ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        t = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1) if length else 0
        distance = np.minimum(distance, np.hypot(x - x0 - t * (x1 - x0), y - y0 - t * (y1 - y0)))
    return odd, distance > 1


def runs(values: npt.NDArray[Any]) -> list[int]:
    """Run lengths of a flat array, those of zeros first."""
    lengths, current, count = [], 0, 0
    for value in values.astype(int).tolist():
        if value != current:
            lengths.append(count)
            current, count = value, 0
        count += 1
    return [*lengths, count]


def brush(mask: Mask) -> list[int]:
    """A mask as Label Studio's brush: one run after another, lengths of 8 bits at most."""
    values = np.repeat(mask.ravel(), 4).astype(int) * 255
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 6, 8))
    place = 0
    while place < len(values):
        count = 1
        while count < 256 and place + count < len(values) and values[place + count] == values[place]:
            count += 1
        if count == 1:  # words that are not repeated
            bits += "0" + "00" + f"{0:03b}" + f"{values[place]:08b}"
        else:
            bits += "1" + "11" + f"{count - 1:08b}" + f"{values[place]:08b}"
        place += count
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def png_of(mask: Mask) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def coco(root: Path, annotations: list[dict[str, Any]], name: str = "annotations/instances_train2017.json") -> Path:
    save_photo(root / "images/a.jpg")
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 3, "name": "road"}, {"id": 9, "name": "cone"}],
        "annotations": [{"id": i, "image_id": 7, "iscrowd": 0, **a} for i, a in enumerate(annotations)],
    }
    path.write_text(json.dumps(content))
    return path


def coco_polygons(root: Path) -> Path:
    return coco(
        root,
        [
            {"category_id": 9, "segmentation": [flat(SMALL)]},
            {"category_id": 3, "segmentation": [flat(BIG)]},
        ],
    )


def coco_run_lengths(root: Path) -> Path:
    big, small = inside(BIG)[0], inside(SMALL)[0]
    return coco(
        root,
        [
            {"category_id": 9, "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs(small.T.ravel())}},
            {"category_id": 3, "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs(big.T.ravel())}},
        ],
    )


def panoptic(root: Path) -> Path:
    big, small = inside(BIG)[0], inside(SMALL)[0]
    ids = np.where(small, 70000, np.where(big, 300, 0))
    path = coco(root, [], "annotations/panoptic_train2017.json")
    content = json.loads(path.read_text())
    segments = [{"id": 300, "category_id": 3, "iscrowd": 0}, {"id": 70000, "category_id": 9, "iscrowd": 0}]
    content["annotations"] = [{"image_id": 7, "file_name": "a.png", "segments_info": segments}]
    path.write_text(json.dumps(content))
    folder = root / "annotations/panoptic_train2017"
    folder.mkdir()
    pixels = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return path


def yolo(root: Path) -> Path:
    save_photo(root / "train/images/a.jpg")
    (root / "train/labels").mkdir(parents=True)
    lines = [
        f"{number} " + " ".join(f"{x / WIDTH:.8f} {y / HEIGHT:.8f}" for x, y in points)
        for number, points in ((1, SMALL), (0, BIG))
    ]
    (root / "train/labels/a.txt").write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['road', 'cone']\n")
    return root


def labelme(root: Path, *more: dict[str, Any]) -> Path:
    save_photo(root / "a.jpg")
    small = inside(SMALL)[0]
    x0, y0, x1, y1 = 20, 12, 29, 19
    shapes = [
        {
            "label": "cone",
            "points": [[x0, y0], [x1, y1]],
            "shape_type": "mask",
            "mask": png_of(small[y0 : y1 + 1, x0 : x1 + 1]),
        },
        {"label": "road", "points": [list(point) for point in BIG], "shape_type": "polygon", "flags": {}},
        *more,
    ]
    content: dict[str, Any] = {"version": "5.4", "flags": {}, "shapes": shapes, "imagePath": "a.jpg", "imageData": None}
    (root / "a.json").write_text(json.dumps({**content, "imageHeight": HEIGHT, "imageWidth": WIDTH}))
    return root


def cvat(root: Path, more: str = "", small_layer: int = 0) -> Path:
    save_photo(root / "images/a.jpg")
    small = inside(SMALL)[0][10:22, 15:35]
    points = ";".join(f"{x},{y}" for x, y in BIG)
    (root / "annotations.xml").write_text(
        f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><job><labels>
<label><name>road</name></label><label><name>cone</name></label></labels></job></meta>
<image id="0" name="a.jpg" subset="Train" width="{WIDTH}" height="{HEIGHT}">
<mask label="cone" rle="{", ".join(map(str, runs(small.ravel())))}" left="15" top="10" width="20" height="12"
 z_order="{small_layer}"/>
<polygon label="road" points="{points}" z_order="0"/>{more}
</image></annotations>"""
    )
    return root


def label_studio(root: Path, *more: dict[str, Any]) -> Path:
    save_photo(root / "media/a.jpg")
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    small = {"format": "rle", "rle": brush(inside(SMALL)[0]), "brushlabels": ["cone"]}
    big = {"points": [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in BIG], "polygonlabels": ["road"]}
    results = [
        {"type": "brushlabels", "value": small, **size},
        {"type": "polygonlabels", "value": big, **size},
        *({**size, **entry} for entry in more),
    ]
    task = {"id": 5, "data": {"image": "/data/upload/1/1a2b3c4d-a.jpg"}, "annotations": [{"result": results}]}
    (root / "export.json").write_text(json.dumps([task]))
    return root


def roboflow(root: Path) -> Path:
    """COCO beside the images of each split, with the project as category 0."""
    for split in ("train", "valid"):
        save_photo(root / split / "a.jpg")
        content: dict[str, Any] = {
            "info": {"description": "Exported from roboflow.com"},
            "images": [{"id": 0, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
            "categories": [
                {"id": 0, "name": "streets", "supercategory": "none"},
                {"id": 1, "name": "road", "supercategory": "streets"},
                {"id": 2, "name": "cone", "supercategory": "streets"},
            ],
            "annotations": [
                {"id": 0, "image_id": 0, "category_id": 2, "segmentation": [flat(SMALL)]},
                {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [flat(BIG)]},
            ],
        }
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


EXPORTS = {
    "COCO JSON": coco_polygons,
    "COCO JSON, run lengths": coco_run_lengths,
    "COCO panoptic": panoptic,
    "YOLO segments": yolo,
    "LabelMe": labelme,
    "CVAT XML": cvat,
    "Label Studio JSON": label_studio,
    "COCO JSON, Roboflow": roboflow,
}
