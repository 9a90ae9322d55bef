"""Pictures as compact data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Color = tuple[int, int, int]
# Long side of an embedded picture, in pixels: sharp enough on a phone, small enough for dozens in a page.
MAX_SIDE = 480


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _fitted_size(array: NDArray[Any], max_side: int) -> tuple[int, int]:
    height, width = array.shape[:2]
    factor = min(1.0, max_side / max(height, width))
    return max(1, round(width * factor)), max(1, round(height * factor))


def photo_uri(image: NDArray[np.uint8], max_side: int = MAX_SIDE) -> str:
    """A photograph as JPEG, its long side at most `max_side`."""
    picture = Image.fromarray(image)
    size = _fitted_size(image, max_side)
    return _uri(picture.resize(size, Image.Resampling.LANCZOS) if size != picture.size else picture, "JPEG", quality=82)


def labels_uri(labels: NDArray[Any], palette: Sequence[Color], max_side: int = MAX_SIDE) -> str:
    """Class ids (H, W) as a palette PNG in the classes' colours; ids outside 0..K-1 are transparent."""
    width, height = _fitted_size(labels, max_side)
    # Nearest neighbour: labels must not be mixed.
    rows = (np.arange(height) * labels.shape[0]) // height
    columns = (np.arange(width) * labels.shape[1]) // width
    ids, index = np.unique(labels[np.ix_(rows, columns)], return_inverse=True)
    index = index.reshape(height, width)
    colors = np.array([palette[i] if 0 <= i < len(palette) else (0, 0, 0) for i in ids.tolist()], dtype=np.uint8)
    alphas = np.array([255 if 0 <= i < len(palette) else 0 for i in ids.tolist()], dtype=np.uint8)
    if len(ids) > 256:  # more classes in one picture than a palette holds
        return _uri(Image.fromarray(np.dstack([colors[index], alphas[index]])), "PNG")
    picture = Image.fromarray(index.astype(np.uint8), "L")
    picture.putpalette(colors.tobytes())
    return _uri(picture, "PNG", transparency=alphas.tobytes())


def outline_uri(region: NDArray[np.bool_], max_side: int = MAX_SIDE) -> str:
    """A yellow line with a dark edge around a region (H, W), transparent elsewhere, drawn outside of the region."""
    height, width = region.shape
    # Small images are enlarged, so that the line hides less of what it surrounds.
    factor = max(1, max_side // max(height, width))
    large = region.repeat(factor, axis=0).repeat(factor, axis=1)
    inner = _dilate(large, 2)
    outer = _dilate(inner, 1)
    labels = np.where(large, 2, np.where(inner, 0, np.where(outer, 1, 2)))
    return labels_uri(labels, [(240, 228, 66), (0, 0, 0)], max(max_side, *large.shape[:2]))


def _dilate(region: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    padded = np.pad(region, radius)
    height, width = region.shape
    grown = np.zeros_like(region)
    for row in range(2 * radius + 1):
        for column in range(2 * radius + 1):
            grown |= padded[row : row + height, column : column + width]
    return grown


def distinct_palette(palette: Sequence[Color]) -> list[Color]:
    """The palette with repeated colours moved by the least step, so that a colour tells its class.

    Example:
        >>> distinct_palette([(0, 0, 0), (0, 0, 0), (0, 0, 255), (0, 0, 255)])
        [(0, 0, 0), (0, 0, 1), (0, 0, 255), (0, 1, 0)]
    """
    taken: set[int] = set()
    distinct: list[Color] = []
    for red, green, blue in palette:
        code = red << 16 | green << 8 | blue
        while code in taken:
            code = (code + 1) % (1 << 24)
        taken.add(code)
        distinct.append((code >> 16, code >> 8 & 255, code & 255))
    return distinct


def css_color(color: Color) -> str:
    """A colour as CSS writes it.

    Example:
        >>> css_color((255, 128, 0))
        '#ff8000'
    """
    return "#" + "".join(f"{part:02x}" for part in color)
