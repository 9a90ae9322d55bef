from __future__ import annotations

import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aucseg.datasets import DatasetCard, SampleError
from aucseg.datasets.bands import open_raster
from aucseg.datasets.card_layout import Layout
from aucseg.datasets.deep_color import read_deep_color
from aucseg.datasets.files import check_image, read_image
from aucseg.datasets.mask_files import read_mask
from aucseg.datasets.prediction_files import PredictionFiles
from aucseg.datasets.scan import scan_samples
from aucseg.datasets.scan_cache import ScanCache
from aucseg.datasets.split import SplitOfFiles
from aucseg.inference.image_files import ImageError, read_photo
from tests.datasets.files import Array, make, png_of_16_bits, tiff_of_16_bits

STORED = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
# The EXIF standard: where row 0 and column 0 of the stored pixels lie in the picture as shown.
TURNED = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels, 1),
}
CONTAINERS = ["png", "late.png", "jpg", "tif", "lzw.tif", "webp"]


def save(path: Path, orientation: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    image = Image.fromarray(STORED)
    if path.name.endswith("late.png"):
        # Some programs write the tags behind the pixels.
        image.save(path)
        body = tags.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
        data = path.read_bytes()
        path.write_bytes(data[:-12] + chunk + data[-12:])
    elif path.suffix == ".jpg":
        image.save(path, exif=tags, quality=100, subsampling=0)
    else:
        image.save(path, exif=tags, compression="tiff_lzw" if "lzw" in path.name else None, lossless=True)


def close(one: Array, other: Array, path: Path) -> bool:
    return one.shape == other.shape and np.abs(one.astype(int) - other).max() <= (8 if path.suffix == ".jpg" else 0)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("orientation", sorted(TURNED))
def test_orientation_means_the_same_in_every_container(orientation: int, container: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{container}"
    save(path, orientation)
    shown = TURNED[orientation](STORED)
    for data in (None, path.read_bytes()):
        assert close(read_image(path, "ignore", data), STORED, path)
        assert close(read_image(path, "apply", data), shown, path)
        with pytest.raises(SampleError, match=f"EXIF orientation {orientation}: .*'exif: ignore'.*'exif: apply'"):
            read_image(path, "error", data)
    for decode in (False, True):
        assert check_image(path, "ignore", decode) == STORED.shape[:2]
        assert check_image(path, "apply", decode) == shown.shape[:2]
        with pytest.raises(SampleError, match=f"EXIF orientation {orientation}"):
            check_image(path, "error", decode)
    assert close(read_photo(path, exif="ignore"), STORED, path)
    assert close(read_photo(path, exif="apply"), shown, path)


# libtiff does not write such tags.
@pytest.mark.parametrize("container", [container for container in CONTAINERS if container != "lzw.tif"])
@pytest.mark.parametrize("orientation", [0, 1, 9, 1000])
def test_other_orientations_mean_no_turn(orientation: int, container: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{container}"
    save(path, orientation)
    for exif in ("error", "ignore", "apply"):
        assert close(read_image(path, exif), STORED, path)
        assert check_image(path, exif) == STORED.shape[:2]


DEEP = np.random.default_rng(1).integers(0, 65536, (6, 10, 3)).astype(np.uint16)
WRITERS = {
    "a.png": lambda values: png_of_16_bits(values),
    "alpha.png": lambda values: png_of_16_bits(np.dstack([values, values[..., :1]])),
    "little.tif": lambda values: tiff_of_16_bits(values),
    "big.tif": lambda values: tiff_of_16_bits(values, ">"),
    "zip.tif": lambda values: tiff_of_16_bits(values, "<", True),
    "bigzip.tif": lambda values: tiff_of_16_bits(values, ">", True),
}


@pytest.mark.parametrize("name", WRITERS)
def test_colours_of_16_bits(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(WRITERS[name](DEEP >> 4))
    # Training: refused, by the header alone too. Prediction: by the range that is stated.
    for look in (read_image, check_image):
        with pytest.raises(
            SampleError, match=r"mode RGBA? with 16 bits \(more than 8 bits a channel\); convert it to 8"
        ):
            look(path)
    np.testing.assert_array_equal(read_deep_color(path), DEEP >> 4)
    scaled = read_photo(path, value_range=(0, 4095))
    np.testing.assert_array_equal(scaled, np.round((DEEP >> 4) * (255 / 4095)).astype(np.uint8))


@pytest.mark.parametrize("orientation", sorted(TURNED))
def test_turned_colours_of_16_bits(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_of_16_bits(DEEP, orientation=orientation))
    np.testing.assert_array_equal(read_deep_color(path, "ignore"), DEEP)
    np.testing.assert_array_equal(read_deep_color(path, "apply"), TURNED[orientation](DEEP))


def test_grey_and_transparency_of_16_bits_are_refused_in_training(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_of_16_bits(DEEP[..., :2]))
    with pytest.raises(SampleError, match="more than 8 bits a channel"):
        read_image(path)


def test_links_to_nothing_and_placeholders_say_how_to_fetch_the_file(tmp_path: Path) -> None:
    link = tmp_path / "a.png"
    link.symlink_to(tmp_path / ".git/annex/objects/x.png")
    with pytest.raises(
        SampleError, match=r"a symbolic link to .*annex.*, where there is no file; fetch it \(dvc pull, git"
    ):
        read_image(link)
    pointer = tmp_path / "b.png"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(SampleError, match="a placeholder of Git LFS: run git lfs pull"):
        read_image(pointer)
    assert not os.path.exists(link)


def test_no_permission_is_named_as_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, ("images/1.png", "masks/1.png"), ("images/2.tif", "masks/2.npy"))
    np.savez(tmp_path / "a.npz", np.zeros((2, 4, 4)))
    # Not by the mode of the files: tests may run as root.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    card = DatasetCard("", "", ("", ""), ((0, 0, 0),) * 2, {}, ((0,), (1,)))
    for read in (
        lambda: read_image(tmp_path / "images/1.png"),
        lambda: read_photo(tmp_path / "images/1.png"),
        lambda: read_mask(tmp_path / "masks/1.png", card),
        lambda: read_mask(tmp_path / "masks/2.npy", card),
        lambda: PredictionFiles(tmp_path, card, ["a"]).read_scores("a", np.zeros((4, 4))),
    ):
        with pytest.raises(ValueError, match="no permission to read the file; allow it"):
            read()
    splits = {"train": (Layout("images/*.*", "masks/{1}.*"),)}
    files = SplitOfFiles(replace(card, splits=splits), tmp_path)
    samples = list(scan_samples(files, cache=ScanCache(tmp_path / "cache")))
    assert all("no permission" in error for sample in samples for error in sample.errors)
    assert [len(sample.errors) for sample in samples] == [2, 2]


def _pages(path: Path, *sizes: tuple[int, int]) -> Path:
    first, *others = (Image.fromarray(np.full((*size, 3), 40 * i, np.uint8)) for i, size in enumerate(sizes))
    first.save(path, save_all=True, append_images=others)
    return path


@pytest.mark.parametrize("ending", ["tif", "gif", "webp", "png"])
def test_a_file_of_several_images_is_refused(ending: str, tmp_path: Path) -> None:
    path = _pages(tmp_path / f"a.{ending}", (6, 10), (6, 10), (6, 10))
    for data in (None, path.read_bytes()):
        with pytest.raises(SampleError, match=r"a\.\w+: holds 3 images .* write each to a file of its own"):
            read_image(path, data=data)
        if ending == "tif":
            with pytest.raises(SampleError, match="holds 3 images"), open_raster(path, data):
                pass
    with pytest.raises(SampleError, match="holds 3 images"):
        check_image(path)
    with pytest.raises(ImageError, match="holds 3 images"):
        read_photo(path)


def test_smaller_copies_of_an_image_are_no_further_images(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    pyramid = tmp_path / "pyramid.tif"
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 500000, 0, -10, 6000000)}
    with rasterio.open(pyramid, "w", driver="COG", height=1200, width=1100, count=3, dtype="uint8", **place) as raster:
        raster.write(np.full((3, 1200, 1100), 7, np.uint8))
    with Image.open(pyramid) as image:
        assert getattr(image, "n_frames", 1) > 1
    for path, shape in ((pyramid, (1200, 1100)), (_pages(tmp_path / "thumbnail.tif", (60, 100), (6, 10)), (60, 100))):
        for pixels in (read_image(path), read_photo(path)):
            assert pixels.shape == (*shape, 3)
            assert (pixels == pixels[0, 0]).all()
        with open_raster(path) as raster:
            assert raster.shape == shape
