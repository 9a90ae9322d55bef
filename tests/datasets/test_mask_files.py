from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aucseg.datasets import DatasetCard, SampleError
from aucseg.datasets.mask_files import read_mask, read_raw_mask
from tests.datasets.files import blocks, png_of_16_bits, save_palette, tiff_of_16_bits

MASK = blocks([0, 1, 2])
COLORS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)


def card_of(encoding: str, **changes: Any) -> DatasetCard:
    card = DatasetCard.from_yaml("name: t\nclasses: [{name: a}, {name: b}]\nsplits: {train: {images: a}}\n")
    return replace(card, mask_encoding=encoding, **changes)


def test_forms_whose_ids_are_certain(tmp_path: Path) -> None:
    mask8 = MASK.astype(np.uint8)
    forms: dict[str, tuple[str, Any]] = {
        "grey.png": ("gray", Image.fromarray(mask8)),
        "grey.tif": ("gray", Image.fromarray(mask8)),
        "grey.gif": ("palette", Image.fromarray(mask8).convert("P")),
        "grey.bmp": ("gray", Image.fromarray(mask8)),
        "16 bits.png": ("gray16", Image.fromarray(MASK.astype(np.uint16))),
        "16 bits.tif": ("gray16", Image.fromarray(MASK.astype(np.uint16))),
        "32 bits.tif": ("gray16", Image.fromarray(MASK.astype(np.int32))),
        "floats.tif": ("gray16", Image.fromarray(MASK.astype(np.float32))),
        "opaque.png": ("gray", Image.merge("LA", [Image.fromarray(mask8), Image.new("L", MASK.shape[::-1], 255)])),
    }
    for name, (encoding, image) in forms.items():
        image.save(tmp_path / name)
        np.testing.assert_array_equal(read_raw_mask(tmp_path / name, card_of(encoding)), MASK, err_msg=name)
    Image.fromarray(MASK == 1).save(tmp_path / "bits.png")
    Image.fromarray(MASK == 1).save(tmp_path / "bits.tif")
    for name in ("bits.png", "bits.tif"):
        np.testing.assert_array_equal(read_raw_mask(tmp_path / name, card_of("gray")), MASK == 1)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.uint16, np.float32])
def test_arrays(dtype: type, tmp_path: Path) -> None:
    mask = MASK > 0 if dtype is bool else MASK
    path = tmp_path / "m.npy"
    for shape in (mask.shape, (1, *mask.shape), (*mask.shape, 1)):
        np.save(path, mask.astype(dtype).reshape(shape))
        for encoding in ("gray", "gray16"):
            np.testing.assert_array_equal(read_raw_mask(path, card_of(encoding)), mask)
            np.testing.assert_array_equal(read_raw_mask(path, card_of(encoding), path.read_bytes()), mask)


def test_arrays_that_hold_no_ids(tmp_path: Path) -> None:
    path = tmp_path / "m.npy"
    for values, message in (
        (np.full((2, 2), 0.5), "not all whole numbers"),
        (np.full((2, 2), np.nan), "not numbers"),
        (np.full((2, 2), -1), "ids from -1 to 0, but none may be negative: give these pixels another id, 65535 or 255"),
        (np.full((2, 2), 70000), "ids from 0 to 70000; 16-bit masks hold 0..65535: give the classes smaller ids"),
        (np.full((2, 2), 300), "set mask_encoding: gray16"),
        (np.zeros((2, 2, 5)), r"with shape \(2, 2, 5\) is not a gray mask"),
        (np.array([["a"]]), "is not a gray mask"),
        (np.array([[object()]]), "does not hold the numbers"),
    ):
        np.save(path, values)
        with pytest.raises(SampleError, match=message):
            read_raw_mask(path, card_of("gray"))
    np.save(path, MASK)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SampleError, match="does not hold the numbers that it says"):
        read_raw_mask(path, card_of("gray"))
    path.write_bytes(b"no array")
    with pytest.raises(SampleError, match="not a readable array file"):
        read_raw_mask(path, card_of("gray"))


