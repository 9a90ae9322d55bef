"""Images that are there twice: in two splits, or in one with different masks."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from aucseg.datasets.files import SampleError, read_image
from aucseg.datasets.naming import picture_of
from aucseg.datasets.pairing import Pair
from aucseg.datasets.scan_cache import content_digest
from aucseg.datasets.tree import ending_of

_T = TypeVar("_T")
_BLOCK = 1 << 14


def find_duplicates(root: Path, splits: Mapping[str, Sequence[Pair]]) -> list[str]:
    """Returns a message for each set of identical image files that lie in two splits, or have different masks.

    Files are compared by size, then by a few blocks, and as a whole only where these agree: of most data sets hardly
    anything is read. Images of one name in two splits that differ in their endings are compared by their pixels. An
    image saved anew under another name, or with other bytes in the same format, is not recognized.

    Args:
        root: The folder of the data.
        splits: The pairs of each split.
    """
    places: dict[str, list[tuple[str, Pair]]] = defaultdict(list)
    for split, pairs in splits.items():
        for pair in pairs:
            places[pair.image].append((split, pair))
    # An image that two splits name is not a copy, see the report of the files.
    messages = []
    split_of = {image: found[0][0] for image, found in places.items()}
    for images in [*_same_content(root, list(places)), *_same_pixels(root, split_of)]:
        found = [places[image][0] for image in images]
        if len({split for split, _ in found}) > 1:
            named = ", ".join(f"{pair.image} ({split})" for split, pair in found)
            messages.append(f"the same image in two splits: {named}; keep it in one")
            continue
        masks = sorted({pair.mask for _, pair in found if pair.mask is not None})
        if len(masks) > 1 and len(list(_groups(masks, lambda mask: _digest(root / mask)))) > 1:
            named = ", ".join(f"{pair.image} with {pair.mask}" for _, pair in found)
            messages.append(f"the same image with different masks: {named}; keep the right one")
    return messages


def _same_content(root: Path, files: Sequence[str]) -> Iterator[list[str]]:
    """Sets of files with the same content."""
    for same_size in _groups(files, lambda file: _size(root / file)):
        if len(same_size) > 1:
            for alike in _groups(same_size, lambda file: _sample(root / file)):
                if len(alike) > 1:
                    for same in _groups(alike, lambda file: _digest(root / file)):
                        if len(same) > 1:
                            yield same


def _same_pixels(root: Path, split_of: Mapping[str, str]) -> Iterator[list[str]]:
    """Sets of images in several splits with the same name, another ending and the same pixels."""
    for same_name in _groups(split_of, lambda file: picture_of(PurePosixPath(file).stem)):
        endings = {(split_of[file], ending_of(file)) for file in same_name}
        if len({split for split, _ in endings}) > 1 and len({ending for _, ending in endings}) > 1:
            for same in _groups(same_name, lambda file: _pixels(root / file)):
                if len({ending_of(file) for file in same}) > 1:
                    yield same


def _groups(items: Iterable[_T], key: Callable[[_T], Hashable]) -> Iterator[list[_T]]:
    grouped: dict[Hashable, list[_T]] = defaultdict(list)
    for item in items:
        grouped[key(item)].append(item)
    yield from grouped.values()


def _size(path: Path) -> Hashable:
    try:
        return path.stat().st_size
    except OSError:
        # What cannot be read is like nothing else; the check of the files names it.
        return str(path)


def _sample(path: Path) -> Hashable:
    """A digest of the beginning, the middle and the end of a file."""
    try:
        size = path.stat().st_size
        digest = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            for place in (0, size // 2, max(size - _BLOCK, 0)):
                file.seek(place)
                digest.update(file.read(_BLOCK))
        return digest.digest()
    except OSError:
        return str(path)


def _digest(path: Path) -> Hashable:
    try:
        return content_digest(path)
    except OSError:
        return str(path)


def _pixels(path: Path) -> Hashable:
    try:
        pixels = read_image(path, exif="ignore")
    except SampleError:
        return str(path)
    return pixels.shape, hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
