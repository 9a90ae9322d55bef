"""Reading image files as arrays, with messages that name the file and the way out."""

from __future__ import annotations

import io
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

_ORIENTATION_TAG = 0x0112
_BITS_TAG, _WIDTH_TAG, _HEIGHT_TAG = 258, 256, 257
_KIND_OF_PAGE_TAG, _SMALLER_COPY, _MASK_OF_PAGE = 254, 1, 4
# Turns a picture as shown back to the pixels as stored; the others undo themselves.
_TURN_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

Array = npt.NDArray[Any]
_T = TypeVar("_T")

READ_BY_WINDOWS = "read it by windows (data.tile in a run, --tile of 'aucseg stats': 1024, for example)"
_limit_lock = threading.RLock()


class SampleError(ValueError):
    """A file of a data set cannot be used; the message names the file and the fix."""


def read_image(path: Path, exif: str = "error", data: bytes | None = None) -> npt.NDArray[np.uint8]:
    """Reads an image as uint8 RGB.

    Args:
        path: JPEG, PNG or anything else that Pillow reads.
        exif: What to do with an orientation tag: `error`, `ignore`, `apply`; see `DatasetCard`.
        data: The bytes of the file where it is not on disk (a shard); `path` is then its name in messages.

    Returns:
        Writable uint8 array (H, W, 3). Transparency is dropped, grey is repeated, a palette is looked up.

    Raises:
        SampleError: Missing, truncated, oversized or rotated file, or one with more than 8 bits a channel.
    """
    with open_image(path, data) as image:
        _check_depth(image, path)
        upright = load_oriented(image, path, exif)
        return np.array(guard(path, lambda: to_rgb(upright)))


def check_image(path: Path, exif: str = "error", decode: bool = False) -> tuple[int, int]:
    """Returns (height, width) of an image as `read_image` gives it, from its header alone unless `decode`.

    Raises:
        SampleError: As `read_image`; damage beyond the header is found with `decode` only.
    """
    if decode:
        height, width, _ = read_image(path, exif).shape
        return height, width
    with open_image(path) as image:
        _check_depth(image, path)
        orientation = guard(path, lambda: _orientation_in_header(image))
        _check_orientation(orientation, path, exif)
        width, height = _stored_size(image)
        # Orientations from 5 on turn by a quarter.
        return (width, height) if exif == "apply" and orientation >= 5 else (height, width)


def image_sizes(path: Path, data: bytes | None = None) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns (height, width) of the pixels as stored and of the picture as shown, from the header.

    Raises:
        SampleError: Missing, or not an image.
    """
    with without_pixel_limit(), open_image(path, data) as image:
        orientation = guard(path, lambda: _orientation_in_header(image))
        width, height = _stored_size(image)
    return (height, width), (width, height) if orientation >= 5 else (height, width)


def load_oriented(image: Image.Image, path: str | Path, exif: str) -> Image.Image:
    """Decodes an open image and turns it as `exif` says: `error`, `ignore` or `apply`.

    Pillow turns TIFF files itself when it decodes them, other containers not; orientations outside 2..8 mean no turn.

    Raises:
        SampleError: The file is damaged, or an orientation tag with `error`.
    """
    # The tag of a TIFF file is gone once it is decoded; that of a PNG file may stand behind its pixels.
    before = guard(path, lambda: _orientation_tag(image)) if image.format == "TIFF" else 1
    guard(path, image.load)
    is_turned = image.format == "TIFF" and _ORIENTATION_TAG not in getattr(image, "tag_v2", {})
    orientation = before if image.format == "TIFF" else guard(path, lambda: _valid(image.getexif()))
    _check_orientation(orientation, path, exif)
    if orientation == 1 or is_turned == (exif == "apply"):
        return image
    if exif == "apply":
        return guard(path, lambda: ImageOps.exif_transpose(image))
    return guard(path, lambda: image.transpose(_TURN_BACK[orientation]))


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image in mode RGB, by way of RGBA where Pillow would warn of a palette with transparency."""
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def bits_per_channel(image: Image.Image) -> int:
    """Returns how many bits a channel has in the file: Pillow opens colour images of 16 bits as if they had 8."""
    if image.mode.startswith(("I", "F")):
        return 16 if image.mode.startswith("I;16") else 32
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(_BITS_TAG, (8,))
        return int(max(bits)) if isinstance(bits, tuple) else int(bits)
    tiles = getattr(image, "tile", [])
    return 16 if image.format == "PNG" and tiles and str(tiles[0][3]).endswith(";16B") else 8


def size_message(mask: Path, mask_size: tuple[int, ...], image: str, image_size: tuple[int, ...]) -> str:
    """Returns the message about a mask that is not as large as its image."""
    return (
        f"{mask}: the mask is {mask_size[1]} x {mask_size[0]} (width x height), its image {image} is {image_size[1]} x "
        f"{image_size[0]}; pair them right in the card, or resize the mask (nearest neighbour)"
    )


def check_exists(path: Path) -> None:
    """Raises `SampleError` where there is no such file, only a link to none, or no permission to read it."""
    try:
        is_file = path.is_file()
    except PermissionError:  # of its folder
        is_file = True
    if is_file:
        if not os.access(path, os.R_OK):
            raise SampleError(f"{path}: no permission to read the file; allow it (chmod +r), or run as its owner")
        return
    if path.is_symlink():
        raise SampleError(
            f"{path}: a symbolic link to {os.readlink(path)}, where there is no file; fetch it (dvc pull, git annex "
            "get), or mount the disk"
        )
    raise SampleError(f"{path}: there is no such file")


