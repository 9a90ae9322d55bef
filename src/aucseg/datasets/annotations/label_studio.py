"""Label Studio: JSON and JSON-MIN exports with polygons, brushes, ellipses and boxes, in percent of the image."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import numpy.typing as npt

from aucseg.datasets.annotations import shapes
from aucseg.datasets.annotations.model import (
    AnnotatedImage,
    AnnotationError,
    Annotations,
    Region,
    Rle,
    read_json,
    size_of,
)
from aucseg.datasets.naming import split_of_path
from aucseg.datasets.tree import IMAGE_ENDINGS, ending_of
from aucseg.hints import shorten

_KINDS = ("polygonlabels", "brushlabels", "ellipselabels", "rectanglelabels", "keypointlabels")
# What a result with a place in the image has; others (choices, texts) have none.
_PLACES = {"points", "rle", "x", "vertices", "imageDataURL", "sequence"}


def read_label_studio(paths: list[Path], root: Path) -> Annotations:
    """Reads Label Studio's exports; a task with several annotations needs one that is the ground truth.

    Raises:
        ValueError: A file is not such an export.
    """
    found = Annotations("Label Studio JSON", root)
    unseen: list[str] = []
    for path in paths:
        tasks = read_json(path)
        if not isinstance(tasks, list):
            raise ValueError(f"{path}: not an export of Label Studio: it must hold a list of tasks")
        for number, task in enumerate(tasks):
            if not isinstance(task, dict):
                found.problems.append(f"{path}: task {number}: not a mapping")
                continue
            image = _task(task, f"{path}: task {task.get('id', number)}")
            if image is None:
                found.problems.append(f"{path}: task {task.get('id', number)}: it names no image file")
                continue
            if not _is_annotated(task):
                unseen.append(image.file_name)
                continue
            found.images.append(image)
            found.add_labels([region.label for region in image.regions])
    found.labels.sort()
    if unseen:
        found.notes.append(
            f"{len(unseen)} tasks have no annotation, or were skipped, and are left out: {shorten(unseen, 5)}"
        )
    return found


def _is_annotated(task: dict[str, Any]) -> bool:
    """Whether somebody has looked at a task, be it to find nothing; of JSON-MIN nobody knows."""
    annotations = task.get("annotations")
    return not isinstance(annotations, list) or bool(_that_count(annotations))


def _that_count(annotations: list[Any]) -> list[dict[str, Any]]:
    return [entry for entry in annotations if isinstance(entry, dict) and not entry.get("was_cancelled")]


def _task(task: dict[str, Any], where: str) -> AnnotatedImage | None:
    data = task.get("data") if isinstance(task.get("data"), dict) else task
    assert isinstance(data, dict)
    names = [name for value in data.values() if isinstance(value, str) and (name := _file_name(value))]
    if not names:
        return None
    image = AnnotatedImage(names[0], f"{where} ({names[0]})", split=split_of_path(str(PurePosixPath(names[0]).parent)))
    for number, result in enumerate(_results(task, image)):
        _add_result(image, result, f"{where}: result {number}")
    return image


def _file_name(value: str) -> str | None:
    """The path in what a task calls its image: a path, an address, or a query of Label Studio's own server."""
    parts = urlsplit(value)
    path = (parse_qs(parts.query).get("d") or [unquote(parts.path)])[0].replace("\\", "/").lstrip("/")
    return path if ending_of(path) in IMAGE_ENDINGS else None


def without_prefix(name: str) -> str:
    """Returns a file name without what Label Studio puts before uploads.

    Example:
        >>> without_prefix("1a2b3c4d-cat.jpg"), without_prefix("cat-1.jpg")
        ('cat.jpg', 'cat-1.jpg')
    """
    return re.sub(r"^[0-9a-f]{8}-", "", name)


def _results(task: dict[str, Any], image: AnnotatedImage) -> list[Any]:
    """The regions of the one annotation that counts; in JSON-MIN those under the name of the control."""
    if not isinstance(task.get("annotations"), list):
        lists = [value for key, value in task.items() if key != "data" and isinstance(value, list)]
        return [
            {"type": kind, "value": entry, **{k: entry.get(k) for k in ("original_width", "original_height")}}
            for entries in lists
            for entry in entries
            if isinstance(entry, dict) and (kind := next((kind for kind in _KINDS if kind in entry), None))
        ]
    annotations = _that_count(task["annotations"])
    chosen = [a for a in annotations if a.get("ground_truth")] or annotations
    if len(chosen) > 1:
        image.problems.append(
            f"{image.where}: it has {len(chosen)} annotations; mark one as ground truth, or export one a task"
        )
    results = chosen[0].get("result") if len(chosen) == 1 else []
    return _with_labels([r for r in results if isinstance(r, dict)]) if isinstance(results, list) else []


