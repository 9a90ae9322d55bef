"""Files as people and their programs write them, made by the tests."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]
SIZE = (24, 32)


def blocks(ids: list[int], seed: int = 0, size: tuple[int, int] = SIZE) -> Array:
    """A mask (H, W) of rectangles, every id somewhere."""
    rng = np.random.default_rng(seed)
    mask = np.full(size, ids[0])
    for raw in ids[1:]:
        top, left = rng.integers(0, size[0] - 6), rng.integers(0, size[1] - 6)
        mask[top : top + 6, left : left + 6] = raw
    for i, raw in enumerate(ids):
        mask[-1, i] = raw
    return mask


def save_image(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    """An image of noise in the format that its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format={".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower()))


def save_mask(path: Path, mask: Array) -> None:
    """A grey mask in the format that its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, mask)
    else:
        Image.fromarray(mask.astype(np.uint8)).save(path)


def save_palette(path: Path, mask: Array, palette: list[tuple[int, int, int]], **options: Any) -> None:
    """A palette mask with a palette of its own."""
    image = Image.fromarray(mask.astype(np.uint8)).convert("L")
    image.putpalette([part for color in palette for part in color])
    image.save(path, **options)


def make(root: Path, *pairs: tuple[str, str], ids: tuple[int, ...] = (0, 1, 2), start: int = 0) -> Path:
    """Images and masks at the given paths below the root."""
    for i, (image, mask) in enumerate(pairs, start):
        save_image(root / image, seed=i)
        save_mask(root / mask, blocks(list(ids), seed=i))
    return root


def png_of_16_bits(values: Array) -> bytes:
    """A PNG file of 16 bits a channel, by hand, for Pillow does not write it; values (H, W, 2, 3 or 4)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    color_type = {2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_of_16_bits(values: Array, byte_order: str = "<", is_compressed: bool = False, orientation: int = 1) -> bytes:
    """A TIFF file of 16 bits a channel, by hand; values (H, W, 3)."""
    height, width, channels = values.shape
    data = values.astype(f"{byte_order}u2").tobytes()
    if is_compressed:
        data = zlib.compress(data)
    num_tags = 10
    bits_at = 8 + 2 + 12 * num_tags + 4
    bits = struct.pack(f"{byte_order}{channels}H", *[16] * channels)
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, bits_at), (259, 3, 1, 8 if is_compressed else 1),
        (262, 3, 1, 2), (273, 4, 1, bits_at + len(bits)), (274, 3, 1, orientation), (277, 3, 1, channels),
        (278, 3, 1, height), (279, 4, 1, len(data)),
    ]  # fmt: skip
    out = (b"II*\0" if byte_order == "<" else b"MM\0*") + struct.pack(f"{byte_order}IH", 8, num_tags)
    for tag, kind, count, value in tags:
        is_short = kind == 3 and count == 1
        packed = struct.pack(
            f"{byte_order}HH" if is_short else f"{byte_order}I", *([value, 0] if is_short else [value])
        )
        out += struct.pack(f"{byte_order}HHI", tag, kind, count) + packed
    return out + struct.pack(f"{byte_order}I", 0) + bits + data


def save_raster(path: Path, values: Array, **options: Any) -> Path:
    """A GeoTIFF file of values (C, H, W)."""
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    transform = rasterio.Affine(10, 0, 500000, 0, -10, 6000000)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(values),
        height=values.shape[1],
        width=values.shape[2],
        dtype=values.dtype.name,
        crs="EPSG:32633",
        transform=transform,
        **options,
    ) as raster:
        raster.write(values)
    return path
