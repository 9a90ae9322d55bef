import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch import nn

from aucseg import SegmentationTask
from aucseg.models import build_model
from aucseg.run_folder import (
    CONFIG_FILE,
    LAST_CHECKPOINT,
    load_task,
    per_image_overlap,
    prepare_run_folder,
    write_json,
)


@given(seed=st.integers(0, 10_000), num_classes=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_overlap_equals_counting_by_hand(seed: int, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(num_classes, (7, 9), generator=generator)
    target = torch.randint(num_classes, (7, 9), generator=generator)
    target[torch.rand(7, 9, generator=generator) < 0.2] = 255
    valid = target != 255
    expected = {}
    for class_id in range(num_classes):
        intersection = int(((predicted == class_id) & (target == class_id)).sum())
        union = int((((predicted == class_id) | (target == class_id)) & valid).sum())
        if union:
            expected[class_id] = [intersection, union]
    assert per_image_overlap(predicted, target, num_classes, 255) == expected


def test_nan_is_written_as_null_and_no_temporary_file_stays(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": {"c": 1.5}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": {"c": 1.5}}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_run_is_not_replaced_unasked_and_other_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    prepare_run_folder(folder)
    (folder / CONFIG_FILE).write_text("old")
    (folder / LAST_CHECKPOINT).parent.mkdir()
    (folder / LAST_CHECKPOINT).write_text("old")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"already holds a run: give another folder"):
        prepare_run_folder(folder)
    prepare_run_folder(folder, overwrite=True)
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["notes.txt"]
    assert not (folder / LAST_CHECKPOINT).exists()


def checkpoint_of(task: SegmentationTask, path: Path) -> Path:
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path, weights_only=True)
    return path


def test_a_checkpoint_does_not_need_the_weights_that_its_run_began_with(tiny_card: Path, tmp_path: Path) -> None:
    tiny = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "head_channels": 32, "num_bases": 4}
    encoder = tmp_path / "mscan.pth"
    torch.save(build_model("segnext/tiny", 4, **tiny).get_submodule("backbone").state_dict(), encoder)
    options = {**tiny, "encoder_weights": str(encoder)}
    task = SegmentationTask(str(tiny_card), "segnext/tiny", options, mean=[1.0, 2.0, 3.0]).eval()
    path = checkpoint_of(task, tmp_path / "task.ckpt")
    encoder.unlink()
    loaded = load_task(path)
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), task(images), rtol=0, atol=0)
    assert loaded.mean.flatten().tolist() == [1.0, 2.0, 3.0]
    assert loaded.std.flatten().tolist() == task.std.flatten().tolist()


def test_a_model_without_a_name_is_told(tiny_card: Path, tmp_path: Path) -> None:
    path = checkpoint_of(SegmentationTask(str(tiny_card), nn.Conv2d(3, 4, 1)), tmp_path / "task.ckpt")
    with pytest.raises(ValueError, match=r"given as a module, not by name.*load_from_checkpoint\(path, model=module"):
        load_task(path)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="is no checkpoint of 'aucseg fit'"):
        load_task(tmp_path / "other.ckpt")
