"""A picture of some images beside their masks, to check them by eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from aucseg.datasets.files import Array, SampleError, guard, load_oriented, open_image, to_rgb

_TILE = 320
_COLUMNS = 3
_LINE = 18
_MARGIN = 6
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
        names: Names of the classes in the order of ``colors``.
        colors: Colour of each id; ids without one are ignored, and white.
        exif: How orientation tags of the images are read: ``error``, ``ignore``, ``apply``.
        plain_id: An id that is not coloured: background.
    """
    tiles = [_tile(entry, colors, "ignore" if exif == "error" else exif, plain_id) for entry in entries]
    height = max((tile.height for tile in tiles), default=0) + _LINE
    columns = max(1, min(_COLUMNS, len(tiles)))
    width = columns * (2 * _TILE + _MARGIN)
    per_line = max(1, width // 220)
    legend = [*zip(names, colors.values(), strict=True), ("ignored", _IGNORED)]
    rows, lines = -(-len(tiles) // columns), -(-len(legend) // per_line)
    sheet = Image.new("RGB", (width, rows * (height + _MARGIN) + lines * _LINE + _MARGIN), (32, 32, 32))
    draw = ImageDraw.Draw(sheet)
    for i, (entry, tile) in enumerate(zip(entries, tiles, strict=True)):
        x, y = i % columns * (2 * _TILE + _MARGIN), i // columns * (height + _MARGIN)
        draw.text((x + 2, y + 2), _printable(entry.title), fill=(255, 255, 255))
        sheet.paste(tile, (x, y + _LINE))
    for i, (name, color) in enumerate(legend):
        x, y = i % per_line * 220, rows * (height + _MARGIN) + i // per_line * _LINE
        draw.rectangle((x + 2, y + 2, x + 14, y + 14), fill=color, outline=(128, 128, 128))
        draw.text((x + 20, y + 2), _printable(name)[:32], fill=(255, 255, 255))
    return sheet


def _printable(text: str) -> str:
    """Text in the characters that Pillow's own font has."""
    return text.encode("latin-1", "replace").decode("latin-1").replace("\n", " ")


def _tile(
    entry: SheetEntry, colors: Mapping[int, tuple[int, int, int]], exif: str, plain_id: int | None
) -> Image.Image:
    with Image.open(entry.mask) as file:
        mask = np.array(file)
    try:
        with open_image(entry.image) as file:
            picture = _eight_bits(load_oriented(file, entry.image, exif), entry.image)
    except SampleError:
        # The mask alone: what is wrong with the image is said by `aucseg stats`.
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
    tile = Image.new("RGB", (2 * _TILE, size[1]))
    tile.paste(picture, (0, 0))
    tile.paste(Image.fromarray(overlay), (_TILE, 0))
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
