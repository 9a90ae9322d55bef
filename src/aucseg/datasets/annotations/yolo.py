"""YOLO segments: a text file for each image, a polygon a line, in fractions of width and height."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from aucseg.datasets.annotations import shapes
from aucseg.datasets.annotations.images import common_end, contradict
from aucseg.datasets.annotations.made_folders import source_files
from aucseg.datasets.annotations.model import AnnotatedImage, Annotations, Region
from aucseg.datasets.naming import split_of_path
from aucseg.datasets.pairing import read_lines
from aucseg.datasets.tree import IMAGE_ENDINGS, Tree, normalized
from aucseg.hints import shorten
from aucseg.safe_files import read_text, read_yaml_mapping

_YAML_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_yolo(root: Path, yaml_paths: Sequence[Path], images_root: Path | None = None) -> Annotations:
    """Reads YOLO text files, each beside its image or in `labels` where the image lies in `images`.

    Args:
        root: The folder of the text files.
        yaml_paths: YAML files with `names` and the splits, which must agree; where there is none `classes.txt` is
            taken, or names are made of the numbers.
        images_root: Where the images are looked for, where that is another folder.

    Raises:
        ValueError: A YAML file cannot be read, two of them differ, or no text file has an image.
    """
    found = Annotations("YOLO segments", images_root or root)
    yaml_path, settings = _settings(yaml_paths)
    tree = Tree(root)
    names = _names_in_yaml(settings, yaml_path) or _names_in_texts(tree)
    if not names:
        found.notes.append(
            f"{root}: no names of the classes ('names' in a YAML file, classes.txt), so they are made of the numbers: "
            "class_0, ..."
        )
    images = source_files(Tree(found.root), IMAGE_ENDINGS)
    texts = label_files(tree)
    text_of = _texts_of(images, texts)
    splits = _Splits(settings, root, yaml_path, images)
    found.problems += splits.problems
    found.unplaced += splits.unplaced
    found.notes += splits.notes
    without: list[str] = []
    read: set[str] = set()
    for name in images:
        own_text = text_of.get(name)
        listed = splits.listed(name)
        split = listed or split_of_path(str(PurePosixPath(name).parent))
        if own_text is None:
            if splits.are_listed and listed is None:
                continue  # no image of the data set: a logo, or what a training has drawn
            without.append(name)
            image = AnnotatedImage(name, f"{found.root / name}", split=split)
        else:
            read.add(own_text)
            image = _read(root / own_text, name, split, names)
        image.problems += splits.problems_of.get(name, [])
        found.images.append(image)
    if not read:
        raise ValueError(f"{root}: no text file with YOLO labels has an image below {found.root} (--images)")
    for text in sorted(set(texts) - read):
        if PurePosixPath(text).stem not in _listing_names(settings):
            problem = f"{root / text}: no image below {found.root} has this name"
            # Its regions may be those of an image that seems to have none.
            other = next((name for name in without if not _contradict(name, text)), None)
            if other is not None and _read(root / text, text, None, names).regions:
                found.unplaced.append(f"{problem}, while {other} has no text file; rename or remove one of them")
            else:
                found.problems.append(problem)
    if without:
        found.notes.append(
            f"{len(without)} of {len(images)} images have no text file, which in YOLO means that nothing is in them: "
            f"{shorten(without, 5)}"
        )
    numbers = sorted({int(region.label) for image in found.images for region in image.regions} | set(names))
    known = {number: names.get(number, f"class_{number}") for number in numbers}
    if len(set(known.values())) < len(known):
        raise ValueError(f"{yaml_path or root}: two classes have one name: {', '.join(known.values())}")
    for image in found.images:
        image.regions = [Region(known[int(r.label)], r.shape, r.where, is_box=r.is_box) for r in image.regions]
    found.add_labels([known[number] for number in numbers])
    return found


_NAMES_FILES = ("classes.txt", "obj.names")
_OTHER_TEXTS = (
    *_NAMES_FILES,
    "README.txt",
    "README.dataset.txt",
    "README.roboflow.txt",
    "requirements.txt",
)


def label_files(tree: Tree) -> list[str]:
    """Returns the text files below a folder that may hold labels."""
    return [path for path in source_files(tree, (".txt",)) if PurePosixPath(path).name not in _OTHER_TEXTS]


def _listing_names(settings: dict[str, Any]) -> set[str]:
    """Stems of the text files that list the images of a split."""
    values = [value for key in _YAML_SPLITS for value in _as_list(settings.get(key))]
    return {PurePosixPath(value.replace("\\", "/")).stem for value in values if value.endswith(".txt")}


def _as_list(value: Any) -> list[str]:
    return [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, str)]


def _settings(yaml_paths: Sequence[Path]) -> tuple[Path | None, dict[str, Any]]:
    """The YAML file and what it holds; of several that agree the first."""
    first: tuple[Path | None, dict[str, Any]] = (None, {})
    for path in yaml_paths:
        settings = read_yaml_mapping(path)
        if first[0] is None:
            first = path, settings
        elif any(settings.get(key) != first[1].get(key) for key in ("names", *_YAML_SPLITS)):
            raise ValueError(
                f"{first[0]} and {path} differ in the names of the classes or in the splits; name the right one alone "
                f"(aucseg masks {first[0]}), or move the others away"
            )
    return first


def _names_in_yaml(settings: dict[str, Any], yaml_path: Path | None) -> dict[int, str]:
    names = settings.get("names")
    if isinstance(names, list):
        return {number: _text(name, yaml_path) for number, name in enumerate(names)}
    if isinstance(names, dict):
        if not all(isinstance(key, int) and key >= 0 for key in names):
            raise ValueError(f"{yaml_path}: 'names' must map whole numbers to names")
        return {number: _text(name, yaml_path) for number, name in names.items()}
    return {}


def _names_in_texts(tree: Tree) -> dict[int, str]:
    """The lines of `classes.txt`, which tools write beside the data, or into each folder of labels."""
    first: tuple[Path, list[str]] | None = None
    for file in source_files(tree, (".txt", ".names")):
        path = tree.root / file
        if path.name not in _NAMES_FILES:
            continue
        names = [line.strip() for line in read_lines(path) if line.strip()]
        if first is None:
            first = path, names
        elif names != first[1]:
            raise ValueError(
                f"{first[0]} and {path} hold different names of the classes; move away all but the right one"
            )
    return {} if first is None else dict(enumerate(first[1]))


def _text(name: Any, yaml_path: Path | None) -> str:
    if isinstance(name, str) and not name.strip():
        raise ValueError(f"{yaml_path}: 'names' holds an empty name; give the class a name")
    if name is None or isinstance(name, bool):
        raise ValueError(
            f"{yaml_path}: 'names' holds a name that YAML reads as {str(name).lower()}: put it in quotes, "
            "such as 'on', 'no' or 'null'"
        )
    return str(name)


def _texts_of(images: list[str], texts: list[str]) -> dict[str, str]:
    """The text file of each image that has one: that of the same path but for `images` and `labels`.

    What is left is paired by names that stand for one image and one text file alone, of no two splits.
    """
    by_place: dict[tuple[str, ...], list[str]] = {}
    for text in texts:
        by_place.setdefault(_place(text, "labels"), []).append(text)
    paired = {}
    for image in images:
        fitting = by_place.get(_place(image, "images"), [])
        if len(fitting) == 1:
            paired[image] = fitting[0]
    left = [
        _by_stem(path for path in paths if path not in taken)
        for paths, taken in ((images, paired.keys()), (texts, set(paired.values())))
    ]
    for stem, of_stem in left[0].items():
        candidates = left[1].get(stem, [])
        if len(of_stem) == len(candidates) == 1 and not _contradict(of_stem[0], candidates[0]):
            paired[of_stem[0]] = candidates[0]
    return paired


def _place(path: str, folder: str) -> tuple[str, ...]:
    parts = PurePosixPath(path)
    return (*(part for part in parts.parent.parts if part != folder), parts.stem)


def _by_stem(paths: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(PurePosixPath(path).stem, []).append(path)
    return found


def _contradict(one: str, other: str) -> bool:
    """Whether the folders of two files name different splits."""
    return contradict(*(split_of_path(str(PurePosixPath(path).parent)) for path in (one, other)))


class _Splits:
    """What the YAML file says of the splits of images.

    Args:
        settings: Content of the YAML file.
        root: Where the lists are looked for without one.
        yaml_path: The YAML file.
        images: The images.
    """

    def __init__(self, settings: dict[str, Any], root: Path, yaml_path: Path | None, images: list[str]) -> None:
        self.problems: list[str] = []
        self.unplaced: list[str] = []
        self.problems_of: dict[str, list[str]] = {}
        self.notes: list[str] = []
        self._folders: list[tuple[str, str]] = []
        # With the number of folders that the image and the entry have in common.
        self._files: dict[str, tuple[int, str]] = {}
        by_name: dict[str, list[str]] = {}
        for image in images:
            by_name.setdefault(normalized(PurePosixPath(image).name), []).append(image)
        for key, split in _YAML_SPLITS.items():
            for value in _as_list(settings.get(key)):
                # Paths are of the machine that exported, or relative to a folder that is gone: their ends count.
                parts = _parts(value)
                if not value.endswith(".txt"):
                    self._add_folder("/".join(parts), split, f"{yaml_path}: {key}")
                    continue
                base = yaml_path.parent if yaml_path is not None else root
                listing = next((p for p in (base / "/".join(parts), base / parts[-1]) if p.is_file()), None)
                if listing is None:
                    raise ValueError(f"{yaml_path}: {key} names {value}, which is not there")
                for line in filter(None, read_lines(listing)):
                    self._add(line, listing, split, by_name)

    def _add_folder(self, folder: str, split: str, where: str) -> None:
        other = next((known for place, known in self._folders if place == folder and known != split), None)
        if other is not None:  # trained on and validated on, as in a first try
            self.notes.append(f"{where} names {folder}, as {other} does: its images are taken for {other} alone")
            return
        self._folders.append((folder, split))

    def _add(self, line: str, listing: Path, split: str, by_name: dict[str, list[str]]) -> None:
        *folders, name = _parts(line)
        candidates = by_name.get(normalized(name), [])
        shared = {path: common_end(PurePosixPath(path).parent.parts, tuple(folders)) for path in candidates}
        best = [p for p in candidates if shared[p] == max(shared.values()) and (shared[p] or not _contradict(p, line))]
        if len(best) != 1:
            if best:
                self.unplaced.append(f"{listing}: {line}: it may be {' or '.join(best[:3])}")
            else:
                self.problems.append(f"{listing}: {line}: there is no such image")
            return
        (image,) = best
        known = self._files.get(image)
        if known is not None and known[1] != split and known[0] == shared[image]:
            self.problems_of.setdefault(image, []).append(f"{listing}: {line} is listed for {known[1]}, too")
        if known is None or shared[image] > known[0]:
            self._files[image] = (shared[image], split)

    @property
    def are_listed(self) -> bool:
        """Whether there are any."""
        return bool(self._folders or self._files)

    def listed(self, image: str) -> str | None:
        """The split of an image; None where it is in none."""
        if image in self._files:
            return self._files[image][1]
        folder = f"/{PurePosixPath(image).parent}/"
        fitting = [(len(end), split) for end, split in self._folders if f"/{end}/" in folder]
        return max(fitting)[1] if fitting else None


def _parts(path: str) -> list[str]:
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]


def _read(path: Path, image_name: str, split: str | None, names: dict[int, str]) -> AnnotatedImage:
    image = AnnotatedImage(image_name, str(path), split=split)
    try:
        lines = read_text(path).splitlines()
    except (ValueError, OSError) as error:
        image.problems.append(str(error))
        return image
    for number, line in enumerate(lines, 1):
        where = f"{path}: line {number}"
        fields = line.split()
        if not fields:
            continue
        try:
            values = [float(field) for field in fields[1:]]
            label = int(fields[0])
        except ValueError:
            image.problems.append(f"{where}: not a class number with coordinates: {line[:60]!r}")
            continue
        if label < 0 or (names and label not in names):
            image.problems.append(f"{where}: class {label}, but the names are those of {min(names)}..{max(names)}")
            continue
        if len(values) in (4, 5):
            x, y, width, height = values[:4]
            shape = shapes.box(x - width / 2, y - height / 2, width, height, scale=1.0)
        elif max(map(abs, values), default=0.0) > 2:
            shape = shapes.refuse("its coordinates are not fractions of the width and height (0..1)")
        else:
            shape = shapes.polygons([values], scale=1.0)
        image.regions.append(Region(str(label), shape, where, is_box=len(values) in (4, 5)))
    return image