def open_image(path: Path, data: bytes | None = None) -> Image.Image:
    """Opens an image file, or its bytes, by its header.

    Raises:
        SampleError: Missing, oversized, of several pages, or not an image.
    """
    if data is None:
        check_exists(path)
    try:
        image = Image.open(path if data is None else io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SampleError(
            f"{path}: {error}. If the size is right, {READ_BY_WINDOWS}, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except UnidentifiedImageError as error:  # its text names the file again, or the place of the bytes in memory
        is_empty = not (path.stat().st_size if data is None else data)
        what = "an empty file" if is_empty else "not a readable image"
        raise SampleError(f"{path}: {what}; {_way_out(path, data)}") from error
    except Exception as error:
        raise SampleError(f"{path}: not a readable image: {error}; {_way_out(path, data)}") from error
    try:
        check_pages(image, path)
    except SampleError:
        image.close()
        raise
    return image


def check_pages(image: Image.Image, path: str | Path) -> None:
    """Raises `SampleError` where a file just opened holds several images: a stack, or an animation.

    Smaller copies and masks of the first page of a TIFF file do not count, nor does the preview in a camera's JPEG.
    """
    refuse_pages(guard(path, lambda: _number_of_pages(image)), path)


def refuse_pages(num_pages: int, path: str | Path) -> None:
    """Raises `SampleError` for a file of more than one image."""
    if num_pages > 1:
        raise SampleError(
            f"{path}: holds {num_pages} images (pages, frames), of which only the first would be read; write each to a "
            "file of its own"
        )


def _number_of_pages(image: Image.Image) -> int:
    count = getattr(image, "n_frames", 1)
    if count == 1 or image.format in ("MPO", "PSD"):  # previews and layers of one picture
        return 1
    if image.format != "TIFF":
        return int(count)
    size, pages = _stored_size(image), 0
    for page in range(count):
        image.seek(page)
        kind = getattr(image, "tag_v2", {}).get(_KIND_OF_PAGE_TAG, 0)
        pages += _stored_size(image) == size and not kind & (_SMALLER_COPY | _MASK_OF_PAGE)
    image.seek(0)
    return pages


@contextmanager
def without_pixel_limit() -> Iterator[None]:
    """Lets Pillow open images of any size, for callers that do not decode them or have a limit of their own."""
    # Pillow's limit is global, and warns at one size and fails at another.
    with _limit_lock:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _way_out(path: Path, data: bytes | None) -> str:
    head = data[:64] if data is not None else b""
    if data is None:
        try:
            with path.open("rb") as file:
                head = file.read(64)
        except OSError:
            pass
    if head.startswith(b"version https://git-lfs"):
        return "it is a placeholder of Git LFS: run git lfs pull"
    return "fetch or export the file again"


def guard(path: str | Path, action: Callable[[], _T]) -> _T:
    """Returns what an action on a file returns; what it raises becomes `SampleError`.

    Pillow's decoders raise many kinds of exceptions on damaged bytes (OSError, SyntaxError, struct.error, ...).
    """
    try:
        return action()
    except SampleError:
        raise
    except Exception as error:
        raise SampleError(f"{path}: truncated or damaged: {error}; fetch or export the file again") from error


def _check_depth(image: Image.Image, path: Path) -> None:
    bits = bits_per_channel(image)
    if bits > 8:
        mode = image.mode if image.mode.startswith(("I", "F")) else f"{image.mode} with {bits} bits"
        raise SampleError(
            f"{path}: the image has mode {mode} (more than 8 bits a channel); convert it to 8 bits first, "
            "with the scaling that suits its sensor, or set 'bands' and 'value_range' in the card"
        )


def _check_orientation(orientation: int, path: str | Path, exif: str) -> None:
    if exif == "error" and orientation != 1:
        raise SampleError(
            f"{path}: EXIF orientation {orientation}: the picture is shown turned or mirrored; set 'exif: ignore' in "
            "the card if its mask was drawn on the pixels as stored, 'exif: apply' if on the picture as shown"
        )


def _valid(tags: Any) -> int:
    """The orientation among tags, 1 where there is none that turns the image."""
    value = tags.get(_ORIENTATION_TAG, 1)
    return value if isinstance(value, int) and 2 <= value <= 8 else 1


def _orientation_tag(image: Image.Image) -> int:
    return _valid(getattr(image, "tag_v2", {})) if image.format == "TIFF" else _valid(image.getexif())


def _orientation_in_header(image: Image.Image) -> int:
    """The orientation of an image that is not decoded."""
    if image.format != "PNG":
        return _orientation_tag(image)
    # The method of PNG files would decode the pixels for tags behind them.
    orientation = _valid(Image.Image.getexif(image))
    file = getattr(image, "fp", None)
    if orientation == 1 and "exif" not in image.info and file is not None:
        trailing = Image.Exif()
        trailing.load(b"Exif\0\0" + _last_exif_chunk(file))
        return _valid(trailing)
    return orientation


def _last_exif_chunk(file: Any) -> bytes:
    """The EXIF chunk of a PNG file, wherever it stands; empty where there is none."""
    place = file.tell()
    try:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            if kind == b"eXIf":
                return bytes(file.read(length))
            file.seek(length + 4, os.SEEK_CUR)
        return b""
    finally:
        file.seek(place)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the pixels as stored; for TIFF files Pillow says how they will be shown."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return int(tags.get(_WIDTH_TAG, image.width)), int(tags.get(_HEIGHT_TAG, image.height))