def test_transparency_is_dropped_only_where_it_leaves_no_doubt(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    rgba = np.dstack([COLORS[MASK], np.full(MASK.shape, 255, np.uint8)])
    expected = read_packed()

    def save(alpha: Any) -> None:
        rgba[..., 3] = alpha
        Image.fromarray(rgba).save(path)

    for alpha in (255, np.where(MASK == 0, 0, 255)):
        save(alpha)
        np.testing.assert_array_equal(read_raw_mask(path, card_of("rgb")), expected)
    for alpha, message in (
        (np.where(MASK == 0, 100, 255), "half transparent"),
        (np.where(MASK < 2, 0, 255), "hold several values"),
        (np.where((MASK == 0) & (np.arange(MASK.shape[1]) > 5), 0, 255), "hold a value that others hold too"),
    ):
        save(alpha)
        with pytest.raises(SampleError, match=f"png: [^:]*{message}, so what they mean is not certain; give the trans"):
            read_raw_mask(path, card_of("rgb"))


def read_packed() -> Any:
    return COLORS[MASK].astype(np.int64) @ np.array([65536, 256, 1])


def test_palettes_with_transparency_by_index_and_by_colour(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    palette = [tuple(color) for color in COLORS.tolist()]
    for transparency in (0, bytes([0, 100, 255])):
        save_palette(path, MASK, palette, transparency=transparency)
        found = read_mask(path, card_of("palette"))
        np.testing.assert_array_equal(found.values, MASK)
        assert found.palette is not None
        np.testing.assert_array_equal(found.palette[:3], COLORS)
        np.testing.assert_array_equal(read_raw_mask(path, card_of("rgb")), read_packed())


LOSSY = [
    ("m.jpg", {}, "JPEG"),
    ("renamed.png", {"format": "JPEG"}, "JPEG"),
    ("m.tif", {"compression": "jpeg"}, "TIFF with jpeg compression"),
    ("m.webp", {"quality": 90}, "lossy WEBP"),
    ("m.jp2", {}, "JPEG2000"),
    ("m.avif", {}, "AVIF"),
]


@pytest.mark.parametrize(("name", "options", "container"), LOSSY, ids=[name for name, *_ in LOSSY])
def test_lossy_containers_are_refused(name: str, options: dict[str, Any], container: str, tmp_path: Path) -> None:
    path = tmp_path / name
    Image.fromarray(COLORS[MASK]).save(path, **options)
    for encoding in ("gray", "rgb"):
        with pytest.raises(SampleError, match=f"the mask is a {container} file, whose compression changes ids"):
            read_raw_mask(path, card_of(encoding))
        with pytest.raises(SampleError, match=container):
            read_raw_mask(path, card_of(encoding), path.read_bytes())


def test_lossless_webp_and_tiff_are_read(tmp_path: Path) -> None:
    for name, options in (("m.webp", {"lossless": True}), ("m.tif", {"compression": "tiff_lzw"})):
        Image.fromarray(COLORS[MASK]).save(tmp_path / name, **options)
        np.testing.assert_array_equal(read_raw_mask(tmp_path / name, card_of("rgb")), read_packed())


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_modes_that_hold_no_ids_get_a_true_advice(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    Image.new(mode, (4, 4)).save(path)
    for encoding in ("gray", "rgb", "gray16"):
        with pytest.raises(SampleError, match="save it as an 8-bit grey PNG whose values are the ids") as caught:
            read_raw_mask(path, card_of(encoding))
        assert "None" not in str(caught.value)


def test_advice_names_the_encoding(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    Image.fromarray(MASK.astype(np.uint8)).save(path)
    with pytest.raises(SampleError, match=r"the card says rgb masks, but .* mode L: .*set mask_encoding: gray;"):
        read_raw_mask(path, card_of("rgb"))


def test_colours_of_16_bits_are_refused(tmp_path: Path) -> None:
    values = np.dstack([MASK * 300] * 3).astype(np.uint16)
    (tmp_path / "m.png").write_bytes(png_of_16_bits(values))
    (tmp_path / "m.tif").write_bytes(tiff_of_16_bits(values))
    for name in ("m.png", "m.tif"):
        with pytest.raises(SampleError, match="16 bits a channel, of which 8 would be lost"):
            read_raw_mask(tmp_path / name, card_of("rgb"))


def pnm(kind: str, maximum: int, values: Any) -> bytes:
    """A PGM or PPM file, by hand, for Pillow writes those of 255 and 65535 alone; P2 is text, P5 and P6 are bytes."""
    header = f"{kind} {values.shape[1]} {values.shape[0]} {maximum}\n".encode()
    numbers = " ".join(map(str, values.ravel().tolist())).encode()
    return header + (numbers if kind == "P2" else values.astype("u1" if maximum < 256 else ">u2").tobytes())


@pytest.mark.parametrize("kind", ["P2", "P5"])
@pytest.mark.parametrize("maximum", [2, 5, 15, 254, 255, 256, 300, 65535])
def test_pgm_files_hold_their_ids_whatever_their_maximum(kind: str, maximum: int, tmp_path: Path) -> None:
    path = tmp_path / "m.pgm"
    path.write_bytes(pnm(kind, maximum, MASK))
    card = card_of("gray" if maximum < 256 else "gray16")
    np.testing.assert_array_equal(read_raw_mask(path, card), MASK)
    np.testing.assert_array_equal(read_raw_mask(path, card, path.read_bytes()), MASK)


def test_ppm_files_hold_their_colours(tmp_path: Path) -> None:
    path = tmp_path / "m.ppm"
    path.write_bytes(pnm("P6", 5, np.dstack([MASK] * 3)))
    np.testing.assert_array_equal(read_raw_mask(path, card_of("rgb")), MASK * 0x010101)
    path.write_bytes(pnm("P6", 300, np.dstack([MASK] * 3)))
    with pytest.raises(SampleError, match="16 bits a channel, of which 8 would be lost"):
        read_raw_mask(path, card_of("rgb"))


def test_white_stored_as_0_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bits.pnm").write_bytes(b"P4 8 1\n\x0f")
    Image.fromarray(MASK.astype(np.uint8)).save(tmp_path / "m.tif", tiffinfo={262: 0})
    Image.fromarray(MASK == 1).save(tmp_path / "bits.tif", tiffinfo={262: 0})
    for name in ("bits.pnm", "m.tif", "bits.tif"):
        with pytest.raises(SampleError, match="white is stored as 0, so it is not certain which ids"):
            read_raw_mask(tmp_path / name, card_of("gray"))


def test_an_orientation_of_the_mask_itself(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(MASK.astype(np.uint8)).save(path, exif=tags)
    with pytest.raises(SampleError, match="EXIF orientation 6"):
        read_raw_mask(path, card_of("gray"))
    np.testing.assert_array_equal(read_raw_mask(path, card_of("gray", exif="ignore")), MASK)
    np.testing.assert_array_equal(read_raw_mask(path, card_of("gray", exif="apply")), np.rot90(MASK, -1))
