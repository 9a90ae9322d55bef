"""The whole way with images of five bands of 16 bits, by windows: statistics, training, validation, prediction."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from aucseg.cli import main
from aucseg.run_files import IMAGES_FILE
from aucseg.training.stored_task import load_task
from tests.datasets.conftest import save_mask
from tests.datasets.files import save_raster
from tests.small_runs import SMALL_RUN

rasterio = pytest.importorskip("rasterio")

CARD = """
name: fields
bands: [5, 4, 3, 2, 1]
value_range: [0, 10000]
ignore_ids: [255]
classes: [{name: soil}, {name: water}, {name: weed}]
groups: {head: [soil], middle: [water], tail: [weed]}
splits:
  train: {images: "images/train/*.tif", masks: "masks/train/{stem}.png"}
  val: {images: "images/val/*.tif", masks: "masks/val/{stem}.png"}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            mask = np.zeros((96, 128))
            mask[48:] = 1
            mask[4:12, 4:12] = 2
            values = rng.integers(0, 10000, (5, 96, 128)).astype(np.uint16)
            save_raster(root / f"images/{split}/{i}.tif", values, nodata=0)
            (root / f"masks/{split}").mkdir(parents=True, exist_ok=True)
            save_mask(mask, root / f"masks/{split}/{i}.png")
    (tmp_path / "card.yaml").write_text(CARD)
    return root


def test_five_bands_of_16_bits_train_and_predict_in_their_place(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = str(tmp_path / "card.yaml")
    assert main(["stats", card, "--root", str(root), "--workers", "0", "--tile", "64"]) == 0
    told = capsys.readouterr().out
    assert "tiles: 24 of 4 large images" in told
    found = re.search(r"--model.mean '(\[[^]]+\])' --model.std '(\[[^]]+\])'", told)
    assert found is not None
    images = []
    for i in range(4):
        with rasterio.open(root / f"images/train/{i}.tif") as raster:
            images.append(raster.read()[::-1].reshape(5, -1) * (255 / 10000))
    np.testing.assert_allclose(eval(found[1]), np.concatenate(images, 1).mean(1), atol=1e-3)
    np.testing.assert_allclose(eval(found[2]), np.concatenate(images, 1).std(1), atol=1e-3)

    run = tmp_path / "run"
    options = {
        **SMALL_RUN,
        "data.card": card,
        "data.root": root,
        "data.batch_size": 2,
        "data.num_workers": 0,
        "data.crop_size": "[32,32]",
        "data.tile": 64,
        "trainer.max_steps": 2,
        "out": run,
    }
    arguments = [f"--{key}={value}" for key, value in options.items()]
    assert main(["fit", *arguments]) == 2
    assert "model.mean has 3 values for images of 5 bands" in capsys.readouterr().err
    assert main(["fit", *arguments, f"--model.mean={found[1]}", f"--model.std={found[2]}"]) == 0

    overlaps = json.loads((run / IMAGES_FILE).read_text())
    for index in range(2):
        # Each image once, with the pixels of all its tiles; those without data are ignored.
        with rasterio.open(root / f"images/val/{index}.tif") as raster:
            num_labelled = int((raster.read() != 0).any(0).sum())
        assert sum(entry[2] for entry in overlaps[f"images/val/{index}"].values()) == num_labelled
    assert len(overlaps) == 2

    task = load_task(run)
    assert task.card.bands == (5, 4, 3, 2, 1)
    assert task.mean.flatten().tolist() == pytest.approx(eval(found[1]))
    assert next(iter(task.model.parameters())).shape[1] == 5

    out = tmp_path / "out"
    assert main(["predict", str(run), str(root / "images/val"), "--out", str(out), "--device", "cpu"]) == 0
    with rasterio.open(root / "images/val/0.tif") as source, rasterio.open(out / "labels/0.tif") as labels:
        assert labels.crs == source.crs == "EPSG:32633"
        assert labels.transform == source.transform
        assert labels.shape == source.shape
        assert labels.read(1).max() < 3
        assert labels.colormap(1)[2][:3] == task.card.palette[2]
    assert (out / "overlays/0.png").is_file()
