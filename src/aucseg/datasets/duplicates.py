"""Images that are there twice: in two splits, or in one with different masks."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from aucseg.datasets.bands import PLAIN_CARD, check_card_image, read_card_image
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.files import SampleError
from aucseg.datasets.mask_files import read_raw_mask
from aucseg.datasets.naming import picture_of
from aucseg.datasets.pairing import Pair
from aucseg.datasets.scan_cache import ScanCache, Signature, content_digest, digest_of
from aucseg.datasets.tree import ending_of

_T = TypeVar("_T")
_BLOCK = 1 << 14
# Most images that are decoded unasked, and most pixels of all of them, a second or two; most pixels of one image.
_MAX_IMAGES = 4096
_MAX_PIXELS = 2**26


def find_duplicates(
    root: Path,
    splits: Mapping[str, Sequence[Pair]],
    card: DatasetCard | None = None,
    *,
    held_out: bool = False,
    decode: bool = False,
    cache: ScanCache | None = None,
    num_threads: int = 1,
) -> list[str]:
    """Returns a message for each set of identical images that lie in two splits, or may, or have different masks.

    Files are compared by size, then by a few blocks, and as a whole only where these agree: of most data sets hardly
    anything is read. Images of one height and width are compared by their pixels as well, as they are stored, so that
    an image that was saved again without loss is found under any name: where the images are few, or with `decode`;
    else only those of one name in two splits that differ in their endings.

    Args:
        root: The folder of the data.
        splits: The pairs of each split.
        card: Says how images and masks are read; None for RGB.
        held_out: Whether training images are to be held out, so that copies in one split may be parted, too.
        decode: Whether to decode all images, however many there are.
        cache: Digests of pixels of earlier runs, which are used and added to.
        num_threads: Threads that decode.
    """
    places: dict[str, list[tuple[str, Pair]]] = defaultdict(list)
    for split, pairs in splits.items():
        for pair in pairs:
            places[pair.image].append((split, pair))
    # An image that two splits name is not a copy, see the report of the files.
    messages = []
    copies = list(_same_content(root, list(places)))
    of_copies = {image for images in copies for image in images[1:]}
    split_of = {image: found[0][0] for image, found in places.items() if image not in of_copies}
    pixels = _Pixels(root, card, cache)
    for images in [*copies, *_same_pixels(pixels, split_of, decode, num_threads)]:
        found = [places[image][0] for image in images]
        if len({split for split, _ in found}) > 1:
            named = ", ".join(f"{pair.image} ({split})" for split, pair in found)
            messages.append(f"the same image in two splits: {named}; keep it in one")
            continue
        masks = sorted({pair.mask for _, pair in found if pair.mask is not None})
        if len(masks) > 1 and len(list(_groups(masks, pixels.of_mask))) > 1:
            named = ", ".join(f"{pair.image} with {pair.mask}" for _, pair in found)
            messages.append(f"the same image with different masks: {named}; keep the right one")
        elif held_out:
            named = ", ".join(pair.image for _, pair in found)
            messages.append(f"the same image {len(found)} times: {named}; keep one, or a copy may be validated on")
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


def _same_pixels(pixels: _Pixels, split_of: Mapping[str, str], decode: bool, num_threads: int) -> Iterator[list[str]]:
    """Sets of images with the same pixels in files that differ."""
    candidates = _candidates(pixels, split_of, decode)
    if candidates is None:
        candidates = []
        for same_name in _groups(split_of, lambda file: picture_of(PurePosixPath(file).stem)):
            endings = {(split_of[file], ending_of(file)) for file in same_name}
            if len({split for split, _ in endings}) > 1 and len({ending for _, ending in endings}) > 1:
                candidates += same_name
    # Decoders let other threads work.
    with ThreadPoolExecutor(max(1, num_threads)) as threads:
        digests = dict(zip(candidates, threads.map(pixels.of_image, candidates), strict=True))
    pixels.keep(digests)
    for same in _groups(candidates, lambda file: digests[file]):
        if len(same) > 1:
            yield same


def _candidates(pixels: _Pixels, files: Iterable[str], decode: bool) -> list[str] | None:
    """The images that share height and width with others; None where it would take too long to decode them."""
    images = list(files)
    if len(images) > _MAX_IMAGES and not decode:
        return None
    of_size: dict[tuple[int, int], list[str]] = defaultdict(list)
    num_pixels = 0
    for image in images:
        size = pixels.size(image)
        # A large raster is compared by its bytes alone.
        if size is None or size[0] * size[1] > _MAX_PIXELS:
            continue
        same = of_size[size]
        same.append(image)
        num_pixels += size[0] * size[1] * {1: 0, 2: 2}.get(len(same), 1)
        if num_pixels > _MAX_PIXELS and not decode:
            return None
    return [image for same in of_size.values() if len(same) > 1 for image in same]


class _Pixels:
    """Sizes and digests of the pixels of images and masks; what cannot be read is like nothing else."""

    def __init__(self, root: Path, card: DatasetCard | None, cache: ScanCache | None) -> None:
        self.root = root
        # Rasters are compared as they are stored, whatever the orientation tag says.
        self.card = replace(card or PLAIN_CARD, exif="ignore")
        self.cache = cache
        self._kind = f"pixels {self.card.bands} {self.card.value_range}"
        self._known: dict[str, str] = {}

    def size(self, image: str) -> tuple[int, int] | None:
        """Height and width as stored; notes what the cache knows, which threads cannot ask."""
        path = self.root / image
        try:
            signature = None if self.cache is None else Signature.of(path)
            if self.cache is not None and signature is not None:
                payload = self.cache.known(path, signature, self._kind)
                if payload is not None:
                    self._known[image] = payload.decode()
            return check_card_image(path, self.card)
        except (SampleError, OSError):
            return None

    def of_image(self, image: str) -> str:
        """A digest of the pixels."""
        if image in self._known:
            return self._known[image]
        try:
            values, _ = read_card_image(self.root / image, self.card)
        except (SampleError, OSError):
            return image
        return f"{values.shape} {digest_of(np.ascontiguousarray(values).data)}"

    def of_mask(self, mask: str) -> Hashable:
        """A digest of the ids, or of the file where they cannot be read."""
        path = self.root / mask
        try:
            values = read_raw_mask(path, self.card)
        except (SampleError, OSError):
            return _digest(path)
        return values.shape, digest_of(np.ascontiguousarray(values).data)

    def keep(self, digests: Mapping[str, str]) -> None:
        """Puts digests into the cache."""
        if self.cache is None:
            return
        for image, digest in digests.items():
            signature = Signature.of(self.root / image)
            if image not in self._known and digest != image and signature is not None:
                known = f"part of {(self.root / image).absolute()} {signature}"
                self.cache.add(self.root / image, signature, known, self._kind, digest.encode())
        self.cache.commit()


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
