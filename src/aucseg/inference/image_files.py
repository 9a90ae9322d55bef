"""Image files to predict: which there are, and their pixels as 8-bit RGB."""

import itertools
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from aucseg.datasets.bands import open_raster
from aucseg.datasets.deep_color import read_deep_color
from aucseg.datasets.files import (
    SampleError,
    bits_per_channel,
    check_exists,
    check_pages,
    load_oriented,
    to_rgb,
    without_pixel_limit,
)
from aucseg.datasets.tree import IMAGE_ENDINGS, Tree, ending_of, is_hidden, is_system_file

Array = npt.NDArray[Any]

# The least white of integers in 16 bits that are taken for such without being told.
_LEAST_WHITE = 1 << 14


class ImageError(ValueError):
    """A file cannot be read as an image; the message names it and the way out."""


def find_images(inputs: Iterable[str | Path], *, exclude: Path | None = None) -> list[Path]:
    """Finds the image files that files, folders (with their subfolders) and glob patterns stand for.

    Args:
        inputs: Files of any name, folders, and patterns such as `"photos/**/*.jpg"`. In folders the files named like
            images count. Hidden files, and those that a system makes beside a user's (`._x.png`, `Thumbs.db`), are
            left out.
        exclude: A folder to leave out, such as the one that predictions are written to.

    Returns:
        Files, sorted within each input, each once, whether its path is given as relative or absolute.

    Raises:
        FileNotFoundError: An input stands for no file.

    Example:
        >>> find_images(["no/such/*.png"])
        Traceback (most recent call last):
        ...
        FileNotFoundError: no image found for 'no/such/*.png'
    """
    found: dict[Path, Path] = {}
    for entry in inputs:
        path = Path(entry)
        if path.is_file() or _is_dead_link(path):
            matches = [] if is_system_file(path.name) else [path]
        elif path.is_dir():
            matches = [path / name for name in Tree(path).files(IMAGE_ENDINGS)]
        else:
            # Unlike glob.glob, "**" does not follow links, which may lead in circles.
            top = Path(path.anchor)
            matches = sorted(p for p in top.glob(str(path.relative_to(top))) if _is_data(p, _fixed_part(path)))
        if exclude is not None:
            matches = [p for p in matches if not p.resolve().is_relative_to(exclude.resolve())]
        if not matches and not is_system_file(path.name):
            raise FileNotFoundError(f"no image found for {str(entry)!r}")
        for match in matches:
            found.setdefault(absolute_path(match), match)
    return list(found.values())


def absolute_path(path: Path) -> Path:
    """Returns the absolute path of a file without `..`; links stay, except where `..` leads back from them.

    Example:
        >>> absolute_path(Path("/data/work/../raw/a.png")).as_posix()
        '/data/raw/a.png'
    """
    if ".." not in path.parts:
        return path.absolute()
    plain, real = Path(os.path.abspath(path)), Path(os.path.realpath(path.parent), path.name)
    # Behind a link `..` is another folder on disk than in the text.
    return plain if os.path.realpath(plain.parent) == str(real.parent) else real


def _is_data(path: Path, folder: Path) -> bool:
    return (path.is_file() or _is_dead_link(path)) and not any(
        is_hidden(part) for part in path.relative_to(folder).parts
    )


def _is_dead_link(path: Path) -> bool:
    """Whether a file is elsewhere and not there: an image without a prediction, of which `errors.csv` tells."""
    return path.is_symlink() and not path.exists()


def _fixed_part(pattern: Path) -> Path:
    """The folders of a pattern before its first wildcard."""
    fixed = itertools.takewhile(lambda part: not set("*?[") & set(part), pattern.parts[:-1])
    return Path(*fixed)


def read_photo(
    path: str | Path,
    *,
    exif: Literal["apply", "ignore"] = "apply",
    value_range: tuple[float, float] | None = None,
    max_pixels: int = 2**30,
) -> npt.NDArray[np.uint8]:
    """Reads an image file as 8-bit RGB.

    Args:
        path: PNG, JPEG, TIFF or anything else that Pillow reads.
        exif: Whether to turn the image as its EXIF orientation says.
        value_range: Values that become 0 and 255 in images with more than 8 bits a channel, grey or colour. Default:
            0..65535 for integers; float images need it, and images whose values stay below 2^14, which are data of 12
            or 14 bits as a rule. It does not apply to images of 8 bits.
        max_pixels: Refuse larger images, which a small file can pretend to hold.

    Returns:
        `(H, W, 3)` uint8. Transparency is dropped, grey is repeated, a palette is looked up.

    Raises:
        ImageError: The file is missing, damaged, no image, too large, of several pages (a stack, an animation), holds
            NaN, or needs `value_range`.
    """
    return read_with_bits(path, exif, value_range, max_pixels)[0]


def read_with_bits(
    path: str | Path, exif: str, value_range: tuple[float, float] | None, max_pixels: int
) -> tuple[npt.NDArray[np.uint8], int]:
    """The pixels of an image, and the bits of a channel in its file."""
    with without_pixel_limit():
        try:
            check_exists(Path(path))
            with Image.open(path) as file:
                if file.width * file.height > max_pixels:
                    raise ImageError(f"{path}: more than {max_pixels} pixels; raise max_pixels if that is right")
                check_pages(file, path)
                bits = bits_per_channel(file)
                is_gray = file.mode.startswith(("I", "F"))
                if bits > 8 and not is_gray:
                    return _to_8_bits(read_deep_color(path, exif), path, value_range), bits
                image = load_oriented(file, path, exif)
                return (_to_8_bits(np.asarray(image), path, value_range) if is_gray else np.array(to_rgb(image))), bits
        except ImageError:
            raise
        except SampleError as error:
            raise ImageError(str(error)) from error
        except UnidentifiedImageError as error:
            raise ImageError(f"{path}: {_bands_of(Path(path)) or 'not a readable image'}") from error
        except Exception as error:  # decoders fail in many ways on damaged bytes
            raise ImageError(f"{path}: not a readable image: {str(error).removeprefix(f'{path}: ')}") from error


def _bands_of(path: Path) -> str | None:
    """What to say of an image whose bands Pillow does not take for colours; None for any other file."""
    if ending_of(path.name) not in (".tif", ".tiff") or find_spec("rasterio") is None:
        return None
    try:
        with open_raster(path) as raster:
            bands = f"{raster.count} bands of {raster.dtypes[0]}"
    except SampleError:
        return None
    return (
        f"{bands}, which are not read as colours: save them as RGB, or train with a card that names its bands "
        "('bands:', see docs/data.md)"
    )


def _to_8_bits(values: Array, path: str | Path, value_range: tuple[float, float] | None) -> npt.NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise ImageError(f"{path}: holds values that are not numbers (NaN, infinity); fill these pixels first")
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if value_range is None:
        # Data of 12 or 14 bits in a file of 16 would become an almost black image.
        if values.dtype.kind == "f" or low < 0 or high > 65535 or 0 < high < _LEAST_WHITE:
            raise ImageError(
                f"{path}: values from {low:g} to {high:g}; "
                "say which of them are black and white: value_range, --value-range LOW HIGH"
            )
        value_range = (0, 65535)
    black, white = value_range
    scaled = ((values.astype(np.float64) - black) * (255 / (white - black))).clip(0, 255).round().astype(np.uint8)
    return scaled if scaled.ndim == 3 else np.repeat(scaled[..., None], 3, axis=2)
