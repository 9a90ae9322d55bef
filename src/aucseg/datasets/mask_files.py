"""Reading mask files as raw ids: only where it is certain which ids they hold."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aucseg.datasets.card import DatasetCard
from aucseg.datasets.deep_color import with_arguments
from aucseg.datasets.files import (
    Array,
    SampleError,
    bits_per_channel,
    check_exists,
    guard,
    load_oriented,
    open_image,
    to_rgb,
    without_pixel_limit,
)
from aucseg.datasets.tree import ending_of
from aucseg.hints import import_extra

_LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "AVIF", "HEIF")
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp", "jp2k")
# What Pillow multiplies the values of 2- and 4-bit grey files by, to fill 0..255.
_GRAY_SCALE = {"L;2": 85, "L;4": 17}
_WHITE_TAG, _SAMPLE_FORMAT_TAG = 262, 339
_ENCODING_OF_MODE = {
    "1": "gray",
    "L": "gray",
    "LA": "gray",
    "P": "palette",
    "PA": "palette",
    "I": "gray16",
    "F": "gray16",
    "RGB": "rgb",
    "RGBA": "rgb",
}
_NO_MASK = "save it as an 8-bit grey PNG whose values are the ids"
_TOO_DEEP = f"the mask has 16 bits a channel, of which 8 would be lost; {_NO_MASK}"


@dataclass(frozen=True)
class RawMask:
    """A mask as it stands in its file.

    Attributes:
        pixels: The values, or a decoded image of mode L or P that holds them.
        palette: uint8 (N, 3), the colours of the indices of a palette file; else None.
    """

    pixels: Array | Image.Image
    palette: Array | None = None

    @property
    def values(self) -> Array:
        """The ids (H, W): uint8 (grey, palette), uint16 (16 bits), int32 (`65536 red + 256 green + blue`)."""
        return self.pixels if isinstance(self.pixels, np.ndarray) else np.array(self.pixels)


def read_raw_mask(path: Path, card: DatasetCard, data: bytes | None = None) -> Array:
    """Reads a mask as raw ids, the values that stand in the file; see `read_mask`."""
    return read_mask(path, card, data).values


def read_mask(path: Path, card: DatasetCard, data: bytes | None = None) -> RawMask:
    """Reads a mask as raw ids and, where it has one, its palette.

    Args:
        path: Image that Pillow reads, `.npy` array, or MATLAB file.
        card: Says how the ids are encoded.
        data: The bytes of the file where it is not on disk (a shard).

    Raises:
        SampleError: The file cannot be read, is compressed with loss, or is not encoded as the card says.
    """
    if card.mask_encoding == "mat":
        return RawMask(_read_mat(path, card.mat_key, data))
    if ending_of(path.name) == ".npy":
        return RawMask(_read_npy(path, card.mask_encoding, data))
    with open_image(path, data) as image:
        container = lossy_container(image, path, data)
        if container is not None:
            raise SampleError(
                f"{path}: the mask is a {container} file, whose compression changes ids along every edge; "
                "make it again from its source as PNG"
            )
        encoding = encoding_of_mode(image.mode)
        if encoding != card.mask_encoding and not (card.mask_encoding == "rgb" and encoding == "palette"):
            raise SampleError(encoding_message(path, image.mode, encoding, card.mask_encoding))
        if card.mask_encoding != "gray16" and bits_per_channel(image) > 8:
            raise SampleError(f"{path}: {_TOO_DEEP}")
        _check_white(image, path)
        _keep_values_of_pnm(image, path)
        # Read before loading, which clears them.
        scale, is_signed = _gray_scale(image), _is_signed(image)
        loaded = load_oriented(image, path, card.exif)
        if card.mask_encoding == "rgb":
            return RawMask(guard(path, lambda: _packed_colors(loaded, path)))
        if is_signed:
            whole_numbers(np.array(loaded).view(np.int8), path, "the mask")
        return _read_ids(loaded, path, card, scale)


def _check_white(image: Image.Image, path: Path) -> None:
    """Refuses files in which 0 is white: programs differ in which ids they give."""
    is_white = image.mode == "1" if image.format == "PPM" else _tiff_tag(image, _WHITE_TAG) == 0
    if is_white:
        raise SampleError(f"{path}: white is stored as 0, so it is not certain which ids are meant; {_NO_MASK}")


def _keep_values_of_pnm(image: Image.Image, path: Path) -> None:
    """Lets Pillow give the values of a PGM or PPM file, which it scales from the file's own maximum otherwise."""
    tiles: list[Any] = getattr(image, "tile", [])
    if image.format != "PPM" or tiles[0][0] == "raw":
        return
    mode, maximum = tiles[0][3]
    if maximum > 255 and mode == "RGB":
        raise SampleError(f"{path}: {_TOO_DEEP}")
    tiles[0] = with_arguments(tiles[0], (mode, 255 if maximum < 256 else 65535))


