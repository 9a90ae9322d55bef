"""Which prediction belongs to which image, by the names that frameworks give to their files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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


def prediction_files(folder: Path) -> list[str]:
    """Returns the files below a folder that may be predictions: images and arrays, without overlays.

    Raises:
        ValueError: No such folder, or no such file in it; the message names the endings that there are.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder of predictions {folder}")
    files = [
        file
        for file in Tree(folder).files(IMAGE_ENDINGS | ARRAY_ENDINGS)
        if not _SHOWN_ONLY & {part.lower() for part in PurePosixPath(file).parts[:-1]}
    ]
    if not files:
        endings = sorted({ending_of(path.name) for path in folder.rglob("*") if path.is_file()} - {""})
        there_are = f"; there are files that end in {', '.join(endings[:8])}" if endings else ", which is empty"
        raise ValueError(
            f"{folder} holds no prediction{there_are}: write label maps as PNG, TIFF or NPY, scores as NPY or NPZ"
        )
    return files


def match_predictions(files: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Returns the file of each image that has one.

    Names are compared as they stand (without their endings; upper and lower case do not count), then without nnU-Net's
    `_0000` of the image, then by what they have without words such as `image`, `mask` or `pred`. Where several
    files fit, the one whose folders agree with those of the image counts.

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
        for name in names:
            key = key_of_image(PurePosixPath(name).stem)
            if name not in found and key and candidates.get(key):
                found[name] = _best(candidates[key], name)
        _check_used_once(found)
    return {name: found[name] for name in names if name in found}


def _best(files: Sequence[str], name: str) -> str:
    agreement = [_common_folders(file, name) for file in files]
    best = [file for file, common in zip(files, agreement, strict=True) if common == max(agreement)]
    if len(best) > 1:
        raise ValueError(
            f"the prediction for {name} may be {' or '.join(best[:3])}: leave one of them in the folder, or give the "
            "subfolder that holds the predictions"
        )
    return best[0]


def _common_folders(file: str, name: str) -> int:
    """How many folders agree, the innermost first."""
    parts = zip(reversed(PurePosixPath(file).parts[:-1]), reversed(PurePosixPath(name).parts[:-1]), strict=False)
    count = 0
    for one, other in parts:
        if normalized(one) != normalized(other):
            break
        count += 1
    return count


def _check_used_once(found: Mapping[str, str]) -> None:
    image_of: dict[str, str] = {}
    for name, file in found.items():
        if file in image_of:
            raise ValueError(
                f"{file} may be the prediction for {image_of[file]} or for {name}: put the predictions into folders "
                "like those of the images"
            )
        image_of[file] = name
