"""Rasters that are predicted by windows, as they are written where they are large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import aucseg.inference.large_rasters as large_rasters
from aucseg.datasets import DatasetCard
from aucseg.inference.predict_files import predict_paths
from aucseg.inference.predictor import InferenceOptions, Predictor
from tests.datasets.conftest import MINI
from tests.datasets.files import save_raster

rasterio = pytest.importorskip("rasterio")
PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def brightest_channel(images: torch.Tensor) -> torch.Tensor:
    return images[:, :3] / 255


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_rasters, "LARGE_PIXELS", 10_000)
    monkeypatch.setattr(large_rasters, "_OVERLAY_SIDE", 64)
    monkeypatch.setattr(large_rasters, "_PART_SIDE", 70)
    # What would be decoded whole is refused.
    monkeypatch.setattr(
        "aucseg.inference.image_files.load_oriented", lambda *_: pytest.fail("the file was decoded whole")
    )


def predict(path: Path, out: Path, window: tuple[int, int] | None = (48, 56), **options: object) -> object:
    predictor = Predictor(brightest_channel, InferenceOptions(window=window), device="cpu")
    options = {"class_names": ["a", "b", "c"], "palette": PALETTE, "progress": False, **options}
    return predict_paths(predictor, [path], out, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("has_bands", [False, True])
def test_labels_and_overlay_are_those_of_the_whole(has_bands: bool, tmp_path: Path, small_limits: None) -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 150, 230), dtype=np.uint8)
    path = save_raster(tmp_path / "x.tif", values, photometric="RGB")
    card = DatasetCard.from_yaml(MINI + "bands: [3, 2, 1]\n") if has_bands else None
    predict(path, tmp_path / "out", scores=True, opacity=0.25, card=card)
    image = values[::-1] if has_bands else values
    labels = image.argmax(0)
    with rasterio.open(tmp_path / "out/labels/x.tif") as raster, rasterio.open(path) as source:
        np.testing.assert_array_equal(raster.read(1), labels)
        assert raster.transform == source.transform
    overlay = np.asarray(Image.open(tmp_path / "out/overlays/x.png")).astype(int)
    mixed = 0.75 * image.transpose(1, 2, 0) + 0.25 * np.array(PALETTE)[labels]
    assert np.abs(overlay - mixed[::4, ::4]).max() <= 1
    assert np.load(tmp_path / "out/scores/x.npy").shape == (3, 150, 230)
    assert not list((tmp_path / "out").glob("tmp*"))


def test_a_raster_without_a_place_is_a_tiff_too_and_a_window_is_asked_for(tmp_path: Path, small_limits: None) -> None:
    values = np.random.default_rng(0).integers(0, 256, (150, 230, 3), dtype=np.uint8)
    path = tmp_path / "x.tif"
    Image.fromarray(values).save(path)
    predict(path, tmp_path / "out", overlays=False)
    with Image.open(tmp_path / "out/labels/x.tif") as file:
        np.testing.assert_array_equal(np.asarray(file), values.argmax(2))
    summary = predict(path, tmp_path / "out", window=None)
    assert "give a window (--window)" in next(iter(summary.failures.values()))  # type: ignore[attr-defined]
    summary = predict(path, tmp_path / "out", max_pixels=20_000)
    assert "--max-pixels" in next(iter(summary.failures.values()))  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_large", [False, True])
def test_exif_of_the_call_goes_before_that_of_the_card(
    is_large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_large:
        monkeypatch.setattr(large_rasters, "LARGE_PIXELS", 10)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.tif"
    Image.new("RGB", (12, 10), (0, 200, 0)).save(path, exif=exif)
    for of_card in ("error", "ignore"):
        card = DatasetCard.from_yaml(MINI + f"bands: [1, 2, 3]\nexif: {of_card}\n")
        for of_call in (None, "ignore", "apply"):
            summary = predict(path, tmp_path / "out", (8, 8), card=card, exif=of_call)
            assert (not summary.failures) == ((of_call or of_card) == "ignore")  # type: ignore[attr-defined]
            assert all("--exif ignore" in text for text in summary.failures.values())  # type: ignore[attr-defined]
