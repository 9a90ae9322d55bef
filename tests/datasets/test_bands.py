from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from aucseg.datasets import DatasetCard, SampleError, SegmentationDataset
from aucseg.datasets.bands import band_statistics, check_card_image, read_card_image
from aucseg.datasets.shards import StreamedSegmentationDataset, write_shards
from tests.datasets.conftest import MINI, save_mask
from tests.datasets.files import save_raster

rasterio = pytest.importorskip("rasterio")
Array = npt.NDArray[Any]


def card_of(text: str) -> DatasetCard:
    return DatasetCard.from_yaml(MINI + text)


def numbers(dtype: str, bands: int = 5, seed: int = 0) -> Array:
    high = 256 if dtype == "uint8" else 10000
    return np.random.default_rng(seed).integers(1, high, (bands, 12, 16)).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "float32", "float64"])
def test_bands_are_scaled_to_their_range_without_losing_bits(dtype: str, tmp_path: Path) -> None:
    values = numbers(dtype)
    path = save_raster(tmp_path / "x.tif", values, compress="deflate")
    card = card_of("bands: [4, 1]\nvalue_range: [[0, 10000], [100, 4100.5]]\n")
    pixels, valid = read_card_image(path, card)
    assert valid is None
    assert pixels.dtype == np.float32
    expected = [values[3].astype(float) * 255 / 10000, (values[0].astype(float) - 100) * 255 / 4000.5]
    np.testing.assert_allclose(pixels, np.clip(np.stack(expected, -1), 0, 255), rtol=1e-6, atol=1e-5)
    assert check_card_image(path, card) == check_card_image(path, card, decode=True) == (12, 16)
    assert len(np.unique(pixels[..., 0])) > 150  # more than the few values that 8 bits would leave


def test_bands_of_8_bits_stay_as_they_are(tmp_path: Path) -> None:
    values = numbers("uint8")
    pixels, _ = read_card_image(save_raster(tmp_path / "x.tif", values), card_of("bands: [5, 2, 2, 1]\n"))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.moveaxis(values[[4, 1, 1, 0]], 0, -1))


def test_pixels_without_data_are_ignored(tmp_path: Path) -> None:
    values = numbers("float32", 2)
    values[:, 0, 0] = -1  # no data in every band
    values[0, 0, 1] = -1  # in one alone: a dark pixel may have the value
    values[1, 3, 4] = np.nan
    values[0, 5, 5] = np.inf
    root = tmp_path / "data"
    save_raster(root / "images/x.tif", values, nodata=-1)
    (root / "masks").mkdir()
    save_mask(np.zeros((12, 16)), root / "masks/x.png")
    card = card_of("bands: [1, 2]\nvalue_range: [0, 10000]\n")
    card = replace(card, splits={"train": (replace(card.splits["train"][0], images="images/*.tif"),)})
    sample = SegmentationDataset(card, root)[0]
    ignored = np.argwhere(sample["mask"].numpy() == card.ignore_index).tolist()
    assert ignored == [[0, 0], [3, 4], [5, 5]]
    assert torch.isfinite(sample["image"]).all()
    assert sample["image"][:, 3, 4].tolist() == [0, 0]

    shards = write_shards(SegmentationDataset(card, root), tmp_path / "shards")
    streamed = next(iter(StreamedSegmentationDataset(card, shards)))
    assert torch.equal(streamed["image"], sample["image"])
    assert torch.equal(streamed["mask"], sample["mask"])


def test_16_bit_colour_and_grey_png_are_read(tmp_path: Path) -> None:
    values = numbers("uint16", 1)[0]
    Image.fromarray(values).save(tmp_path / "x.png")
    pixels, _ = read_card_image(tmp_path / "x.png", card_of("bands: [1, 1, 1]\nvalue_range: [0, 65535]\n"))
    np.testing.assert_allclose(pixels, np.repeat(values[..., None] * (255 / 65535), 3, -1), rtol=1e-6)


BAD = {
    "too few bands": ("bands: [6]\n", "uint8", "asks for band 6, but the file has 5"),
    "not a range": ("bands: [1]\n", "uint16", "uint16; say in the card"),
    "complex": ("bands: [1]\nvalue_range: [0, 1]\n", "complex64", "complex"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_said(name: str, tmp_path: Path) -> None:
    text, dtype, message = BAD[name]
    path = save_raster(tmp_path / "x.tif", numbers(dtype))
    for action in (read_card_image, check_card_image):
        with pytest.raises(SampleError, match=message) as error:
            action(path, card_of(text))
        assert str(path) in str(error.value)


def test_damaged_missing_turned_and_palette_files_are_refused(tmp_path: Path) -> None:
    card = card_of("bands: [1]\n")
    path = save_raster(tmp_path / "x.tif", numbers("uint8"), compress="deflate")
    data = path.read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.tif").write_text("no raster")
    Image.new("P", (4, 4)).save(tmp_path / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 6)).save(tmp_path / "turned.jpg", exif=exif)
    for name, message in (
        ("cut.tif", "not a readable raster"),
        ("text.tif", "not a readable raster"),
        ("none.tif", "no such file"),
        ("palette.png", "palette"),
        ("turned.jpg", "orientation"),
    ):
        with pytest.raises(SampleError, match=message):
            read_card_image(tmp_path / name, card)
    assert read_card_image(tmp_path / "turned.jpg", replace(card, exif="ignore"))[0].shape == (6, 4, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bands: []\n", "empty"),
        ("bands: [0]\n", "1..65535"),
        ("value_range: [0, 1]\n", "goes with 'bands'"),
        ("bands: [1]\nvalue_range: [1, 1]\n", "not a range"),
        ("bands: [1]\nvalue_range: [.nan, 1]\n", "plain decimal"),
        ("bands: [1]\nvalue_range: [0, 1.0e+999]\n", "finite"),
        ("bands: [1, 2, 3]\nvalue_range: [[0, 1], [0, 1]]\n", "2 pairs for 3 bands"),
        ("bands: [1]\nvalue_range: [a, b]\n", "must be a number"),
    ],
)
def test_mistakes_in_a_card_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        card_of(text)


def test_a_card_with_bands_survives_being_written() -> None:
    card = card_of("bands: [8, 4, 3]\nvalue_range: [0, 3000.5]\n")
    again = DatasetCard.from_yaml(card.to_yaml())
    assert again.bands == (8, 4, 3)
    assert again.value_range == ((0.0, 3000.5),) * 3
    assert again.num_channels == 3


def test_statistics_of_bands_are_those_of_all_pixels_together() -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal(1e4, 0.5, (n, n + 1, 3)) for n in (3, 1, 7)]
    valid = rng.random((7, 8)) < 0.5
    together = np.concatenate([images[0].reshape(-1, 3), images[1].reshape(-1, 3), images[2][valid]])
    mean, std = band_statistics(iter([(images[0], None), (images[1], None), (images[2], valid)]))
    np.testing.assert_allclose(mean, together.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, together.std(0), rtol=1e-9)
    with pytest.raises(ValueError, match="no pixel"):
        band_statistics(iter([(images[0], np.zeros((3, 4), bool))]))


def test_bytes_are_read_like_files(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(buffer, "PNG")
    pixels, _ = read_card_image(Path("shard.tar/x.png"), card_of("bands: [3]\n"), buffer.getvalue())
    assert pixels[..., 0].ravel().tolist() == list(range(2, 48, 3))
