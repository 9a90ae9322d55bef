"""Which annotations a folder or a file holds."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from aucseg.datasets.annotations.coco import read_coco
from aucseg.datasets.annotations.cvat import read_cvat
from aucseg.datasets.annotations.label_studio import read_label_studio
from aucseg.datasets.annotations.labelme import read_labelme
from aucseg.datasets.annotations.made_folders import source_files
from aucseg.datasets.annotations.model import Annotations
from aucseg.datasets.annotations.yolo import label_files, read_yolo
from aucseg.datasets.tree import Tree, ending_of
from aucseg.hints import closest

COCO, PANOPTIC, YOLO, LABELME, CVAT, LABEL_STUDIO = (
    "COCO JSON", "COCO panoptic", "YOLO segments", "LabelMe", "CVAT XML", "Label Studio JSON"
)  # fmt: skip
# How much of a file is looked at, at its beginning and its end; annotation files may have gigabytes.
_PEEK = 65536
_LOOKED_AT = 50
_YOLO_LINE = re.compile(r"\d+(\s+-?\d+(\.\d+)?([eE]-?\d+)?){6,}\s*")


@dataclass(frozen=True)
class Found:
    """Annotations of one format.

    Attributes:
        format: Its name.
        files: The files; of YOLO the YAML file where there is one.
        root: The folder in which they and their images lie.
    """

    format: str
    files: tuple[Path, ...]
    root: Path


def recognize(path: str | Path) -> list[Found]:
    """Tells which annotations a folder or a file holds, by looking at the beginnings and ends of its files.

    Args:
        path: A folder, or one annotation file; its images lie in its folder or in the one above.
    """
    path = Path(path)
    if path.is_file():
        name = _format_of(path)
        folder = path.parent
        # "annotations/instances_train2017.json" has its images in a folder beside "annotations".
        is_inner = folder.name.lower() in ("annotations", "annotation", "labels", "default") and folder != Path(".")
        return [] if name is None else [Found(name, (path,), folder.parent if is_inner else folder)]
    tree = Tree(path)
    by_format: dict[str, list[Path]] = {}
    groups: dict[tuple[str, str], list[Path]] = {}
    for file in source_files(tree, (".json", ".xml", ".yaml", ".yml")):
        groups.setdefault((str(PurePosixPath(file).parent), ending_of(file)), []).append(path / file)
    for group in groups.values():
        formats = [_format_of(file) for file in group[:_LOOKED_AT]]
        # A folder with a file for each image holds one format: the first files tell of the others, damaged ones too.
        others = LABELME if LABELME in formats else None
        formats = [name or others for name in formats] + [others] * (len(group) - len(formats))
        for member, name in zip(group, formats, strict=True):
            if name is not None:
                by_format.setdefault(name, []).append(member)
    if YOLO not in by_format and _has_yolo_texts(tree):
        by_format[YOLO] = []
    return [Found(name, tuple(files), path) for name, files in sorted(by_format.items())]


def describe_annotations(path: str | Path) -> str | None:
    """Returns a sentence about the annotations of a folder or a file and the command that makes masks, or None.

    Args:
        path: The folder or file.
    """
    found = recognize(path)
    if not found:
        return None
    kinds = " and ".join(
        f"{entry.format} annotations"
        + (
            f" ({', '.join(file.name for file in entry.files[:2])}{', ...' if len(entry.files) > 2 else ''})"
            * bool(entry.files)
        )
        for entry in found
    )
    out = Path(path).resolve()
    name = out.name if out.is_dir() else out.stem
    target = re.sub(r"\s+", "_", name) + "_masks"
    return f"{path} holds {kinds}; make masks of them with: aucseg masks {shlex.quote(str(path))} --out {target}"


def read_annotations(
    paths: Sequence[str | Path],
    *,
    format: str | None = None,
    images: str | Path | None = None,
    segments: str | Path | None = None,
) -> Annotations:
    """Reads annotations of any known format.

    Args:
        paths: Files or folders, all of one format.
        format: The format, where a folder holds several.
        images: Where the images are; by default the folder, or that of the file.
        segments: Folder of panoptic PNG files.

    Raises:
        ValueError: Nothing is recognized, several formats are, or a file is damaged.
        ImportError: An optional package is missing.
    """
    found: list[Found] = []
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"{path}: there is no such file or folder")
        here = recognize(path)
        if not here:
            known = ", ".join((COCO, PANOPTIC, YOLO, LABELME, CVAT, LABEL_STUDIO))
            raise ValueError(f"{path}: no annotations of a known format ({known})")
        found += here
    formats = sorted({entry.format for entry in found})
    if format is not None and format not in formats:
        raise ValueError(f"{paths[0]}: no {format} annotations; {closest(format, formats)}")
    if format is None and len(formats) > 1:
        raise ValueError(
            f"{', '.join(map(str, paths))}: annotations of several formats: {', '.join(formats)}; name the files, or "
            f"choose one (--format {formats[0]!r})"
        )
    chosen = [entry for entry in found if entry.format == (format or formats[0])]
    files = [file for entry in chosen for file in entry.files]
    root = Path(images) if images is not None else chosen[0].root
    if not root.is_dir():
        raise ValueError(f"{root}: there is no such folder of images")
    name = chosen[0].format
    if name == YOLO:
        folders = sorted({str(entry.root) for entry in chosen})
        if len(folders) > 1:
            raise ValueError(f"{' and '.join(folders)}: YOLO labels are read from one folder; make masks of each")
        return read_yolo(chosen[0].root, files, root)
    if name in (COCO, PANOPTIC):
        return read_coco(files, root, None if segments is None else Path(segments))
    readers = {LABELME: read_labelme, CVAT: read_cvat, LABEL_STUDIO: read_label_studio}
    return readers[name](files, root)


def _has_yolo_texts(tree: Tree) -> bool:
    is_segment = [_is_yolo_text(tree.root / path) for path in label_files(tree)[:_LOOKED_AT]]
    return any(is_segment)


def _is_yolo_text(path: Path) -> bool:
    lines = _peek(path).splitlines()
    return bool(lines) and _YOLO_LINE.fullmatch(lines[0]) is not None


def _peek(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(_PEEK)
            size = file.seek(0, 2)
            file.seek(max(len(head), size - _PEEK))
            return (head + b"\n" + file.read(_PEEK)).decode("utf-8", "replace")
    except OSError:
        return ""


def _format_of(path: Path) -> str | None:
    text = _peek(path)
    if path.suffix.lower() == ".xml":
        return CVAT if "<annotations" in text and ("<image " in text or "<track " in text) else None
    if path.suffix.lower() in (".yaml", ".yml"):
        keys = set(re.findall(r"^(\w+)\s*:", text, re.MULTILINE))
        return YOLO if {"names", "train"} <= keys and "classes" not in keys else None
    if path.suffix.lower() != ".json":
        return None

    def has(*keys: str) -> bool:
        return all(re.search(rf'"{key}"\s*:', text) for key in keys)

    if has("shapes") and (has("imagePath") or has("shape_type")):
        return LABELME
    if text.lstrip("\ufeff \t\r\n").startswith("["):
        kinds = r'"original_width"|"(polygon|brush|ellipse|rectangle|keypoint)labels"'
        return LABEL_STUDIO if re.search(kinds, text) is not None else None
    if has("images") and (has("categories") or has("file_name")):
        if has("segments_info"):
            return PANOPTIC
        # Captions have images and no categories; a large file may show no annotation at either end.
        return COCO if has("segmentation") or has("bbox") or has("categories") else None
    return None
