"""Which prediction belongs to which image, by the names that frameworks give to their files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from aucseg.datasets.naming import picture_of
from aucseg.datasets.tree import IMAGE_ENDINGS, Tree, ending_of, normalized

ARRAY_ENDINGS = frozenset({".npy", ".npz"})
# Folders of pictures for people, beside those of predictions.
_SHOWN_ONLY = frozenset({"overlays", "vis", "visualization", "visualizations"})
# nnU-Net's number of an image's channel, which its predictions lack.
_CHANNEL = re.compile(r"_0000$")
_PREDICTION = re.compile(
    r"(?:[_.\- ]?(?:pred(?:ict(?:ed|ions?))?s?|outputs?|prob(?:abilitie)?s?|scores?|logits?|softmax"
    r"|(?:label)?trainids))+$",
    re.IGNORECASE,
)


def prediction_files(folder: Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the files below a folder that may be predictions, images and arrays, and the folders that were skipped.

    Those are folders of pictures for people, such as `overlays` or `vis`, unless an image lies in a folder of this
    name: `vis` may be visible light.

    Args:
        folder: The folder.
        names: Paths of the images below their root, without ending.

    Raises:
        ValueError: No such folder, or no such file in it; the message names the endings that there are.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder of predictions {folder}")
    shown_only = _SHOWN_ONLY - {part for name in names for part in _folders(name)}
    files, skipped = [], set()
    for file in Tree(folder).files(IMAGE_ENDINGS | ARRAY_ENDINGS):
        depth = next((i for i, part in enumerate(_folders(file), 1) if part in shown_only), None)
        if depth is None:
            files.append(file)
        else:
            skipped.add("/".join(PurePosixPath(file).parts[:depth]))
    if not files:
        endings = sorted({ending_of(path.name) for path in folder.rglob("*") if path.is_file()} - {""})
        there_are = f"; there are files that end in {', '.join(endings[:8])}" if endings else ", which is empty"
        there_are += f", {', '.join(sorted(skipped))} being skipped as pictures for people" if skipped else ""
        raise ValueError(
            f"{folder} holds no prediction{there_are}: write label maps as PNG, TIFF or NPY, scores as NPY or NPZ"
        )
    return files, sorted(skipped)


def files_of_other_splits(files: Iterable[str], names: Sequence[str], patterns: Iterable[str]) -> set[str]:
    """Returns the files that lie in a folder of another split.

    Among the folders that the patterns of the images of one split have and those of another lack, the one nearest to
    the file counts.

    Args:
        files: Paths below the folder of predictions.
        names: Paths of the images of the split below their root, without ending.
        patterns: Those of the images of all splits.

    Example:
        >>> patterns = ["images/train/*.png", "images/val/*.png"]
        >>> sorted(files_of_other_splits(["train/x.png", "train/val/x.png", "x.png"], ["images/val/x"], patterns))
        ['train/x.png']
    """
    folders = {frozenset(_folders(name)) for name in names}
    own: set[str] = set()
    others: set[str] = set()
    for pattern in patterns:
        fixed = {part for part in _folders(pattern) if not set("*?{") & set(part)}
        (own if any(fixed <= parts for parts in folders) else others).update(fixed)
    nearest = {file: next((part for part in reversed(_folders(file)) if part in own ^ others), None) for file in files}
    return {file for file, part in nearest.items() if part in others}


def match_predictions(files: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Returns the file of each image that has one.

    Names are compared as they stand (without their endings; upper and lower case do not count), then without nnU-Net's
    `_0000` of the image, then by what they have without words such as `image`, `mask` or `pred`. Where several
    files fit, the one whose folders agree with those of the image counts, then the one that is spelled like it. A
    file that fits another image better in this way is no match.

    Args:
        files: Paths below the folder of predictions.
        names: Paths of the images below their root, without ending.

    Raises:
        ValueError: Two files fit an image, or one fits two images.

    Example:
        >>> match_predictions(["b/x.png", "a/x.png", "y_pred.png", "z.png"], ["in/a/x", "in/b/x", "in/y_0000", "in/w"])
        {'in/a/x': 'a/x.png', 'in/b/x': 'b/x.png', 'in/y_0000': 'y_pred.png'}
    """
    found: dict[str, str] = {}
    rules: tuple[tuple[Callable[[str], str], Callable[[str], str]], ...] = (
        (normalized, normalized),
        (normalized, lambda stem: normalized(_CHANNEL.sub("", stem))),
        (lambda stem: picture_of(_PREDICTION.sub("", stem)), lambda stem: picture_of(_CHANNEL.sub("", stem))),
    )
    for key_of_file, key_of_image in rules:
        left = set(files) - set(found.values())
        candidates: dict[str, list[str]] = defaultdict(list)
        for file in sorted(left):
            candidates[key_of_file(PurePosixPath(file).stem)].append(file)
        alike: dict[str, list[str]] = defaultdict(list)
        for name in names:
            alike[key_of_image(PurePosixPath(name).name)].append(name)
        for key, images in alike.items():
            for name in images if key and candidates.get(key) else ():
                if name not in found:
                    file = _best(candidates[key], name)
                    if _fit(file, name) == max(_fit(file, other) for other in images):
                        found[name] = file
        _check_used_once(found)
    return {name: found[name] for name in names if name in found}


def _best(files: Sequence[str], name: str) -> str:
    fits = [_fit(file, name) for file in files]
    best_fit = max(fits)
    best = [file for file, fit in zip(files, fits, strict=True) if fit == best_fit]
    if len(best) > 1:
        raise ValueError(
            f"the prediction for {name} may be {' or '.join(best[:3])}: leave one of them in the folder, or give the "
            "subfolder that holds the predictions"
        )
    return best[0]


def _fit(file: str, name: str) -> tuple[int, bool]:
    """How many folders agree, the innermost first, and whether upper and lower case do."""
    count = 0
    for one, other in zip(reversed(_folders(file)), reversed(_folders(name)), strict=False):
        if one != other:
            break
        count += 1
    return count, PurePosixPath(file).stem == PurePosixPath(name).name


def _folders(path: str) -> list[str]:
    return [normalized(part) for part in PurePosixPath(path).parts[:-1]]


def _check_used_once(found: Mapping[str, str]) -> None:
    image_of: dict[str, str] = {}
    for name, file in found.items():
        if file in image_of:
            raise ValueError(
                f"{file} may be the prediction for {image_of[file]} or for {name}: put the predictions into folders "
                "like those of the images"
            )
        image_of[file] = name