def _with_labels(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The regions of an annotation; where shape and label are two results of one id, joined."""
    labels = {r.get("id"): _value(r).get("labels") for r in results if r.get("type") == "labels"}
    regions = []
    for result in results:
        kind = f"{result.get('type')}labels"
        if kind in _KINDS:
            joined = {**_value(result), kind: labels.get(result.get("id"))}
            regions.append({**result, "type": kind, "value": joined})
        elif result.get("type") != "labels" and not _PLACES.isdisjoint(_value(result)):
            regions.append(result)
    return regions


def _value(result: dict[str, Any]) -> dict[str, Any]:
    value = result.get("value")
    return value if isinstance(value, dict) else {}


def _add_result(image: AnnotatedImage, result: dict[str, Any], where: str) -> None:
    kind, value = str(result.get("type")), result.get("value")
    if kind not in _KINDS:
        image.problems.append(f"{where}: a {kind} is not read; draw a polygon or a brush")
        return
    labels = value.get(kind) if isinstance(value, dict) else None
    if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str):
        image.problems.append(f"{where}: it has {len(labels) if isinstance(labels, list) else 'no'} labels, not one")
        return
    if not labels[0].strip():
        image.problems.append(f"{where}: its label is empty")
        return
    assert isinstance(value, dict)
    image.size = size_of(result, "original_height", "original_width") or image.size
    if result.get("image_rotation"):
        shape = shapes.refuse("it was drawn on a turned image (image_rotation); turn the image back and export again")
    else:
        try:
            shape = _shape(kind, value)
        except (TypeError, ValueError, KeyError) as error:
            shape = shapes.refuse(f"not readable: {error}")
    image.regions.append(Region(labels[0], shape, f"{where} ({kind})", is_box=kind == "rectanglelabels"))


def _shape(kind: str, value: dict[str, Any]) -> shapes.Shape:
    if kind == "polygonlabels":
        return shapes.polygons([value["points"]], scale=100.0)
    if kind == "keypointlabels":
        return shapes.refuse("a key point has no area; draw a polygon, or leave its label out (--drop)")
    if kind == "brushlabels":
        if value.get("format") != "rle":
            return shapes.refuse(f"a brush of format {value.get('format')!r} is not known")
        return _Brush(value["rle"])
    numbers = [float(value[key]) for key in ("x", "y")]
    rotation = float(value.get("rotation") or 0)
    if kind == "ellipselabels":
        return shapes.ellipse(numbers, (float(value["radiusX"]), float(value["radiusY"])), rotation, scale=100.0)
    return shapes.box(numbers[0], numbers[1], float(value["width"]), float(value["height"]), rotation, scale=100.0)


class _Brush:
    """The shape of a brush: RGBA values, run-length encoded, of which the last channel tells."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __call__(self, height: int, width: int) -> Rle:
        values = decode_brush(self.data, 4 * height * width)
        return shapes.bitmap(values.reshape(height, width, 4)[..., 3])(height, width)


def decode_brush(data: Any, length: int) -> npt.NDArray[np.uint8]:
    """Decodes the run lengths of Label Studio's brush, the bit stream of thi.ng's `rle-pack`.

    The stream: 32 bits, how many words; 5 bits, the size of a word less one; four times 4 bits, sizes of lengths less
    one. Then runs: a bit, whether one word is repeated; 2 bits, which size the length has; the length less one; the
    word, or as many words as the length says.

    Args:
        data: The bytes, as a list of numbers.
        length: How many words there must be.

    Raises:
        AnnotationError: Other data, or another length.
    """
    if not isinstance(data, list) or not all(isinstance(byte, int) and 0 <= byte < 256 for byte in data):
        raise AnnotationError("its run lengths are not a list of bytes")
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        if place + count > len(bits):
            raise AnnotationError("its run lengths break off")
        place += count
        return int(bits[place - count : place], 2)

    total = take(32)
    if total != length:
        raise AnnotationError(f"its run lengths hold {total} values, the image has {length} (4 a pixel)")
    size = take(5) + 1
    if size > 8:
        raise AnnotationError(f"its run lengths have words of {size} bits, not of 8 or fewer")
    sizes = [take(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        is_run, bits_of_length = take(1), sizes[take(2)]
        count = take(bits_of_length) + 1
        if done + count > total:
            raise AnnotationError("its run lengths hold more values than they say")
        if is_run:
            values[done : done + count] = take(size)
        else:
            values[done : done + count] = [take(size) for _ in range(count)]
        done += count
    return values
