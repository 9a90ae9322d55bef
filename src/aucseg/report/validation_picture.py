"""Validation images beside their truth and a model's prediction, as one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from aucseg.datasets.annotations.contact_sheet import printable
from aucseg.report.encode import Color
from aucseg.report.examples import Example, class_ids_in
from aucseg.report.figures import overlay

_TILE = 360
_LINE = 18
_GAP = 4
_LEGEND = 180


def validation_picture(
    examples: Sequence[Example], title: str, class_names: Sequence[str], palette: Sequence[Color]
) -> Image.Image:
    """Draws a row for each example: image, truth, prediction; the colours of the classes in them are below.

    Args:
        examples: At least one.
        title: Whose prediction.
        class_names: K names.
        palette: K colours.
    """
    rows = [
        [
            example.image,
            *(overlay(example.image, labels, palette) for labels in (example.truth, example.predictions[title])),
        ]
        for example in examples
    ]
    tiles = [[_fitted(picture) for picture in row] for row in rows]
    width = 3 * (_TILE + _GAP) - _GAP
    per_line = width // _LEGEND
    labels = [array for example in examples for array in (example.truth, example.predictions[title])]
    shown = class_ids_in(labels, len(palette))
    lines = -(-len(shown) // per_line)
    height = _LINE + sum(row[0].height + _GAP for row in tiles) + lines * _LINE + _GAP
    sheet = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(("image", "truth", "prediction")):
        draw.text((column * (_TILE + _GAP) + 2, 2), text, fill=(0, 0, 0))
    y = _LINE
    for row in tiles:
        for column, tile in enumerate(row):
            sheet.paste(tile, (column * (_TILE + _GAP), y))
        y += row[0].height + _GAP
    for index, class_id in enumerate(shown):
        x, top = index % per_line * _LEGEND, y + index // per_line * _LINE
        draw.rectangle((x + 2, top + 2, x + 14, top + 14), fill=palette[class_id], outline=(128, 128, 128))
        draw.text((x + 20, top + 2), printable(class_names[class_id], 24), fill=(0, 0, 0))
    return sheet


def _fitted(picture: NDArray[np.uint8]) -> Image.Image:
    height, width = picture.shape[:2]
    factor = min(_TILE / width, _TILE / height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)
