import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from aucseg import SegmentationTask
from aucseg.models import build_model
from aucseg.training.datamodule import SegmentationDataModule
from aucseg.training.stored_task import load_task
from tests.small_runs import make_trainer


def checkpoint_of(task: SegmentationTask, path: Path) -> Path:
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}, path)
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
    with pytest.raises(ValueError, match="given as a module, not by name"):
        load_task(path)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint of 'aucseg fit'"):
        load_task(tmp_path / "other.ckpt")


def test_the_loss_of_a_strangers_file_is_not_imported(
    tiny_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a_strangers_loss.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    tiny = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "head_channels": 32, "num_bases": 4}
    task = SegmentationTask(str(tiny_card), "segnext/tiny", tiny, loss="a_strangers_loss:Loss")
    loaded = load_task(checkpoint_of(task, tmp_path / "task.ckpt"))
    trainer = make_trainer(tmp_path, 1)
    data = SegmentationDataModule(str(tiny_card), str(tiny_card.parent), num_workers=0)
    with pytest.raises(ValueError, match=r"'a_strangers_loss:Loss' as its loss\. It is not imported"):
        trainer.validate(loaded, datamodule=data, verbose=False)
    assert not Path("imported").exists()
    monkeypatch.setenv("AUCSEG_TRUST_FILES", "1")
    with pytest.raises(ImportError, match="a_strangers_loss has no class or function 'Loss'"):
        trainer.validate(load_task(tmp_path / "task.ckpt"), datamodule=data, verbose=False)
    assert Path("imported").exists()