def _gray_scale(image: Image.Image) -> int:
    """What Pillow multiplies the values of an image that is not decoded by."""
    tiles: list[Any] = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    raw_mode = arguments[0] if isinstance(arguments, tuple) else arguments
    # Behind the bits of TIFF files stands their order.
    return _GRAY_SCALE.get(str(raw_mode)[:3], 1)


def _is_signed(image: Image.Image) -> bool:
    """Whether a file holds whole numbers of 8 bits with a sign, which Pillow reads without it."""
    return image.mode == "L" and _tiff_tag(image, _SAMPLE_FORMAT_TAG) == (2,)


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    return getattr(image, "tag_v2", {}).get(tag) if image.format == "TIFF" else None


def _read_ids(image: Image.Image, path: Path, card: DatasetCard, scale: int) -> RawMask:
    if image.mode == "L" and scale == 1 and card.mask_encoding == "gray":
        return RawMask(image)
    if image.mode == "P" and not card.check_palette:
        return RawMask(image, _palette(image))
    values: Array = guard(path, lambda: np.array(image))
    if card.mask_encoding == "gray16":
        return RawMask(whole_numbers(values, path, "the mask"))
    if image.mode == "1":
        return RawMask(values.astype(np.uint8))
    if values.ndim == 3:
        values = _without_alpha(values[..., 0], values[..., 1], path)
    if card.mask_encoding == "palette":
        palette = _palette(image)
        if card.check_palette:
            check_palette(palette, values, path, card)
        return RawMask(values, palette)
    return RawMask(values // scale if scale > 1 else values)


def _palette(image: Image.Image) -> Array:
    return np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)


def _packed_colors(image: Image.Image, path: Path) -> Array:
    if image.mode == "RGBA":
        rgba = np.asarray(image)
        return _without_alpha(pack_colors(rgba), rgba[..., 3], path)
    return pack_colors(np.asarray(to_rgb(image)))


def pack_colors(colors: Array) -> Array:
    """Returns the ids `65536 red + 256 green + blue` of colours (..., 3 or 4)."""
    parts = colors.astype(np.int32)
    packed: Array = parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2]
    return packed


def _without_alpha(values: Array, alpha: Array, path: Path) -> Array:
    """The ids, where transparency leaves no doubt about them."""
    is_clear = alpha != 255
    if not is_clear.any():
        return values
    hidden = np.unique(values[is_clear])
    if alpha[is_clear].any():
        reason = "some pixels are half transparent"
    elif len(hidden) > 1:
        reason = "its transparent pixels hold several values"
    elif (values[~is_clear] == hidden[0]).any():
        reason = "its transparent pixels hold a value that others hold too"
    else:
        return values
    raise SampleError(
        f"{path}: {reason}, so what they mean is not certain; give the transparent pixels an id of their own and save "
        "the mask without transparency"
    )


def encoding_of_mode(mode: str) -> str | None:
    """Returns the mask encoding that goes with a mode of Pillow, or None where none does."""
    return "gray16" if mode.startswith("I;16") else _ENCODING_OF_MODE.get(mode)


def mode_and_format(path: Path) -> tuple[str, str | None]:
    """Returns Pillow's mode and format of an image file, from its header; those that go with it of an `.npy` file."""
    if ending_of(path.name) == ".npy":
        shape, dtype = _checked_header(path, None)
        if len(shape) == 3 and shape[-1] == 3:
            return "RGB", "NPY"
        modes = {"b": "1", "u": "L" if dtype.itemsize == 1 else "I;16", "i": "I"}
        return modes.get(dtype.kind, "F"), "NPY"
    with without_pixel_limit(), open_image(path) as image:
        return image.mode, lossy_container(image, path, None) or image.format


def lossy_container(image: Image.Image, path: Path, data: bytes | None) -> str | None:
    """Returns the name of the lossy compression of an open image file, or None where the pixels are as they were."""
    if image.format in _LOSSY_FORMATS:
        return image.format
    if image.format == "TIFF" and image.info.get("compression") in _LOSSY_TIFF:
        return f"TIFF with {image.info['compression']} compression"
    if image.format == "WEBP" and b"VP8 " in _chunks(path.read_bytes() if data is None else data):
        return "lossy WEBP"
    return None


def _chunks(webp: bytes) -> list[bytes]:
    """The kinds of the chunks of a WebP file, those of its frames included."""
    kinds, place = [], 12
    while place + 8 <= len(webp):
        kind, length = struct.unpack("<4sI", webp[place : place + 8])
        kinds.append(kind)
        # A frame has 16 bytes of its own, and chunks in it.
        place += 24 if kind == b"ANMF" else 8 + length + length % 2
    return kinds


def encoding_message(path: Path, mode: str, encoding: str | None, expected: str) -> str:
    """Returns the message about a mask of another encoding than the card says."""
    if encoding is None:
        fix = _NO_MASK
    elif encoding == "rgb":
        fix = "colours were baked in (set mask_encoding: rgb and the colours), or it is not a mask"
    else:
        fix = f"if all files are like this one, set mask_encoding: {encoding}; else save it like the others"
    return f"{path}: the card says {expected} masks, but this file has mode {mode}: {fix}"


