"""Rasters that are read by windows: every pixel counts once, nothing is read whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import aucseg.datasets.bands as bands_module
import aucseg.datasets.windows as windows_module
from aucseg.datasets import DatasetCard, SampleError, SegmentationDataset
from aucseg.datasets.bands import read_card_image
from aucseg.datasets.mask_files import read_raw_mask
from aucseg.datasets.mask_windows import read_mask_window
from aucseg.datasets.propose import propose_card
from aucseg.datasets.scan_cache import ScanCache
from aucseg.datasets.shards import write_shards
from aucseg.datasets.split import SplitOfFiles
from aucseg.datasets.windows import Window, cut
from aucseg.loading.evaluation_batches import largest_image
from aucseg.loading.held_out import held_out_images
from aucseg.statistics.check import count_and_check
from aucseg.statistics.class_statistics import ClassStatistics
from tests.datasets.conftest import MINI
from tests.datasets.files import blocks, save_palette, save_raster

rasterio = pytest.importorskip("rasterio")
Array = npt.NDArray[Any]
HEIGHT, WIDTH = 3000, 2000
TILED = {"tiled": True, "blockxsize": 256, "blockysize": 256}


@given(height=st.integers(1, 400), width=st.integers(1, 400), side=st.integers(64, 150), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_cores_cover_a_raster_once_and_windows_hold_them(height: int, width: int, side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = np.zeros((height, width), int)
    for tile in cut((height, width), side):
        count[tile.core.slices] += 1
        random = tile.random_window(lambda low, high: int(rng.integers(low, high + 1)))
        for window in (tile.window, random):
            assert (window.height, window.width) == (min(side, height), min(side, width))
            inside = np.zeros((height, width), bool)
            inside[window.slices] = True
            assert inside.sum() == window.height * window.width
            assert inside[tile.core.slices].all()
            outside = np.zeros((height, width), bool)
            outside[tile.core.slices] = True
            np.testing.assert_array_equal(tile.outside_core(window), ~outside[window.slices])
    assert (count == 1).all()


@pytest.fixture(scope="module")
def raster_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split of one raster of 3,000 x 2,000 and one small image, with masks."""
    root = tmp_path_factory.mktemp("rasters")
    rng = np.random.default_rng(0)
    coarse = rng.choice([0, 7, 9], (30, 20), p=[0.7, 0.25, 0.05])
    mask = np.kron(coarse, np.ones((100, 100), int)).astype(np.uint8)
    mask[:9, :9] = 255
    # Each pixel tells its place.
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    image = np.empty((3, HEIGHT, WIDTH), np.uint8)
    image[0], image[1], image[2] = rows % 251, columns % 241, (rows + columns) % 256
    save_raster(root / "images/large.tif", image, photometric="RGB", **TILED)
    save_raster(root / "masks/large.tif", mask[None], **TILED)
    save_raster(root / "images/small.tif", image[:, :90, :80], photometric="RGB")
    save_raster(root / "masks/small.tif", mask[None, :90, :80])
    return root


def card_of(text: str = "") -> DatasetCard:
    return DatasetCard.from_yaml(MINI.replace("*.png", "*.tif").replace("{stem}.png", "{stem}.tif") + text)


