"""Colours of classes and of pixels: packed to one number, and a colour for each class that has none."""

from __future__ import annotations

from collections.abc import Sequence


def pack_color(color: Sequence[int]) -> int:
    """Returns the raw id `65536 red + 256 green + blue` of a colour.

    Example:
        >>> pack_color((1, 2, 3)), unpack_color(66051)
        (66051, (1, 2, 3))
    """
    return color[0] << 16 | color[1] << 8 | color[2]


def unpack_color(raw_id: int) -> tuple[int, int, int]:
    """Returns the colour of a raw id, the inverse of `pack_color`."""
    return raw_id >> 16, raw_id >> 8 & 255, raw_id & 255


def default_color(class_id: int) -> tuple[int, int, int]:
    """Returns the colour of an id in the Pascal VOC colour map: its bits dealt out to the top bits of the channels.

    Example:
        >>> default_color(1), default_color(15)
        ((128, 0, 0), (192, 128, 128))
    """
    red = green = blue = 0
    for bit in range(8):
        red |= (class_id >> 3 * bit & 1) << 7 - bit
        green |= (class_id >> 3 * bit + 1 & 1) << 7 - bit
        blue |= (class_id >> 3 * bit + 2 & 1) << 7 - bit
    return red, green, blue
