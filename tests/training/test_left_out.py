"""Validation images that cannot be read: with `on_error` "skip" they are left out, and none counts twice."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aucseg import SegmentationDataModule, SegmentationTask
from aucseg.datasets.files import SampleError
from aucseg.training.adjustment import evaluation_batches, fit_task_offsets
from aucseg.training.result_writer import ResultWriter
from tests.conftest import write_tiny_dataset
from tests.small_runs import make_trainer

MODEL = "tests.inference.color_models:with_bias"


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return write_tiny_dataset(tmp_path / "data", num_train=2, num_val=4)


def cut_off(card: Path, *numbers: int) -> None:
    for number in numbers:
        path = card.parent / "images" / "val" / f"frame_{number:02d}.png"
        path.write_bytes(path.read_bytes()[:200])


def take_away(card: Path, *numbers: int) -> None:
    for folder in ("images", "masks"):
        for number in numbers:
            (card.parent / folder / "val" / f"frame_{number:02d}.png").unlink()


def data_module(card: Path, **options: Any) -> SegmentationDataModule:
    return SegmentationDataModule(
        str(card), str(card.parent), **{"num_workers": 0, "on_error": "skip", "eval_batch_size": 2, **options}
    )


def result_files(out: Path) -> dict[str, Any]:
    return {name: json.loads((out / f"{name}.json").read_text()) for name in ("images", "confusion", "result")}


def evaluate(card: Path, out: Path, **options: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics, and the content of the result files."""
    task = SegmentationTask(str(card), MODEL, mean=[0.0] * 3, std=[1.0] * 3, loss="ce")
    trainer = make_trainer(out, 1, callbacks=[ResultWriter(out)])
    (metrics,) = trainer.validate(task, data_module(card, **options), verbose=False)
    return dict(metrics), result_files(out)


@pytest.mark.parametrize("numbers", [(1,), (3,), (0, 1), (2, 3)])
def test_what_cannot_be_read_is_left_out_and_nothing_counts_twice(
    numbers: tuple[int, ...], card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same as where these images are not there; of (0, 1) and (2, 3) nothing is left of a batch of two."""
    cut_off(card, *numbers)
    names = [f"images/val/frame_{number:02d}" for number in numbers]
    found = [
        evaluate(card, tmp_path / f"skip-{size}-{workers}", eval_batch_size=size, num_workers=workers)
        for size, workers in ((1, 0), (2, 0), (2, 1), (4, 0))
    ]
    said = capsys.readouterr().err
    assert said.count(f"left out of the validation: {len(numbers)} of 4 images, not readable: {names[0]}") == 4
    take_away(card, *numbers)
    metrics, files = evaluate(card, tmp_path / "without")
    assert "left_out" not in files["result"]
    assert "left out" not in capsys.readouterr().err
    for metrics_found, files_found in found:
        assert metrics_found == pytest.approx(metrics, rel=1e-5, nan_ok=True)
        assert files_found["images"] == files["images"]
        assert files_found["confusion"] == files["confusion"]
        assert files_found["result"]["left_out"] == names
        assert files_found["result"]["metrics"]["image_miou"] == pytest.approx(files["result"]["metrics"]["image_miou"])


def test_nothing_readable_is_an_error(card: Path, tmp_path: Path) -> None:
    cut_off(card, *range(4))
    with pytest.raises(SampleError, match="not one of the 4 validation images can be read, such as images/val/f"):
        evaluate(card, tmp_path / "out")
    with pytest.raises(SampleError, match="frame_00"):
        evaluate(card, tmp_path / "out", on_error="raise")


def test_offsets_are_fitted_to_each_image_once(card: Path) -> None:
    task = SegmentationTask(str(card), MODEL, mean=[0.0] * 3, std=[1.0] * 3, loss="ce").eval()
    cut_off(card, 1)
    images, batches = evaluation_batches(data_module(card))
    found = fit_task_offsets(task, batches, num_folds=2)
    assert (len(images), images.num_left_out, found.num_images) == (4, 1, 3)
    take_away(card, 1)
    images, batches = evaluation_batches(data_module(card))
    assert fit_task_offsets(task, batches, num_folds=2) == found
    assert images.num_left_out == 0
    cut_off(card, 0, 2, 3)
    with pytest.raises(ValueError, match="no labelled pixel to fit offsets on"):
        fit_task_offsets(task, evaluation_batches(data_module(card))[1])


def test_training_keeps_its_number_of_images(card: Path) -> None:
    path = card.parent / "images" / "train" / "frame_00.png"
    path.write_bytes(path.read_bytes()[:200])
    data = data_module(card)
    assert data.training_dataset(None)[0]["name"] == "images/train/frame_01"


_TWO_PROCESSES = """
import sys
from pathlib import Path
from tests.training.test_left_out import MODEL, ResultWriter, SegmentationTask, data_module, make_trainer
card, out = map(Path, sys.argv[1:])
task = SegmentationTask(str(card), MODEL, mean=[0.0] * 3, std=[1.0] * 3, loss="ce")
trainer = make_trainer(out, 1, callbacks=[ResultWriter(out)], strategy="ddp", devices=2)
trainer.validate(task, data_module(card, eval_batch_size=1), verbose=False)
"""


def test_two_processes_of_which_one_has_nothing_to_read(card: Path, tmp_path: Path) -> None:
    cut_off(card, 1, 3)
    script = tmp_path / "script.py"
    script.write_text(_TWO_PROCESSES)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(card), str(tmp_path / "two")],
        capture_output=True, text=True, env=environment, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out of the validation: 2 of 4 images") == 1
    metrics, files = evaluate(card, tmp_path / "one", eval_batch_size=1)
    two = result_files(tmp_path / "two")
    assert two["images"] == files["images"]
    assert two["confusion"] == files["confusion"]
    assert two["result"]["left_out"] == files["result"]["left_out"]
    assert two["result"]["metrics"]["miou"] == pytest.approx(metrics["val/miou"])
