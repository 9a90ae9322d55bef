"""Reading image and mask files as arrays, with messages that name the file and the way out."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from aucseg.datasets.card import DatasetCard

_ORIENTATION_TAG = 0x0112
_LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000")
# What Pillow multiplies the values of 2- and 4-bit grey files by, to fill 0..255.
_GRAY_SCALE = {"L;2": 85, "L;4": 17}
_ENCODING_OF_MODE = {
    "1": "gray",
    "L": "gray",
    "P": "palette",
    "I;16": "gray16",
    "I;16B": "gray16",
    "I": "gray16",
    "RGB": "rgb",
}

Array = npt.NDArray[Any]
_T = TypeVar("_T")


class SampleError(ValueError):
    """A file of a data set cannot be used; the message names the file and the fix."""


def read_image(path: Path, exif: str = "error", data: bytes | None = None) -> npt.NDArray[np.uint8]:
    """Read an image as uint8 RGB.

    Args:
        path: JPEG, PNG or anything else that Pillow reads.
        exif: What to do with an orientation tag: ``error``, ``ignore``, ``apply``; see :class:`DatasetCard`.
        data: The bytes of the file where it is not on disk (a shard); ``path`` is then its name in messages.

    Returns:
        Writable uint8 array (H, W, 3).

    Raises:
        SampleError: Missing, truncated, oversized, 16-bit or rotated file.
    """
    with _open(path, data) as image:
        _check_depth(image, path)
        turned = _orientation(image, path, exif, _load(image, path, image.getexif)) != 1
        upright = _load(image, path, lambda: ImageOps.exif_transpose(image)) if turned else image
        return np.array(_load(upright, path, lambda: upright.convert("RGB")))


def check_image(path: Path, exif: str = "error", decode: bool = False) -> tuple[int, int]:
    """Return (height, width) of an image as :func:`read_image` gives it, from its header alone unless ``decode``.

    Raises:
        SampleError: As :func:`read_image`; damage beyond the header is found with ``decode`` only.
    """
    if decode:
        height, width, _ = read_image(path, exif).shape
        return height, width
    with _open(path) as image:
        _check_depth(image, path)
        # For tags behind the pixels of a PNG file Pillow would decode the pixels.
        read_tags = Image.Exif if image.format == "PNG" and "exif" not in image.info else image.getexif
        # Orientations from 5 on turn by a quarter.
        is_lying = _orientation(image, path, exif, _guard(path, read_tags)) >= 5
        return (image.width, image.height) if is_lying else (image.height, image.width)


def read_raw_mask(path: Path, card: DatasetCard, data: bytes | None = None) -> Array:
    """Read a mask as raw ids, the values that stand in the file.

    Returns:
        uint8 (grey, palette), uint16 (16 bits, MATLAB) or int32 (colours as ``65536 red + 256 green + blue``) array (H,
        W).

    Raises:
        SampleError: The file cannot be read, or is not encoded as the card says.
    """
    if card.mask_encoding == "mat":
        return _read_mat(path, card.mat_key, data)
    with _open(path, data) as image:
        if image.format in _LOSSY_FORMATS:
            raise SampleError(
                f"{path}: the mask is a {image.format} file, whose compression changes ids along every edge; "
                "make it again from its source as PNG"
            )
        encoding = encoding_of_mode(image.mode)
        if card.mask_encoding == "rgb":
            if image.mode not in ("RGB", "RGBA", "P"):
                raise SampleError(
                    f"{path}: the card says rgb masks, but this file has mode {image.mode}; set mask_encoding: "
                    f"{encoding}"
                )
            rgb = np.asarray(_load(image, path, lambda: image.convert("RGB"))).astype(np.int32)
            return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
        if encoding != card.mask_encoding:
            raise SampleError(_encoding_message(path, image.mode, encoding, card.mask_encoding))
        # Read before loading, which clears it.
        tiles = getattr(image, "tile", [])
        scale = _GRAY_SCALE.get(tiles[0][3] if tiles and image.format == "PNG" else "", 1)
        values: Array = _load(image, path, lambda: np.array(image))
        if card.check_palette:
            _check_palette(image, values, path, card)
    if image.mode == "1":
        return values.astype(np.uint8)
    if card.mask_encoding == "gray16":
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise SampleError(
                f"{path}: the mask holds ids from {values.min()} to {values.max()}; 16-bit masks hold 0..65535"
            )
        return values.astype(np.uint16)
    return values // scale if scale > 1 else values


def encoding_of_mode(mode: str) -> str | None:
    """Return the mask encoding that goes with a mode of Pillow, or None where none does."""
    return _ENCODING_OF_MODE.get(mode)


def mode_and_format(path: Path) -> tuple[str, str | None]:
    """Return Pillow's mode and format of an image file, from its header."""
    with _open(path) as image:
        return image.mode, image.format