@pytest.fixture
def no_full_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fails where a large file is decoded or loaded whole; collects the pixels of each window that is read."""
    pixels: list[int] = []
    original = windows_module.read_window
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr(bands_module, "_MAX_PIXELS", 10_000)
    read_bytes = Path.read_bytes

    def counted(raster: Any, bands: Any, window: Window | None) -> Array:
        values = original(raster, bands, window)
        pixels.append(values[0].size)
        return values

    def small_files_only(path: Path) -> bytes:
        assert path.stem != "large", path
        return read_bytes(path)

    for module in ("bands", "windows", "mask_windows"):
        monkeypatch.setattr(f"aucseg.datasets.{module}.read_window", counted)
    monkeypatch.setattr(Path, "read_bytes", small_files_only)
    return pixels


def whole(root: Path, name: str, folder: str) -> Array:
    with rasterio.open(root / folder / f"{name}.tif") as raster:
        values: Array = raster.read()
    return values


def test_evaluation_shows_every_pixel_once_with_its_surroundings(raster_root: Path, no_full_reads: list[int]) -> None:
    dataset = SegmentationDataset(card_of(), raster_root, tile=1024)
    image, raw = whole(raster_root, "large", "images"), whole(raster_root, "large", "masks")[0]
    labels = dataset.label_map(raw)
    rebuilt = np.full_like(labels, 99)
    assert len(dataset) == 12 + 1
    for index, pair in enumerate(dataset.pairs[:-1]):
        sample = dataset[index]
        assert pair.tile is not None
        window, mask = pair.tile.window, sample["mask"].numpy()
        assert np.array_equal(sample["image"].numpy(), image[(slice(None), *window.slices)])
        assert (mask[pair.tile.outside_core(window)] == 255).all()
        core = ~pair.tile.outside_core(window)
        rebuilt[pair.tile.core.slices] = mask[core].reshape(pair.tile.core.height, -1)
        assert sample["name"] == "images/large"
    np.testing.assert_array_equal(rebuilt, labels)
    assert max(no_full_reads) == 1024 * 1024
    assert dataset[12]["image"].shape == (3, 90, 80)
    assert dataset.image_size(0) == (1024, 1024)
    assert largest_image(dataset) == 0


def test_training_draws_windows_with_all_their_labels(raster_root: Path, no_full_reads: list[int]) -> None:
    dataset = SegmentationDataset(card_of(), raster_root, tile=640, random_windows=True)
    image, labels = whole(raster_root, "large", "images"), dataset.label_map(whole(raster_root, "large", "masks")[0])
    torch.manual_seed(0)
    places = set()
    for _ in range(6):
        sample = dataset[12]
        # The pixels tell where the window lies; the tile's core has one such place alone.
        tile = dataset.pairs[12].tile
        assert tile is not None
        found = [
            (top, left)
            for top in range(tile.core.top + tile.core.height - 640, tile.core.top + 1)
            if image[0, top, 0] == sample["image"][0, 0, 0]
            for left in range(tile.core.left + tile.core.width - 640, tile.core.left + 1)
            if image[1, 0, left] == sample["image"][1, 0, 0]
        ]
        ((top, left),) = found
        places.add((top, left))
        np.testing.assert_array_equal(sample["mask"].numpy(), labels[top : top + 640, left : left + 640])
    assert len(places) > 4
    assert max(no_full_reads) == 640 * 640


def test_counts_are_those_of_the_whole(raster_root: Path, tmp_path: Path, no_full_reads: list[int]) -> None:
    card = card_of()
    labels = SplitOfFiles(card, raster_root, tile=1024).label_map(whole(raster_root, "large", "masks")[0])
    small = labels[:90, :80]
    dataset = SplitOfFiles(card, raster_root, tile=1024)
    cache = ScanCache(tmp_path / "cache.sqlite")
    statistics, check = count_and_check(dataset, cache=cache)
    assert check.is_clean
    expected = np.bincount(np.concatenate([part[part != 255] for part in (labels, small)]), minlength=3)
    assert statistics.pixel_counts.tolist() == expected.tolist()
    assert statistics.num_images == len(dataset) == 13
    assert statistics.num_ignored == 2 * 81
    assert max(no_full_reads) < 1024 * 1024

    num_read = len(no_full_reads)
    again, _ = count_and_check(dataset, cache=cache, decode_images=False)
    assert again == statistics
    assert len(no_full_reads) == num_read  # all from the cache
    assert ClassStatistics.from_dataset(SegmentationDataset(card, raster_root, tile=1024)) == statistics
    other, _ = count_and_check(SplitOfFiles(card, raster_root, tile=640), cache=cache, decode_images=True)
    assert other.pixel_counts.tolist() == expected.tolist()
    assert other.num_images == 7 * 5 + 1


def test_a_card_is_proposed_by_windows(raster_root: Path, no_full_reads: list[int]) -> None:
    card = propose_card(raster_root, tile=1024)
    assert card.raw_ids == ((0,), (7,), (9,))
    assert card.ignore_ids == (255,)
    assert max(no_full_reads) < 1024 * 1024


def test_without_tiles_the_message_names_the_option(raster_root: Path, no_full_reads: list[int]) -> None:
    dataset = SegmentationDataset(card_of(), raster_root)
    with pytest.raises(SampleError, match=r"large\.tif.*read it by windows \(data\.tile in a run, --tile of"):
        dataset[0]
    banded = SegmentationDataset(card_of("bands: [1, 2]\n"), raster_root)
    with pytest.raises(SampleError, match=r"do not fit; read it by windows \(data\.tile"):
        banded[0]
    with pytest.raises(ValueError, match="at least 64, got 63"):
        SegmentationDataset(card_of(), raster_root, tile=63)
    tiled = SegmentationDataset(card_of(), raster_root, tile=1024)
    with pytest.raises(ValueError, match="shards hold whole files"):
        write_shards(tiled, raster_root / "shards")
    with pytest.raises(ValueError, match="not kept in memory"):
        tiled.keep_in_memory()


def test_without_rasterio_the_extra_is_named(raster_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(ImportError, match=r"rasterio is missing; install it with: pip install \"aucseg\[geo\]\""):
        SegmentationDataset(card_of(), raster_root, tile=1024)


def test_bands_are_read_by_windows_as_whole(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (4, 200, 150)).astype("uint16")
    values[:, 5:9, 5:9] = 0
    path = save_raster(tmp_path / "x.tif", values, nodata=0)
    card = card_of("bands: [4, 2]\nvalue_range: [0, 3000]\n")
    pixels, valid = read_card_image(path, card)
    assert valid is not None
    window = Window(2, 3, 64, 100)
    part, part_valid = read_card_image(path, card, window=window)
    assert part_valid is not None
    np.testing.assert_array_equal(part, pixels[window.slices])
    np.testing.assert_array_equal(part_valid, valid[window.slices])


IDS = blocks([0, 3, 7, 9], size=(150, 200)).astype(np.uint8)
COLORS = [(10, 20, 30)] * 3 + [(200, 100, 0)] + [(0, 0, 0)] * 3 + [(1, 2, 3), (0, 0, 0), (9, 9, 9)]


def _mask_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Masks of each kind, and the encoding that reads them."""
    rgb = np.array(COLORS, np.uint8)[IDS]
    files = {
        "gray.png": "gray", "gray.tif": "gray", "bits.tif": "gray", "ids.npy": "gray", "wide.tif": "gray16",
        "float.tif": "gray16", "wide.npy": "gray16", "palette.png": "palette", "palette.tif": "palette",
        "rgb.tif": "rgb", "rgb.png": "rgb", "coded.png": "rgb", "rgb.npy": "rgb", "opaque.png": "rgb",
    }  # fmt: skip
    Image.fromarray(IDS).save(folder / "gray.png")
    Image.fromarray(IDS).save(folder / "gray.tif", compression="tiff_lzw")
    Image.fromarray(IDS > 5).save(folder / "bits.tif")
    np.save(folder / "ids.npy", IDS)
    save_raster(folder / "wide.tif", IDS[None].astype("uint16") * 1000)
    save_raster(folder / "float.tif", IDS[None].astype("float32"))
    for bits in (2, 4):
        for compression in ("none", "deflate"):
            name = f"{bits} bits, {compression}.tif"
            save_raster(folder / name, IDS[None] % 2**bits, nbits=bits, compress=compression)
            files[name] = "gray"
    save_raster(folder / "signed.tif", IDS[None].astype("int8"))
    (folder / "five.pgm").write_bytes(b"P5 200 150 9\n" + IDS.tobytes())
    (folder / "300.pgm").write_bytes(b"P5 200 150 300\n" + IDS.astype(">u2").tobytes())
    (folder / "nine.ppm").write_bytes(b"P6 200 150 9\n" + np.dstack([IDS] * 3).tobytes())
    files |= {"signed.tif": "gray", "five.pgm": "gray", "300.pgm": "gray16", "nine.ppm": "rgb"}
    np.save(folder / "wide.npy", IDS.astype(np.int64) * 1000)
    for name in ("palette.png", "palette.tif", "coded.png"):
        save_palette(folder / name, IDS, COLORS)
    Image.fromarray(rgb).save(folder / "rgb.tif")
    Image.fromarray(rgb).save(folder / "rgb.png")
    np.save(folder / "rgb.npy", rgb)
    Image.fromarray(rgb).convert("RGBA").save(folder / "opaque.png")
    return {name: (folder / name, encoding) for name, encoding in files.items()}


