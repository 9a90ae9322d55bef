"""YOLO segments: a text file for each image, a polygon a line, in fractions of width and height."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from aucseg.datasets.annotations import shapes
from aucseg.datasets.annotations.model import AnnotatedImage, Annotations, Region
from aucseg.datasets.naming import split_of_path
from aucseg.datasets.pairing import read_lines
from aucseg.datasets.tree import IMAGE_ENDINGS, Tree
from aucseg.safe_files import read_text, read_yaml_mapping

_YAML_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_yolo(root: Path, yaml_path: Path | None, images_root: Path | None = None) -> Annotations:
    """Reads YOLO text files, each beside its image or in ``labels`` where the image lies in ``images``.

    Args:
        root: The folder of the text files.
        yaml_path: The data set's YAML file with ``names`` and the splits; None where there is none (``classes.txt`` is
            taken, or names made of the numbers).
        images_root: Where the images are looked for, where that is another folder.

    Raises:
        ValueError: The YAML file cannot be read, or no text file has an image.
    """
    found = Annotations("YOLO segments", images_root or root)
    settings = {} if yaml_path is None else read_yaml_mapping(yaml_path)
    names = _names(settings, root, yaml_path)
    images = Tree(found.root).files(IMAGE_ENDINGS)
    texts = [path for path in Tree(root).files((".txt",)) if PurePosixPath(path).name not in _OTHER_TEXTS]
    by_stem: dict[str, list[str]] = {}
    for text in texts:
        by_stem.setdefault(PurePosixPath(text).stem, []).append(text)
    split_of = _Splits(settings, root, yaml_path)
    without: list[str] = []
    read: set[str] = set()
    for name in images:
        own_text = _text_of(name, by_stem)
        split = split_of(name)
        if own_text is None:
            without.append(name)
            found.images.append(AnnotatedImage(name, f"{found.root / name}", split=split))
            continue
        read.add(own_text)
        found.images.append(_read(root / own_text, name, split, names))
    if not read:
        raise ValueError(f"{root}: no text file with YOLO labels has an image below {found.root} (--images)")
    for text in sorted(set(texts) - read):
        if PurePosixPath(text).stem not in _listing_names(settings):
            found.problems.append(f"{root / text}: no image below {found.root} has this name")
    if without:
        found.notes.append(
            f"{len(without)} of {len(images)} images have no text file, which in YOLO means that nothing is in them: "
            f"{', '.join(without[:5])}{', ...' if len(without) > 5 else ''}"
        )
    numbers = sorted({int(region.label) for image in found.images for region in image.regions} | set(names))
    known = {number: names.get(number, f"class_{number}") for number in numbers}
    if len(set(known.values())) < len(known):
        raise ValueError(f"{yaml_path or root}: two classes have one name: {', '.join(known.values())}")
    for image in found.images:
        image.regions = [Region(known[int(r.label)], r.shape, r.where, is_box=r.is_box) for r in image.regions]
    found.add_labels([known[number] for number in numbers])
    return found


_OTHER_TEXTS = (
    "classes.txt",
    "obj.names",
    "README.txt",
    "README.dataset.txt",
    "README.roboflow.txt",
    "requirements.txt",
)


def _listing_names(settings: dict[str, Any]) -> set[str]:
    """Stems of the text files that list the images of a split."""
    values = [value for key in _YAML_SPLITS for value in _as_list(settings.get(key))]
    return {PurePosixPath(value.replace("\\", "/")).stem for value in values if value.endswith(".txt")}


def _as_list(value: Any) -> list[str]:
    return [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, str)]


def _names(settings: dict[str, Any], root: Path, yaml_path: Path | None) -> dict[int, str]:
    names = settings.get("names")
    if isinstance(names, list):
        return {number: str(name) for number, name in enumerate(names)}
    if isinstance(names, dict):
        if not all(isinstance(key, int) and key >= 0 for key in names):
            raise ValueError(f"{yaml_path}: 'names' must map whole numbers to names")
        return {number: str(name) for number, name in names.items()}
    for candidate in (root / "classes.txt", root / "obj.names"):
        if candidate.is_file():
            return dict(enumerate(line for line in read_lines(candidate) if line))
    return {}


def _text_of(image: str, by_stem: dict[str, list[str]]) -> str | None:
    """The text file of an image: the same path but for ``images`` and ``labels``, as far as the folders are alike."""
    path = PurePosixPath(image)
    candidates = by_stem.get(path.stem, [])
    parents = [part for part in path.parent.parts if part != "images"]
    exact = [text for text in candidates if [p for p in PurePosixPath(text).parent.parts if p != "labels"] == parents]
    if len(exact) == 1:
        return exact[0]
    return candidates[0] if len(candidates) == 1 and not exact else None


class _Splits:
    """The split of an image: what the YAML file says, or the names of its folders."""

    def __init__(self, settings: dict[str, Any], root: Path, yaml_path: Path | None) -> None:
        self.folders: list[tuple[str, str]] = []
        self.files: dict[str, str] = {}
        for key, split in _YAML_SPLITS.items():
            for value in _as_list(settings.get(key)):
                # Paths are of the machine that exported, or relative to a folder that is gone: their ends count.
                parts = [part for part in value.replace("\\", "/").split("/") if part not in ("", ".", "..")]
                if not value.endswith(".txt"):
                    self.folders.append(("/".join(parts), split))
                    continue
                base = yaml_path.parent if yaml_path is not None else root
                listing = next((p for p in (base / "/".join(parts), base / parts[-1]) if p.is_file()), None)
                if listing is None:
                    raise ValueError(f"{yaml_path}: {key} names {value}, which is not there")
                self.files.update((PurePosixPath(line.replace("\\", "/")).name, split) for line in read_lines(listing))

    def __call__(self, image: str) -> str | None:
        listed = self.files.get(PurePosixPath(image).name)
        if listed is not None:
            return listed
        folder = "/" + str(PurePosixPath(image).parent) + "/"
        fitting = [(len(end), split) for end, split in self.folders if f"/{end}/" in folder]
        return max(fitting)[1] if fitting else split_of_path(folder.strip("/"))


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
