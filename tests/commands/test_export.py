import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from aucseg.cli import main
from aucseg.inference import export
from aucseg.inference.export import ExportCheck, ExportError
from aucseg.models import WrappedNetwork, build_model, load_checkpoint
from aucseg.models.hub import HubModel
from aucseg.training import stored_task

NAMES = ("wall", "floor", "door", "barrel")
PALETTE = ((128, 96, 64), (0, 200, 0), (0, 0, 200), (9, 8, 7))
SEGNEXT = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "head_channels": 32, "num_bases": 4}


def task(name: str | None) -> Any:
    """What export reads of a SegmentationTask; without a name its model was given as a module."""
    torch.manual_seed(0)
    return SimpleNamespace(
        model=build_model(name, 4, **SEGNEXT).eval()
        if name
        else WrappedNetwork(nn.Conv2d(3, 4, 3, stride=4, padding=1), 4, stride=4).eval(),
        hparams={"model": name, "model_options": {**SEGNEXT, "encoder_weights": "absent.pth"}},
        card=SimpleNamespace(class_names=NAMES, palette=PALETTE, bands=None, num_channels=3),
        mean=torch.tensor((127.0, 120.0, 110.0)).view(3, 1, 1),
        std=torch.tensor((128.0, 60.0, 50.0)).view(3, 1, 1),
    )


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the task that every run seems to hold."""
    return lambda of: monkeypatch.setattr(stored_task, "load_task", lambda run: of)


def test_folder_for_the_hub(tmp_path: Path, stored: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source = task("segnext/tiny")
    stored(source)
    folder = tmp_path / "hub"
    assert main(["export", "runs/a", "--to", str(folder)]) == 0
    assert json.loads((folder / "config.json").read_text())["class_names"] == list(NAMES)
    loaded = HubModel.from_pretrained(folder)
    assert loaded.class_names == list(NAMES)
    assert loaded.palette == list(PALETTE)
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = source.model((pixels.float() - source.mean) / source.std)
        torch.testing.assert_close(loaded(pixels), expected, rtol=0, atol=0)
    modes = {path.stat().st_mode for path in folder.iterdir() if path.is_file()}
    assert len(modes) == 1  # also of the weights, which safetensors would make readable for nobody else
    assert main(["export", "runs/a", "--to", str(folder)]) == 0  # it is replaced
    assert main(["export", "runs/a", "--to", f"{tmp_path / 'v1.2'}/"]) == 0
    assert (tmp_path / "v1.2" / "model.safetensors").is_file()
    capsys.readouterr()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"mine": 1}')
    assert main(["export", "runs/a", "--to", str(tmp_path / "mine")]) == 2
    assert "has another model's files" in capsys.readouterr().err
    assert (tmp_path / "mine" / "config.json").read_text() == '{"mine": 1}'
    assert main(["export", "runs/a", "--to", str(tmp_path / "a.pth")]) == 2
    assert "end it in .onnx, .pt2 or .safetensors, or in / for a folder" in capsys.readouterr().err
    stored(task(None))
    assert main(["export", "runs/a", "--to", str(tmp_path / "other")]) == 2
    assert "given as a module" in capsys.readouterr().err


def test_files(tmp_path: Path, stored: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source = task(None)
    stored(source)
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    target = tmp_path / "model.pt2"
    assert main(["export", "runs/a", "--to", str(target), "--images", str(tmp_path / "*.png")]) == 0
    assert "checked on 1 images" in capsys.readouterr().out
    assert target.exists()
    weights = tmp_path / "model.safetensors"
    assert main(["export", "runs/a", "--to", str(weights)]) == 0
    assert not load_checkpoint(task(None).model, weights)
    assert weights.stat().st_mode == target.stat().st_mode
    assert main(["export", "runs/a", "--to", str(weights), "--images", str(tmp_path / "*.png")]) == 2
    assert "--images checks what is exported to .onnx or .pt2" in capsys.readouterr().err


def test_checks_on_validation_images_of_the_run(
    tmp_path: Path, stored: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(task(None))
    data = {"card": "freedoom_lt", "root": None, "val_split": "val"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    for run in (tmp_path, tmp_path / "checkpoints" / "last.ckpt"):
        assert main(["export", str(run), "--to", str(tmp_path / "model.pt2")]) == 0
        assert "checked on 6 images" in capsys.readouterr().out  # four, two of them mirrored as well


def test_a_file_that_fails_its_check(
    tmp_path: Path, stored: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> ExportCheck:
        raise ExportError("differs")

    stored(task(None))
    monkeypatch.setattr(export, "export_model", fail)
    assert main(["export", "runs/a", "--to", str(tmp_path / "model.pt2")]) == 1
    assert "aucseg export: differs" in capsys.readouterr().out


def test_missing_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "--to", "model.onnx"]) == 2
    assert "no checkpoint at" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "afile").touch()
    for to in ("afile", "afile/model.onnx"):
        assert main(["export", "runs/a", "--to", str(tmp_path / to)]) == 2
        assert f"{tmp_path / 'afile'} is a file, not a folder" in capsys.readouterr().err
