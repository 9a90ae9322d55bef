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
    others. Where each image has a folder of its own, the name of that folder counts. Fewer than four are no sequences,
    but may as well be folders of classes, or cameras.

    Args:
        names: Paths of the images below the root, without their endings.

    Example:
        >>> sequences_of_names([f"drive{drive}/{frame:06}" for drive in range(4) for frame in (10, 20)])
        [0, 0, 1, 1, 2, 2, 3, 3]
        >>> sequences_of_names([f"images/frame_{frame:03}" for frame in range(40)]) is None
        True
    """
    numbers = _numbers(names)
    return numbers if _MIN_SEQUENCES <= max(numbers, default=0) + 1 < len(names) else None


def say_if_few(names: Sequence[str], what: str) -> str:
    """What to add to a sentence on images that were taken one by one though their names may tell a few sequences.

    Args:
        names: As for `sequences_of_names`.
        what: What was taken, such as "held out".

    Example:
        >>> say_if_few([f"video{video}/{frame}" for video in range(3) for frame in range(8)], "held out")
        '; the names may tell 3 sequences, too few to be kept whole: frames of one may be held out and trained on'
        >>> say_if_few([f"images/{frame}" for frame in range(8)], "held out")
        ''
    """
    number = max(_numbers(names), default=0) + 1
    if not 1 < number < min(_MIN_SEQUENCES, len(names)):
        return ""
    return (
        f"; the names may tell {number} sequences, too few to be kept whole: frames of one may be {what} and trained on"
    )


def _numbers(names: Sequence[str]) -> list[int]:
    keys = [_sequence(name) for name in names]
    number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [number_of[key] for key in keys]


def _sequence(name: str) -> str:
    folder, _, stem = name.rpartition("/")
    picture = affixes(stem)[1]
    # "seq1_0001/image": the folder is the picture.
    path = f"{folder}/{picture}" if picture else folder
    return _LAST_NUMBER.sub("", path)
