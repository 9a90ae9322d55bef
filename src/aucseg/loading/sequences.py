"""Which images belong to one sequence (a video, a drive, a scene), as far as their names tell."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aucseg.datasets.naming import affixes

# Fewer are not a division that a part could be taken of.
_MIN_SEQUENCES = 4
_LAST_NUMBER = re.compile(r"[_.\- ]*[a-zA-Z]?\d+$")


def sequences_of_names(names: Sequence[str]) -> list[int] | None:
    """Returns the number of the sequence of each image, or None where the names tell no sequences.

    Images are of one sequence if they lie in one folder and their names differ in the last number alone: frames of a
    video are nearly copies of each other, and a validation on some of them would praise a model for remembering the
    others. Where each image has a folder of its own, the name of that folder counts.

    Args:
        names: Paths of the images below the root, without their endings.

    Example:
        >>> sequences_of_names([f"drive{drive}/{frame:06}" for drive in range(4) for frame in (10, 20)])
        [0, 0, 1, 1, 2, 2, 3, 3]
        >>> sequences_of_names([f"images/frame_{frame:03}" for frame in range(40)]) is None
        True
    """
    keys = [_sequence(name) for name in names]
    number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if not _MIN_SEQUENCES <= len(number_of) < len(names):
        return None
    return [number_of[key] for key in keys]


def _sequence(name: str) -> str:
    folder, _, stem = name.rpartition("/")
    picture = affixes(stem)[1]
    # "seq1_0001/image": the folder is the picture.
    path = f"{folder}/{picture}" if picture else folder
    return _LAST_NUMBER.sub("", path)
