"""COCO JSON: instances as polygons or run lengths, and panoptic files; Roboflow and Label Studio export it too."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aucseg.datasets.annotations import shapes
from aucseg.datasets.annotations.model import AnnotatedImage, AnnotationError, Annotations, Region, Rle, read_json, take
from aucseg.datasets.annotations.model import size_of as size_in
from aucseg.datasets.files import SampleError, guard, open_image, to_rgb
from aucseg.datasets.naming import split_of_path


def read_coco(paths: list[Path], root: Path, segments: Path | None = None) -> Annotations:
    """Reads COCO files; the categories of several go together by name.

    Args:
        paths: The JSON files, one for each split.
        root: Where the images are looked for.
        segments: Folder of the panoptic PNG files; by default beside the JSON file, with its name.

    Raises:
        ValueError: A file is not a COCO JSON, or two files name one image.
    """
    found = Annotations("COCO JSON", root)
    source_of: dict[tuple[str | None, str], Path] = {}
    for path in paths:
        content = read_json(path)
        split = split_of_path(path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name)
        split = split_of_path(path.stem) or split
        images = _images(content, path, split)
        for image in images.values():
            key = split, image.file_name
            if source_of.setdefault(key, path) != path:
                raise ValueError(
                    f"{source_of[key]} and {path} both annotate {image.file_name}; name the file that you want"
                )
        annotations = take(content, "annotations", list, str(path))
        if annotations and isinstance(annotations[0], dict) and "segments_info" in annotations[0]:
            folder = segments or _panoptic_folder(path)
            found.void = True
            found.format = "COCO panoptic"
            found.not_images.append(folder)
            names = _categories(content, path, used=_used_in_segments(annotations))
            _add_panoptic(images, annotations, names, path, folder, found)
        else:
            if _are_fractions(annotations):
                raise ValueError(
                    f"{path}: no coordinate of its outlines is above 1, so they seem to be fractions of the width and "
                    "height; COCO has pixels: multiply them"
                )
            used = {_text(entry.get("category_id")) for entry in annotations if isinstance(entry, dict)}
            names = _categories(content, path, used)
            _add_instances(images, annotations, names, path, found)
        found.add_labels(list(names.values()))
        found.images += images.values()
    return found


def _text(number: Any) -> str:
    """An id as text: some tools write 7 as 7.0 or as "7" where it is referred to."""
    return str(int(number) if isinstance(number, float) and number.is_integer() else number)


def _are_fractions(annotations: list[Any]) -> bool:
    """Whether there are outlines (or boxes, where there is no outline), and all their numbers are at most 1."""
    any_number = False
    for entry in annotations:
        values = (entry.get("segmentation") or entry.get("bbox")) if isinstance(entry, dict) else None
        for value in values if isinstance(values, list) else []:
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int | float):
                    any_number = True
                    if not abs(number) <= 1:
                        return False
    return any_number


def _images(content: Any, path: Path, split: str | None) -> dict[str, AnnotatedImage]:
    """The images by the text of their ids."""
    images: dict[str, AnnotatedImage] = {}
    for number, entry in enumerate(take(content, "images", list, str(path))):
        where = f"{path}: image {number}"
        image_id = take(entry, "id", (int, str), where)
        name = take(entry, "file_name", str, where).replace("\\", "/")
        key = _text(image_id)
        if key in images:
            raise ValueError(f"{where}: the id {image_id!r} is that of {images[key].file_name} already")
        images[key] = AnnotatedImage(
            name, f"{path}: image {image_id!r} ({name})", size=size_in(entry, "height", "width"), split=split
        )
    return images


def _categories(content: Any, path: Path, used: set[str]) -> dict[str, str]:
    """Names by the text of their ids, sorted by id.

    Roboflow's category 0, the name of the project, is left out where nothing uses it.
    """
    names: dict[int, str] = {}
    entries = take(content, "categories", list, str(path))
    parents = {entry.get("supercategory") for entry in entries if isinstance(entry, dict)}
    for number, entry in enumerate(entries):
        where = f"{path}: category {number}"
        category, name = take(entry, "id", int, where), take(entry, "name", str, where)
        if not name.strip():
            raise ValueError(f"{where}: its name is empty; give it a name")
        is_project = entry.get("supercategory") in ("none", None) and name in parents
        if _text(category) not in used and (is_project or name in names.values()):
            continue
        if category in names or name in names.values():
            raise ValueError(f"{where}: the id {category} or the name {name!r} is given twice; rename one")
        names[category] = name
    return {_text(category): name for category, name in sorted(names.items())}


def _add_instances(
    images: dict[str, AnnotatedImage], annotations: list[Any], names: dict[str, str], path: Path, found: Annotations
) -> None:
    for number, entry in enumerate(annotations):
        entry_id = entry.get("id", number) if isinstance(entry, dict) else number
        where = f"{path}: annotation {entry_id}"
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        image = images.get(_text(image_id))
        if image is None:
            found.unplaced.append(
                f"{where}: its image_id {image_id!r} names no image of the file; add the image or remove this entry"
            )
            continue
        category = entry.get("category_id")
        if _text(category) not in names:
            image.problems.append(f"{where}: its category_id {category!r} names no category of the file")
            continue
        shape, is_box = _shape(entry)
        is_ignored = bool(entry.get("iscrowd") or entry.get("ignore"))
        image.regions.append(Region(names[_text(category)], shape, where, is_ignored=is_ignored, is_box=is_box))


def _shape(entry: dict[str, Any]) -> tuple[shapes.Shape, bool]:
    segmentation, corners = entry.get("segmentation"), entry.get("bbox")
    if isinstance(segmentation, dict):
        return shapes.run_lengths(segmentation.get("counts"), segmentation.get("size")), False
    if isinstance(segmentation, list) and segmentation:
        is_flat = not isinstance(segmentation[0], list)
        return shapes.polygons([segmentation] if is_flat else segmentation), False
    if isinstance(corners, list) and len(corners) == 4 and all(isinstance(n, int | float) for n in corners):
        return shapes.box(*corners), True
    return shapes.refuse("it has neither a segmentation nor a box"), False


def _used_in_segments(annotations: list[Any]) -> set[str]:
    return {
        _text(segment.get("category_id"))
        for entry in annotations
        for segment in (entry.get("segments_info") or [] if isinstance(entry, dict) else [])
        if isinstance(segment, dict)
    }


def _panoptic_folder(path: Path) -> Path:
    folder = path.with_suffix("")
    if not folder.is_dir():
        raise ValueError(
            f"{path}: its panoptic PNG files are not in {folder}; unpack them there, or give their folder (--segments)"
        )
    return folder


def _add_panoptic(
    images: dict[str, AnnotatedImage],
    annotations: list[Any],
    names: dict[str, str],
    path: Path,
    folder: Path,
    found: Annotations,
) -> None:
    for number, entry in enumerate(annotations):
        where = f"{path}: annotation {number}"
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        image = images.get(_text(image_id))
        if image is None:
            found.unplaced.append(
                f"{where}: its image_id {image_id!r} names no image of the file; add the image or remove this entry"
            )
            continue
        file = folder / Path(take(entry, "file_name", str, where).replace("\\", "/")).name
        segments = take(entry, "segments_info", list, where)
        ids = frozenset(
            segment["id"] for segment in segments if isinstance(segment, dict) and isinstance(segment.get("id"), int)
        )
        for segment in segments:
            category = segment.get("category_id") if isinstance(segment, dict) else None
            if _text(category) not in names or not isinstance(segment.get("id"), int):
                image.problems.append(f"{where}: category_id {category!r} of a segment names no category of the file")
                continue
            segment_where = f"{where}: segment {segment['id']} in {file}"
            shape = partial(_segment, file, ids, segment["id"])
            is_ignored = bool(segment.get("iscrowd"))
            image.regions.append(Region(names[_text(category)], shape, segment_where, is_ignored))
        if not segments:
            image.problems.append(f"{where}: it has no segment")


def _segment(path: Path, ids: frozenset[Any], segment: Any, height: int, width: int) -> Rle:
    pixels = _segment_ids(path, ids)
    if pixels.shape != (height, width):
        raise AnnotationError(f"the file is {pixels.shape[1]} x {pixels.shape[0]}, the image {width} x {height}")
    mask = pixels == segment
    if not mask.any():
        raise AnnotationError("no pixel of the file has this id")
    return shapes.bitmap(mask)(height, width)


@lru_cache(maxsize=8)
def _segment_ids(path: Path, ids: frozenset[Any]) -> npt.NDArray[np.int64]:
    """The ids in a panoptic file; the segments of one image ask for it one after another."""
    try:
        with open_image(path) as image:
            rgb = np.array(guard(path, lambda: to_rgb(image))).astype(np.int64)
    except (SampleError, OSError) as error:
        raise AnnotationError(str(error)) from error
    pixels: npt.NDArray[np.int64] = rgb @ np.array([1, 256, 65536])
    unknown = np.setdiff1d(np.unique(pixels), [0, *ids])
    if unknown.size:
        raise AnnotationError(f"the file holds the id {unknown[0]}, which is not a segment of the annotation")
    return pixels