def test_windows_of_masks_are_those_of_the_whole_whatever_the_encoding(tmp_path: Path) -> None:
    window = Window(30, 20, 70, 90)
    for name, (path, encoding) in _mask_files(tmp_path).items():
        card = replace(card_of(), mask_encoding=encoding)
        expected = read_raw_mask(path, card)
        if "bits, " in name or path.suffix == ".pgm":
            np.testing.assert_array_equal(expected, IDS % 4 if name.startswith("2") else IDS, err_msg=name)
        found = read_mask_window(path, card, window, (150, 200)).values
        np.testing.assert_array_equal(found, expected[window.slices], err_msg=name)
        assert found.dtype == expected.dtype, name
        with pytest.raises(SampleError, match="the mask is 200 x 150"):
            read_mask_window(path, card, window, (150, 201))


def test_what_masks_may_not_hold_is_refused_whole_and_by_windows(tmp_path: Path) -> None:
    save_raster(tmp_path / "white.tif", IDS[None], photometric="MINISWHITE")
    save_raster(tmp_path / "white bits.tif", IDS[None] % 2, photometric="MINISWHITE", nbits=1)
    for dtype in ("int8", "int16", "int32", "float32"):
        save_raster(tmp_path / f"{dtype}.tif", IDS[None].astype(dtype) - 1)
    negative = "ids from -1(.0)? to 8(.0)?, but none may be negative"
    for name, encoding, message in (
        ("white.tif", "gray", "white is stored as 0"),
        ("white bits.tif", "gray", "white is stored as 0"),
        ("int8.tif", "gray", negative),
        ("int16.tif", "gray16", negative),
        ("int32.tif", "gray16", negative),
        ("float32.tif", "gray16", negative),
    ):
        card = replace(card_of(), mask_encoding=encoding)
        with pytest.raises(SampleError, match=message):
            read_raw_mask(tmp_path / name, card)
        with pytest.raises(SampleError, match=message):
            read_mask_window(tmp_path / name, card, Window(0, 0, 150, 200), (150, 200))