def check_palette(palette: Array, values: Array, path: Path, card: DatasetCard) -> None:
    """Raises `SampleError` where an index that occurs does not have the card's colour."""
    color_of = {raw: card.palette[c] for c, ids in enumerate(card.raw_ids) for raw in ids}
    for raw in np.unique(values).tolist():
        if raw in color_of and (raw >= len(palette) or tuple(palette[raw].tolist()) != color_of[raw]):
            found = tuple(palette[raw].tolist()) if raw < len(palette) else None
            raise SampleError(
                f"{path}: index {raw} of the palette is {found}, not {color_of[raw]} as in the card: a program that "
                "re-saved the mask has reordered the palette, so its indices are not class ids any more; fetch the "
                "file again, or use mask_encoding: rgb"
            )


def whole_numbers(values: Array, path: Path, what: str) -> Array:
    """Returns ids as uint16; `SampleError` where they are not whole numbers in 0..65535."""
    if values.size and not np.isfinite(values).all():
        raise SampleError(f"{path}: {what} holds values that are not numbers (NaN); give those pixels an id to ignore")
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0:
        raise SampleError(
            f"{path}: {what} holds ids from {low} to {high}, but none may be negative: give these pixels another id, "
            "65535 or 255, and list it in ignore_ids"
        )
    if high > 65535:
        raise SampleError(
            f"{path}: {what} holds ids from {low} to {high}; 16-bit masks hold 0..65535: give the classes smaller ids"
        )
    whole: Array = values.astype(np.uint16)
    if not np.array_equal(values, whole):
        raise SampleError(f"{path}: the ids in {what} are not all whole numbers in 0..65535")
    return whole


def npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in an open `.npy` file, which is then at its first number.

    Raises:
        ValueError: There is no such header.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _checked_header(path: Path, data: bytes | None) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array file that holds as many bytes as its header says."""
    if data is None:
        check_exists(path)
    try:
        with io.BytesIO(data) if data is not None else path.open("rb") as file:
            shape, dtype = npy_header(file)
            start = file.tell()
            length = file.seek(0, io.SEEK_END) - start
    except Exception as error:
        raise SampleError(f"{path}: not a readable array file: {error}; write it again with numpy.save") from error
    if dtype.hasobject or length != int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise SampleError(f"{path}: the array file does not hold the numbers that it says; write it again")
    return shape, dtype


def _read_npy(path: Path, encoding: str, data: bytes | None) -> Array:
    _checked_header(path, data)
    return npy_ids(np.load(path if data is None else io.BytesIO(data), allow_pickle=False), path, encoding)


def npy_memory_map(path: Path) -> Array:
    """Returns the array of an `.npy` file without reading it."""
    _checked_header(path, None)
    values: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return values


def is_map_shape(shape: tuple[int, ...]) -> bool:
    """Whether an array has a value for each pixel, (H, W), perhaps with an axis of 1 before or behind."""
    return len(shape) == 2 or (len(shape) == 3 and 1 in (shape[0], shape[-1]))


def npy_ids(values: Array, path: Path, encoding: str) -> Array:
    """Returns the ids in the array of an `.npy` file."""
    shape, dtype = values.shape, values.dtype
    if encoding == "rgb" and len(shape) == 3 and shape[-1] == 3 and dtype == np.uint8:
        return pack_colors(values)
    squeezed = values.squeeze() if values.ndim == 3 and is_map_shape(shape) else values
    if squeezed.ndim != 2 or dtype.kind not in "buif" or encoding not in ("gray", "gray16"):
        raise SampleError(
            f"{path}: an array of {dtype} with shape {shape} is not a {encoding} mask; save the ids as whole numbers "
            "in shape (height, width)"
        )
    whole = whole_numbers(squeezed, path, "the array")
    if encoding == "gray16":
        return whole
    if whole.max(initial=0) > 255:
        raise SampleError(f"{path}: the ids reach {whole.max()}; set mask_encoding: gray16")
    return whole.astype(np.uint8)


def _read_mat(path: Path, key: str, data: bytes | None) -> Array:
    loadmat = import_extra("scipy.io", "train").loadmat
    if data is None:
        check_exists(path)
    try:
        values: Array = loadmat(path if data is None else io.BytesIO(data), variable_names=[key])[key]
    except KeyError as error:
        raise SampleError(f"{path}: the file holds no matrix {key!r}; set mat_key in the card") from error
    except Exception as error:
        raise SampleError(f"{path}: not a readable MATLAB file: {error}; fetch the file again") from error
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
        raise SampleError(
            f"{path}: {key!r} is not a matrix of ids but {values.dtype} of shape {values.shape}; "
            "set mat_key in the card"
        )
    return whole_numbers(values, path, repr(key))
