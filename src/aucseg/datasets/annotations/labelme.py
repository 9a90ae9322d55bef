"""LabelMe: a JSON file beside each image."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aucseg.datasets.annotations import shapes
from aucseg.datasets.annotations.model import DIFFICULT, AnnotatedImage, Annotations, Region, read_json, size_of
from aucseg.datasets.naming import split_of_path


def read_labelme(paths: list[Path], root: Path) -> Annotations:
    """Reads LabelMe files; one that cannot be read is a problem of its own image.

    Args:
        paths: The JSON files, one for each image.
        root: Where the images are looked for.
    """
    found = Annotations("LabelMe", root)
    for path in paths:
        folder = path.parent.relative_to(root).as_posix() if path.parent.is_relative_to(root) else ""
        image = AnnotatedImage(_below(folder, path.stem), str(path), split=split_of_path(folder))
        found.images.append(image)
        try:
            content = read_json(path)
        except (ValueError, OSError) as error:
            image.problems.append(str(error))
            continue
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            image.problems.append(f"{path}: not a LabelMe file: it has no list 'shapes'; move it out of the folder")
            continue
        name = str(content.get("imagePath") or path.stem).replace("\\", "/")
        image.file_name = _below(folder, name)
        image.size = size_of(content, "imageHeight", "imageWidth")
        for number, entry in enumerate(content["shapes"]):
            where = f"{path}: shape {number}"
            if not isinstance(entry, dict) or not isinstance(entry.get("label"), str) or not entry["label"].strip():
                image.problems.append(f"{where}: it has no label")
                continue
            kind = entry.get("shape_type") or "polygon"
            flags = entry.get("flags")
            is_ignored = isinstance(flags, dict) and any(flags.get(name) is True for name in DIFFICULT)
            region = Region(
                entry["label"], _shape(entry, kind), f"{where} ({kind})", is_ignored, is_box=kind == "rectangle"
            )
            image.regions.append(region)
        found.add_labels([region.label for region in image.regions])
    found.labels.sort()
    return found


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder not in ("", ".") else name


def _shape(entry: dict[str, Any], kind: str) -> shapes.Shape:
    if kind == "polygon":
        return shapes.polygons([entry.get("points") or []])
    try:
        points = np.array(entry.get("points"), np.float64).reshape(-1, 2)
    except (ValueError, TypeError):
        return shapes.refuse("its points are not pairs of numbers")
    if len(points) == 2 and np.isfinite(points).all():
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        if kind == "rectangle":
            return shapes.box(left, top, right - left, bottom - top)
        if kind == "circle":
            radius = math.dist(points[0], points[1])
            return shapes.ellipse(points[0].tolist(), (radius, radius))
        if kind == "mask":
            return _embedded(entry.get("mask"), round(top), round(left))
    if kind in ("point", "points", "line", "linestrip"):
        return shapes.refuse(f"a {kind} has no area; draw a polygon, or leave its label out (--drop)")
    return shapes.refuse(f"a {kind} with {len(points)} points cannot be read")


def _embedded(text: Any, top: int, left: int) -> shapes.Shape:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            return shapes.bitmap(np.array(image.convert("L")), top, left)
    except Exception as error:
        return shapes.refuse(f"its mask cannot be read: {error}")