def test_windows_of_images_are_those_of_the_whole_whatever_the_mode(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    picture = Image.fromarray(rgb)
    window = Window(30, 20, 70, 90)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        for ending in ("png", "tif"):
            path = tmp_path / f"{mode}.{ending}"
            picture.convert(mode).save(path)
            expected, _ = read_card_image(path, card_of())
            found, _ = read_card_image(path, card_of(), window=window)
            np.testing.assert_array_equal(found, expected[window.slices], err_msg=str(path))


def test_what_cannot_be_read_by_windows_is_said(tmp_path: Path) -> None:
    window = Window(0, 0, 64, 64)
    rgb = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "print.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(tmp_path / "turned.jpg", exif=exif)
    save_raster(tmp_path / "deep.tif", rgb.transpose(2, 0, 1).astype("uint16"), photometric="RGB")
    save_raster(tmp_path / "four.tif", rgb.transpose(2, 0, 1), photometric="MINISBLACK")
    save_raster(tmp_path / "white.tif", rgb[None, ..., 0], photometric="MINISWHITE")
    for name, message in (
        ("print.tif", "CMYK"),
        ("turned.jpg", "orientation tag"),
        ("deep.tif", "more than 8 bits a channel"),
        ("four.tif", "not red, green and blue; name those to read"),
        ("white.tif", "white is stored as 0"),
    ):
        with pytest.raises(SampleError, match=message):
            read_card_image(tmp_path / name, card_of(), window=window)
    Image.fromarray(IDS).save(tmp_path / "lossy.tif", compression="jpeg")
    Image.fromarray(IDS).save(tmp_path / "lossy.jpg")
    Image.fromarray(rgb).save(tmp_path / "colour.tif")
    alpha = np.dstack([rgb, IDS])
    Image.fromarray(alpha).save(tmp_path / "clear.png")
    for name, encoding, message in (
        ("lossy.tif", "gray", "changes ids along every edge"),
        ("lossy.jpg", "gray", "changes ids along every edge"),
        ("colour.tif", "gray", "says gray masks"),
        ("clear.png", "rgb", "transparent"),
        ("none.mat", "mat", "MATLAB"),
        ("none.tif", "gray", "no such file"),
    ):
        with pytest.raises(SampleError, match=message):
            read_mask_window(tmp_path / name, replace(card_of(), mask_encoding=encoding), window, (150, 200))


def test_all_tiles_of_an_image_are_held_out_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(5):
        mask = rng.choice([0, 7, 9], (1, 150, 100)).astype(np.uint8)
        save_raster(tmp_path / f"images/{'abcde'[index]}.tif", np.repeat(mask, 3, 0), photometric="RGB")
        save_raster(tmp_path / f"masks/{'abcde'[index]}.tif", mask)
    dataset = SegmentationDataset(card_of(), tmp_path, tile=64)
    held = held_out_images(dataset, 0.2)
    parts = [{dataset.pairs[index].image for index in indices} for indices in (held.kept, held.held_out)]
    assert len(parts[0]) == 4
    assert len(parts[1]) == 1
    assert not parts[0] & parts[1]