def size_message(mask: Path, mask_size: tuple[int, ...], image: str, image_size: tuple[int, ...]) -> str:
    """Return the message about a mask that is not as large as its image."""
    return (
        f"{mask}: the mask is {mask_size[1]} x {mask_size[0]} (width x height), its image {image} is {image_size[1]} x "
        f"{image_size[0]}; pair them right in the card, or resize the mask (nearest neighbour)"
    )


def _open(path: Path, data: bytes | None = None) -> Image.Image:
    if data is None and not path.is_file():
        raise SampleError(f"{path}: there is no such file")
    try:
        return Image.open(path if data is None else io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SampleError(
            f"{path}: {error}. If the size is right, raise PIL.Image.MAX_IMAGE_PIXELS, or cut the image into tiles"
        ) from error
    except Exception as error:
        raise SampleError(f"{path}: not a readable image: {error}; fetch or export the file again") from error


def _load(image: Image.Image, path: Path, action: Callable[[], _T]) -> _T:
    _guard(path, image.load)
    return _guard(path, action)


def _guard(path: Path, action: Callable[[], _T]) -> _T:
    # Pillow's decoders raise many kinds of exceptions on damaged bytes (OSError, SyntaxError, struct.error, ...).
    try:
        return action()
    except Exception as error:
        raise SampleError(f"{path}: truncated or damaged: {error}; fetch or export the file again") from error


def _check_depth(image: Image.Image, path: Path) -> None:
    if image.mode.startswith(("I", "F")):
        raise SampleError(
            f"{path}: the image has mode {image.mode} (more than 8 bits a channel); convert it to 8 bits first, "
            "with the scaling that suits its sensor"
        )


def _orientation(image: Image.Image, path: Path, exif: str, tags: Image.Exif) -> int:
    """Return the orientation to apply, 1 for none."""
    orientation = int(tags.get(_ORIENTATION_TAG, 1))
    if exif == "error" and orientation != 1:
        raise SampleError(
            f"{path}: EXIF orientation {orientation}: the picture is shown turned or mirrored; set 'exif: ignore' in "
            "the card if its mask was drawn on the pixels as stored, 'exif: apply' if on the picture as shown"
        )
    return orientation if exif == "apply" and 1 <= orientation <= 8 else 1


def _read_mat(path: Path, key: str, data: bytes | None) -> Array:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError('MATLAB masks need scipy: pip install "aucseg[train]"') from error
    if data is None and not path.is_file():
        raise SampleError(f"{path}: there is no such file")
    try:
        values: Array = loadmat(path if data is None else io.BytesIO(data), variable_names=[key])[key]
    except KeyError as error:
        raise SampleError(f"{path}: the file holds no matrix {key!r}; set mat_key in the card") from error
    except Exception as error:
        raise SampleError(f"{path}: not a readable MATLAB file: {error}; fetch the file again") from error
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
        raise SampleError(
            f"{path}: {key!r} is no matrix of ids but {values.dtype} of shape {values.shape}; set mat_key in the card"
        )
    if (
        values.min(initial=0) < 0
        or values.max(initial=0) > 65535
        or not np.array_equal(values, values.astype(np.uint16))
    ):
        raise SampleError(f"{path}: the ids in {key!r} are not all whole numbers in 0..65535")
    return values.astype(np.uint16)


def _encoding_message(path: Path, mode: str, encoding: str | None, expected: str) -> str:
    if mode in ("RGB", "RGBA", "LA"):
        fix = "colours were baked in (set mask_encoding: rgb and the colours), or it is not a mask"
    elif encoding is None:
        fix = "save it as an 8-bit grey PNG"
    else:
        fix = f"if all files are like this one, set mask_encoding: {encoding}; else save it like the others"
    return f"{path}: the card says {expected} masks, but this file has mode {mode}: {fix}"


def _check_palette(image: Image.Image, values: Array, path: Path, card: DatasetCard) -> None:
    palette = np.array(image.getpalette("RGB") or []).reshape(-1, 3)
    color_of = {raw: card.palette[c] for c, ids in enumerate(card.raw_ids) for raw in ids}
    for raw in np.unique(values).tolist():
        if raw in color_of and (raw >= len(palette) or tuple(palette[raw].tolist()) != color_of[raw]):
            found = tuple(palette[raw].tolist()) if raw < len(palette) else None
            raise SampleError(
                f"{path}: index {raw} of the palette is {found}, not {color_of[raw]} as in the card: a program that "
                "re-saved the mask has reordered the palette, so its indices are no class ids any more; fetch the "
                "file again, or use mask_encoding: rgb"
            )
