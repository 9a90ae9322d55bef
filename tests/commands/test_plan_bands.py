"""Folders of images that are not photographs of 8 bits: slices of 16 bits, floats, more bands."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from aucseg import cli
from aucseg.datasets import DatasetCard
from aucseg.datasets.propose import propose_card
from aucseg.training import speed
from aucseg.training.speed import Speed
from aucseg.training.stored_task import load_task
from tests.commands.conftest import Launches
from tests.datasets.files import save_raster

LEVELS = np.array([200.0, 9000.0, 40000.0])


def write_folder(root: Path, save: Callable[[Path, np.ndarray], object], ending: str, *, large: bool = False) -> None:
    """Eight slices to train on and four to validate on, whose rare class is small and far brighter than the others."""
    rng = np.random.default_rng(0)
    height, width = (300, 400) if large else (48, 64)
    for split, count in (("train", 8), ("val", 4)):
        (root / "masks" / split).mkdir(parents=True)
        (root / "images" / split).mkdir(parents=True)
        for index in range(count):
            mask = np.zeros((height, width), np.uint8)
            mask[height // 2 :] = 1
            side = 20 if large else 5
            mask[4 : 4 + side, 4 : 4 + side] = 2 * (index % 4 == 0)
            values = LEVELS[mask] + rng.uniform(-100, 100, mask.shape)
            values[0, 0] = 65000  # a hot pixel
            save(root / "images" / split / f"{index}{ending}", values)
            Image.fromarray(mask).save(root / "masks" / split / f"{index}.png")


def save_png(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint16)).save(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def run(line: str) -> int:
    return cli.main(shlex.split(line))


@pytest.mark.slow
def test_slices_of_16_bits_go_through_all_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(folder / "slices", save_png, ".png", large=True)
    options = "--trainer.max_steps 2 --data.num_workers 0 --trainer.logger false --trainer.accelerator cpu"
    assert run(f"fit slices {options}") == 0
    out = capsys.readouterr().out
    assert "bands [1], value_range 100 to 40,100" in out
    assert "1 band, 100 to 40,100 scaled to 0 to 255 (value_range in the card): it holds 99 %" in " ".join(out.split())
    made = folder / "runs" / "slices"
    assert "# value_range: for each band the values that become 0 and 255" in (made / "card.yaml").read_text()
    plan = yaml.safe_load((made / "plan.yaml").read_text())
    assert plan["data"]["eval_base_size"] == [256, 192]
    task = load_task(made)
    assert task.card.bands == (1,)
    assert task.card.value_range == ((100.0, 40100.0),)
    assert next(iter(task.model.parameters())).shape[1] == 1
    # The mean of all pixels, without what is cut off.
    mean = np.mean([(LEVELS[0] - 100) / 40000 * 255, (LEVELS[1] - 100) / 40000 * 255])
    assert task.mean.item() == pytest.approx(mean, rel=0.02)
    miou = json.loads((made / "result.json").read_text())["metrics"]["miou"]

    assert run("validate runs/slices") == 0
    found = json.loads((made / "evaluation-val" / "result.json").read_text())["metrics"]["miou"]
    assert found == pytest.approx(miou, abs=1e-4)
    assert run("predict runs/slices slices/images/val --out predicted --device cpu") == 0
    labels = np.array(Image.open(folder / "predicted" / "labels" / "0.png"))
    assert labels.shape == (300, 400)
    capsys.readouterr()
    assert run("report runs/slices --out report.html") == 0
    assert "left out" not in capsys.readouterr().err
    assert "data:image" in (folder / "report.html").read_text()  # the pictures, of images that are scaled
    assert run("export runs/slices --to model.pt2") == 0
    assert run("export runs/slices --to model.pt2 --images slices/images/val") == 0


def test_stats_and_compare_propose_the_same(folder: Path, launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure_speed", lambda *_, **__: Speed(step=0.1, image=0.05, start=1.0, steps=8))
    write_folder(folder / "slices", save_png, ".png")
    options = "--workers 0 --write-card my.yaml --write-config run.yaml"
    assert run(f"stats slices {options}") == 0
    assert DatasetCard.load(folder / "my.yaml").value_range == ((100.0, 40100.0),)
    planned = yaml.safe_load((folder / "run.yaml").read_text())
    assert run("compare slices --no-report --steps 2") == 0
    assert launches()
    compared = yaml.safe_load((folder / "runs" / "slices-compare" / "plan.yaml").read_text())
    for name in ("mean", "std"):
        assert len(planned["model"][name]) == 1
        assert compared["model"][name] == planned["model"][name]


def _tiff(dtype: str, count: int = 1) -> Callable[[Path, np.ndarray], object]:
    return lambda path, values: save_raster(path, np.repeat((values / 256)[None], count, 0).astype(dtype))


@pytest.mark.parametrize(
    ("save", "bands", "value_range"),
    [
        (_tiff("float32"), (1,), ((0.3, 156.7),)),
        (_tiff("int16", 5), (1, 2, 3, 4, 5), ((0, 156),) * 5),
        (_tiff("uint8", 5), (1, 2, 3, 4, 5), None),
        (_tiff("uint8", 3), None, None),
        (_tiff("uint8"), None, None),
    ],
    ids=["float", "5 bands of 16 bits", "5 bands of 8 bits", "colours", "8-bit grey"],
)
def test_what_a_folder_of_rasters_is_taken_for(
    folder: Path,
    save: Callable[[Path, np.ndarray], object],
    bands: tuple[int, ...] | None,
    value_range: tuple[tuple[float, float], ...] | None,
) -> None:
    write_folder(folder / "rasters", save, ".tif")
    card = propose_card(folder / "rasters")
    assert card.bands == bands
    if value_range is None:
        assert card.value_range is None
    else:
        assert card.value_range is not None
        np.testing.assert_allclose(card.value_range, value_range, atol=0.5)
        # The rare class is not cut off, and the hot pixel is.
        assert card.value_range[0][1] < 160


def test_images_of_several_kinds_and_without_contrast_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(folder / "mixed", save_png, ".png")
    Image.new("L", (64, 48), 7).save(folder / "mixed" / "images" / "val" / "3.png")
    assert run("fit mixed") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "11 of 1 band of more than 8 bits" in error
    assert "1 of photographs of 8 bits (mixed/images/val/3.png)" in error
    assert "save them in one form" in error
    write_folder(folder / "flat", lambda path, values: save_png(path, np.full_like(values, 300)), ".png")
    assert run("fit flat") == 2
    assert "nearly all pixels of band 1 are 300" in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "runs").exists()


def test_without_rasterio_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(folder / "slices", save_png, ".png")
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    assert run("fit slices") == 2
    assert 'pip install "aucseg[geo]"' in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "runs").exists()
