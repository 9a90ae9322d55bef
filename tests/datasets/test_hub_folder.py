"""Data sets of the library `datasets` become folders that everything else takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aucseg.cli import main
from aucseg.datasets import DatasetCard, SegmentationDataset
from aucseg.datasets.hub_folder import root_of, unpack_hub_dataset
from aucseg.datasets.propose import propose_card
from aucseg.training.datamodule import SegmentationDataModule
from tests.datasets.files import blocks
from tests.small_runs import SMALL_RUN

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return tmp_path / "cache"


def mask_of(index: int) -> Any:
    return blocks([0, 1, 2], seed=index, size=(48, 64)).astype(np.uint8)


def image_of(index: int) -> Any:
    return np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def rows(*indices: int, mask_column: str = "label") -> Any:
    columns = {
        "image": [Image.fromarray(image_of(i)) for i in indices],
        mask_column: [Image.fromarray(mask_of(i)) for i in indices],
        "scene": [f"scene {i}" for i in indices],
    }
    features = {"image": datasets.Image(), mask_column: datasets.Image(), "scene": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A data set as `save_to_disk` writes it."""
    path = tmp_path / "my set"
    datasets.DatasetDict({"train": rows(0, 1, 2, 3), "validation": rows(4, 5)}).save_to_disk(str(path))
    return path


def check(root: Path) -> None:
    card = propose_card(root)
    for split, indices in (("train", range(4)), ("val", range(4, 6))):
        found = SegmentationDataset(card, root, split)
        assert len(found) == len(indices)
        for place, index in enumerate(indices):
            sample = found[place]
            np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), image_of(index))
            np.testing.assert_array_equal(sample["mask"].numpy(), mask_of(index))


def test_saved_parquet_and_open_data_sets_give_the_same_samples(saved: Path, tmp_path: Path) -> None:
    first = unpack_hub_dataset(saved)
    check(first)
    stamp = (first / "train/images/000000.png").stat().st_mtime_ns
    assert unpack_hub_dataset(str(saved), mask_column="label") == first
    assert (first / "train/images/000000.png").stat().st_mtime_ns == stamp
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    loaded = datasets.load_from_disk(str(saved))
    for split, part in loaded.items():
        part.to_parquet(str(parquet / f"{split}-00000-of-00001.parquet"))
    check(unpack_hub_dataset(parquet))
    check(unpack_hub_dataset(loaded, folder=tmp_path / "here"))
    assert (tmp_path / "here/val/masks").is_dir()
    with pytest.raises(ValueError, match="is there already"):
        unpack_hub_dataset(rows(1, 2), folder=tmp_path / "here")
    assert root_of({"hf": str(saved)}) == str(first)
    assert root_of({"hf": str(saved), "root": "x"}) == "x"


def test_bytes_names_and_arrays_are_kept(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    paths = [tmp_path / f"files/drive 1_{i}.jpg" for i in range(2)]
    for i, path in enumerate(paths):
        Image.fromarray(image_of(i)).save(path)
    columns = {"photo": [str(path) for path in paths], "ids": [mask_of(i).tolist() for i in range(2)]}
    table = datasets.Dataset.from_dict(columns).cast_column("photo", datasets.Image())
    root = unpack_hub_dataset(table, image_column="photo", mask_column="ids")
    assert (root / "train/images/drive_1_0.jpg").read_bytes() == paths[0].read_bytes()
    np.testing.assert_array_equal(np.load(root / "train/masks/drive_1_1.npy"), mask_of(1))
    found = SegmentationDataset(propose_card(root), root)
    np.testing.assert_array_equal(found[1]["mask"].numpy(), mask_of(1))


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.5, "are not all whole numbers"), (-1, "none may be negative"), (np.nan, "not numbers"), (1e300, "0..65535")],
)
def test_ids_that_are_not_whole_are_refused(value: float, message: str) -> None:
    image, mask = [Image.fromarray(image_of(0))], mask_of(0).astype(float)
    features = {"image": datasets.Image(), "ids": datasets.Sequence(datasets.Sequence(datasets.Value("float64")))}
    mask[0, 0] = value
    table = datasets.Dataset.from_dict({"image": image, "ids": [mask.tolist()]}, features=datasets.Features(features))
    with pytest.raises(ValueError, match=f"^row 000000: .*{message}"):
        unpack_hub_dataset(table, mask_column="ids")
    mask[0, 0] = 2
    table = datasets.Dataset.from_dict({"image": image, "ids": [mask.tolist()]}, features=datasets.Features(features))
    root = unpack_hub_dataset(table, mask_column="ids")
    np.testing.assert_array_equal(np.load(root / "train/masks/000000.npy"), mask)


