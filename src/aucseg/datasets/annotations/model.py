"""What every format of annotations is read as: images, each with its labelled regions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A mask as run lengths in COCO's compressed form: {"size": [height, width], "counts": bytes}.
Rle = dict[str, Any]
BACKGROUND = frozenset({"background", "_background_", "__background__"})
IGNORED = frozenset({"__ignore__"})
# Names under which annotators mark what shall not count.
DIFFICULT = frozenset({"difficult", "ignore", "ignored", "crowd", "iscrowd"})
MAX_BYTES = 4 * 10**9


class AnnotationError(ValueError):
    """An entry of an annotation file cannot be used; the caller adds the names of the file and the entry."""


@dataclass(frozen=True)
class Region:
    """A labelled region of an image.

    Attributes:
        label: Name of its class.
        shape: Makes its run lengths, given the height and the width of the image; raises `AnnotationError`.
        where: File and entry, for messages.
        is_ignored: Whether its pixels shall be ignored (crowd, difficult).
        is_box: Whether it is a box, not an outline.
        layer: Order of drawing that the annotator gave; higher lies over lower.
    """

    label: str
    shape: Callable[[int, int], Rle]
    where: str
    is_ignored: bool = False
    is_box: bool = False
    layer: int = 0


@dataclass
class AnnotatedImage:
    """An image and what is annotated in it.

    Attributes:
        file_name: Its name or path as the annotations have it, with forward slashes.
        where: File and entry, for messages.
        regions: Its regions in the order of the file.
        size: (height, width) that the annotations were drawn on, or None where they do not say.
        split: The split that the annotations tell, or None.
        problems: What is wrong beside the regions.
    """

    file_name: str
    where: str
    regions: list[Region] = field(default_factory=list)
    size: tuple[int, int] | None = None
    split: str | None = None
    problems: list[str] = field(default_factory=list)


@dataclass
class Annotations:
    """All that was read.

    Attributes:
        format: Name of the format, for people.
        images: The annotated images.
        labels: Names of the classes, in the order of the files, those without a region included.
        problems: Entries that belong to no image that is there.
        unplaced: Entries that may belong to any of the images: with one of them no mask can be trusted.
        void: Whether pixels without a region mean "not labelled" in this format (panoptic files), not background.
        root: The folder in which the images are looked for.
        not_images: Folders below the root whose files are not images (panoptic files).
        notes: What the user should know.
    """

    format: str
    root: Path
    images: list[AnnotatedImage] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)
    void: bool = False
    not_images: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_labels(self, names: list[str]) -> None:
        """Adds the names that are not there yet."""
        known = set(self.labels)
        self.labels += [name for name in dict.fromkeys(names) if name not in known]


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds.

    Raises:
        ValueError: Not JSON, not UTF-8, nested too deep.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable JSON file: {error}; export it again") from error


def take(entry: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Returns an entry of a mapping of the right type.

    Raises:
        ValueError: It is missing, or of another type.
    """
    value = entry.get(key) if isinstance(entry, dict) else None
    # True is not a number here.
    if not isinstance(value, kind) or isinstance(value, bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where}: {key!r} must be {names}, got {type(value).__name__}")
    return value


def size_of(entry: Any, height: str, width: str) -> tuple[int, int] | None:
    """Returns (height, width) where an entry holds both, as positive whole numbers."""
    values = [entry.get(key) for key in (height, width)] if isinstance(entry, dict) else []
    whole = [int(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and v > 0 and v == int(v)]
    return (whole[0], whole[1]) if len(whole) == 2 else None
