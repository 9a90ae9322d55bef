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
    return sequences_and_note(names, "")[0]


def sequences_and_note(names: Sequence[str], what: str) -> tuple[list[int] | None, str]:
    """`sequences_of_names`, and what to add to a sentence on images that are taken one by one though these may be few.

    Args:
        names: Paths of the images below the root, without their endings.
        what: What is taken, such as "held out".

    Example:
        >>> sequences_and_note([f"video{video}/{frame}" for video in range(3) for frame in range(8)], "held out")[1]
        '; the names may tell 3 sequences, too few to be kept whole: frames of one may be held out and trained on'
    """
    keys = [_sequence(name) for name in names]
    number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if not 1 < len(number_of) < len(names):
        return None, ""
    if len(number_of) >= _MIN_SEQUENCES:
        return [number_of[key] for key in keys], ""
    few = f"{len(number_of)} sequences, too few to be kept whole"
    return None, f"; the names may tell {few}: frames of one may be {what} and trained on"


def _sequence(name: str) -> str:
    folder, _, stem = name.rpartition("/")
    picture = affixes(stem)[1]
    # "seq1_0001/image": the folder is the picture.
    path = f"{folder}/{picture}" if picture else folder
    return _LAST_NUMBER.sub("", path)