def test_names_with_a_dot_in_front_are_not_hidden(tmp_path: Path) -> None:
    for i, name in enumerate((".a.png", "b.png")):
        Image.fromarray(image_of(i)).save(tmp_path / name)
    columns = {"image": [str(tmp_path / name) for name in (".a.png", "b.png")], "ids": [mask_of(0).tolist()] * 2}
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    root = unpack_hub_dataset(table, mask_column="ids")
    assert sorted(path.name for path in (root / "train/images").iterdir()) == ["a.png", "b.png"]


def test_mistakes_are_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no image_column 'imag'; did you mean image"):
        unpack_hub_dataset(saved, image_column="imag")
    with pytest.raises(ValueError, match="which column holds the masks"):
        unpack_hub_dataset(rows(0, 1, mask_column="other"))
    with pytest.raises(ValueError, match="column 'scene' holds"):
        unpack_hub_dataset(saved, mask_column="scene")
    with pytest.raises(ValueError, match=r"cannot be loaded \(.*give the folder of save_to_disk"):
        unpack_hub_dataset(tmp_path / "nothing/here")
    with pytest.raises(ValueError, match="is no Dataset"):
        unpack_hub_dataset([1, 2])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    columns = {"image": [Image.fromarray(image_of(0))], "label": [None]}
    with pytest.raises(ValueError, match="row 000000 has no label"):
        unpack_hub_dataset(datasets.Dataset.from_dict(columns, features=features))


def test_stats_and_the_data_module_take_them(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "card.yaml"
    assert main(["stats", "--hf", str(saved), "--workers", "0", "--write-card", str(card)]) == 0
    assert "train 4 images, val 2 images" in capsys.readouterr().out
    assert main(["stats", str(card), "--hf", str(saved), "--workers", "0", "--split", "val"]) == 0
    assert "2 images, no problem found" in capsys.readouterr().out
    assert main(["stats", str(card), "--hf", str(saved), "--root", "x"]) == 2
    assert main(["stats"]) == 2
    module = SegmentationDataModule(str(card), hf=str(saved), batch_size=2, num_workers=0, crop_size=(16, 16))
    assert len(module.training_dataset(None)) == 4
    assert next(iter(module.val_dataloader()))["mask"].shape == (1, 48, 64)
    assert DatasetCard.load(card).num_classes == 3


@pytest.mark.slow
def test_fit_and_validate_take_them(saved: Path, tmp_path: Path) -> None:
    card, run = tmp_path / "card.yaml", tmp_path / "run"
    assert main(["stats", "--hf", str(saved), "--workers", "0", "--write-card", str(card)]) == 0
    options = {
        **SMALL_RUN,
        "model.bank": "null",
        "data.card": card,
        "data.hf": saved,
        "data.batch_size": 2,
        "data.num_workers": 0,
        "data.crop_size": "[32,32]",
        "trainer.max_steps": 2,
        "out": run,
    }
    assert main(["fit", *(f"--{key}={value}" for key, value in options.items())]) == 0
    assert main(["validate", str(run), "--device", "cpu"]) == 0
    assert (run / "evaluation-val/result.json").is_file()
