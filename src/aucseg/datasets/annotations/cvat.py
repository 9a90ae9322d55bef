"""CVAT: "CVAT for images 1.1", one XML file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from aucseg.datasets.annotations import shapes
from aucseg.datasets.annotations.model import DIFFICULT, AnnotatedImage, Annotations, Region
from aucseg.datasets.naming import split_of_path
from aucseg.hints import import_extra

_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton")


def read_cvat(paths: list[Path], root: Path) -> Annotations:
    """Reads CVAT's XML files; the layer (`z_order`) of a shape decides before its size where shapes overlap.

    Raises:
        ValueError: Not such a file, a file with entities (which could unpack to any size), or one of a video.
        ImportError: `defusedxml` is missing.
    """
    found = Annotations("CVAT XML", root)
    parser = import_extra("defusedxml.ElementTree", "masks")
    for path in paths:
        try:
            document = parser.parse(path).getroot()
        except Exception as error:
            raise ValueError(f"{path}: not a readable XML file: {error}; export it again") from error
        if document.find("track") is not None:
            raise ValueError(f"{path}: tracks of a video; export it from CVAT as 'CVAT for images 1.1'")
        labels = [name.text for name in document.iterfind("meta//labels/label/name") if (name.text or "").strip()]
        for entry in document.iterfind("image"):
            image = _image(entry, path)
            found.images.append(image)
            found.add_labels(labels)
            found.add_labels([region.label for region in image.regions])
    return found


def _image(entry: Any, path: Path) -> AnnotatedImage:
    name = entry.get("name", "").replace("\\", "/")
    where = f"{path}: image {entry.get('id')} ({name})"
    split = split_of_path(entry.get("subset", "")) or split_of_path(name.rpartition("/")[0])
    image = AnnotatedImage(name, where, split=split)
    try:
        image.size = int(entry.get("height")), int(entry.get("width"))
    except (TypeError, ValueError):
        image.problems.append(f"{where}: its height and width are not numbers")
    for number, child in enumerate(entry):
        label = child.get("label")
        if label is None or child.tag == "tag":  # of the image as a whole
            continue
        if not label.strip():
            image.problems.append(f"{where}: {child.tag} {number}: it has no label")
            continue
        attributes = {
            (attribute.get("name") or "").lower()
            for attribute in child.iterfind("attribute")
            if (attribute.text or "").strip().lower() in ("true", "1", "yes")
        }
        try:
            shape = _shape(child)
            layer = int(child.get("z_order", "0"))
        except (TypeError, ValueError) as error:
            image.problems.append(f"{where}: {child.tag} {number}: not readable: {error}")
            continue
        image.regions.append(
            Region(
                label,
                shape,
                f"{where}: {child.tag} {number}",
                is_ignored=bool(DIFFICULT & attributes),
                is_box=child.tag == "box",
                layer=layer,
            )
        )
    return image


def _shape(entry: Any) -> shapes.Shape:
    def number(key: str) -> float:
        return float(entry.get(key, "0" if key == "rotation" else ""))

    if entry.tag == "polygon":
        points = [[float(part) for part in pair.split(",")] for pair in entry.get("points", "").split(";")]
        return shapes.polygons([points])
    if entry.tag == "mask":
        return _mask(entry)
    if entry.tag == "ellipse":
        center = number("cx"), number("cy")
        return shapes.ellipse(center, (number("rx"), number("ry")), number("rotation"))
    if entry.tag == "box":
        left, top, right, bottom = (number(key) for key in ("xtl", "ytl", "xbr", "ybr"))
        # CVAT turns a box about its middle.
        angle = math.radians(number("rotation"))
        middle = np.array([(left + right) / 2, (top + bottom) / 2])
        corner = np.array([left, top]) - middle
        turn = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
        x, y = (corner @ turn + middle).tolist()
        return shapes.box(x, y, right - left, bottom - top, number("rotation"))
    if entry.tag in _WITHOUT_AREA:
        return shapes.refuse(f"a {entry.tag} has no area; draw a polygon, or leave its label out (--drop)")
    return shapes.refuse(f"a {entry.tag} is not known")


def _mask(entry: Any) -> shapes.Shape:
    """Run lengths along the rows of a box, beginning with pixels outside the region."""
    height, width = (int(float(entry.get(key, ""))) for key in ("height", "width"))
    top, left = (int(float(entry.get(key, ""))) for key in ("top", "left"))
    lengths = [int(part) for part in entry.get("rle", "").split(",")]
    if height < 1 or width < 1 or min(lengths) < 0 or sum(lengths) != height * width:
        return shapes.refuse(f"its run lengths add up to {sum(lengths)} pixels, not to {width} x {height}")
    return _rows(lengths, height, width, top, left)


def _rows(lengths: list[int], height: int, width: int, top: int, left: int) -> shapes.Shape:
    def shape(image_height: int, image_width: int) -> dict[str, Any]:
        if top < 0 or left < 0 or top + height > image_height or left + width > image_width:
            return shapes.refuse(f"its box of {width} x {height} reaches out of the image")(image_height, image_width)
        pixels = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(height, width)
        return shapes.bitmap(pixels, top, left)(image_height, image_width)

    return shape
