"""A picture of some images beside their masks, to check them by eye."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from aucseg.datasets.files import Array, SampleError, guard, load_oriented, open_image, to_rgb

_TILE = 320
_COLUMNS = 3
_LINE = 18
_MARGIN = 12
_GAP = 4
_WIDTH = 2 * _TILE + _GAP
_LEGEND_WIDTH = 240
# Pixels that a letter takes at most, as a rule.
_LETTER = 7
_GROUND = (32, 32, 32)
_IGNORED = (255, 255, 255)


@dataclass(frozen=True)
class SheetEntry:
    """An image and its mask.

    Attributes:
        image: Path of the image.
        mask: Path of the mask.
        title: What is written above.
    """

    image: Path
    mask: Path
    title: str


def choose(classes_of: Sequence[Sequence[int]], limit: int) -> list[int]:
    """Chooses images that show every class, the rarest first, then others evenly from all.

    Args:
        classes_of: The classes of each image.
        limit: How many images.

    Example:
        >>> choose([[0], [0, 1], [0], [0, 2]], 3)
        [0, 1, 3]
    """
    holders: dict[int, list[int]] = {}
    for index, classes in enumerate(classes_of):
        for class_id in classes:
            holders.setdefault(class_id, []).append(index)
    chosen: dict[int, None] = {}
    for class_id in sorted(holders, key=lambda c: (len(holders[c]), c)):
        if len(chosen) < limit and not chosen.keys() & set(holders[class_id]):
            chosen[holders[class_id][0]] = None
    step = max(1, len(classes_of) // max(1, limit))
    for index in [*range(0, len(classes_of), step), *range(len(classes_of))]:
        if len(chosen) < limit:
            chosen[index] = None
    return sorted(chosen)


def draw_sheet(
    entries: Sequence[SheetEntry],
    names: Sequence[str],
    colors: Mapping[int, tuple[int, int, int]],
    *,
    exif: str = "ignore",
    plain_id: int | None = None,
) -> Image.Image:
    """Draws images, each beside itself with its mask laid over it, and the colours of the classes below.

    Args:
        entries: The images.
        names: Names of the classes in the order of `colors`.
        colors: Colour of each id; ids without one are ignored, and white.
        exif: How orientation tags of the images are read: `error`, `ignore`, `apply`.
        plain_id: An id that is not coloured: background.
    """
    tiles = [_tile(entry, colors, "ignore" if exif == "error" else exif, plain_id) for entry in entries]
    columns = max(1, min(_COLUMNS, len(tiles)))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    tops = list(accumulate((max(tile.height for tile in row) + _LINE + _MARGIN for row in rows), initial=_MARGIN))
    width = columns * (_WIDTH + _MARGIN) + _MARGIN
    per_line = max(1, width // _LEGEND_WIDTH)
    legend = [
        (f"{name} (not coloured)" if raw == plain_id else name, color)
        for name, (raw, color) in zip(names, colors.items(), strict=True)
    ]
    legend.append(("ignored", _IGNORED))
    lines = -(-len(legend) // per_line)
    sheet = Image.new("RGB", (width, tops[-1] + lines * _LINE + _MARGIN), _GROUND)
    draw = ImageDraw.Draw(sheet)
    for i, (entry, tile) in enumerate(zip(entries, tiles, strict=True)):
        x, y = _MARGIN + i % columns * (_WIDTH + _MARGIN), tops[i // columns]
        draw.text((x, y + 2), printable(entry.title, _WIDTH // _LETTER), fill=(255, 255, 255))
        sheet.paste(tile, (x, y + _LINE))
    for i, (name, color) in enumerate(legend):
        x, y = _MARGIN + i % per_line * _LEGEND_WIDTH, tops[-1] + i // per_line * _LINE
        draw.rectangle((x, y + 2, x + 12, y + 14), fill=color, outline=(128, 128, 128))
        draw.text((x + 18, y + 2), printable(name, (_LEGEND_WIDTH - 24) // _LETTER), fill=(255, 255, 255))
    return sheet


def printable(text: str, length: int) -> str:
    r"""Returns text in the letters that Pillow's own font has, cut to a number of them.

    Example:
        >>> printable("Stra\u00dfe nach K\u00f6ln", 32), printable("a long name", 8)
        ('Strasse nach Koln', 'a lon...')
    """
    letters = unicodedata.normalize("NFKD", text.replace("\u00df", "ss").replace("\n", " "))
    plain = "".join(c if c.isascii() else "?" for c in letters if not unicodedata.combining(c))
    return plain if len(plain) <= length else plain[: length - 3] + "..."


def _tile(
    entry: SheetEntry, colors: Mapping[int, tuple[int, int, int]], exif: str, plain_id: int | None
) -> Image.Image:
    with Image.open(entry.mask) as file:
        mask = np.array(file)
    try:
        with open_image(entry.image) as file:
            picture = _eight_bits(load_oriented(file, entry.image, exif), entry.image)
    except SampleError:
        # The mask alone: `aucseg stats` reports what is wrong with the image.
        picture = Image.new("RGB", (mask.shape[1], mask.shape[0]))
    scale = min(_TILE / mask.shape[1], _TILE / mask.shape[0])
    size = max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale))
    small = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    overlay = np.array(picture)
    ids = np.unique(small).tolist()
    for raw in ids:
        if raw != plain_id:
            color = np.array(colors.get(raw, _IGNORED))
            overlay[small == raw] = (0.4 * overlay[small == raw] + 0.6 * color).astype(np.uint8)
    overlay[_edges(small)] = (255, 255, 255)
    tile = Image.new("RGB", (_WIDTH, size[1]), _GROUND)
    tile.paste(picture, (0, 0))
    tile.paste(Image.fromarray(overlay), (_TILE + _GAP, 0))
    return tile


def _edges(mask: Array) -> Array:
    edges = np.zeros(mask.shape, bool)
    edges[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edges[1:] |= mask[1:] != mask[:-1]
    return edges


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return guard(path, lambda: to_rgb(image))
    values = np.array(image).astype(np.float64)
    low, high = np.nanpercentile(values, (1, 99))
    scaled = np.nan_to_num((values - low) / max(high - low, 1e-12) * 255).clip(0, 255)
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
