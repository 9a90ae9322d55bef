"""Checkpoints of strangers: nothing in them is run or imported, and they override no settings."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from aucseg import cli
from aucseg.datasets import DatasetCard
from aucseg.memory_bank import TailMemoryBank
from aucseg.models import build_model, load_checkpoint, load_encoder_checkpoint
from aucseg.models.checkpoint import read_state_dict
from aucseg.models.hub import HubModel
from aucseg.training.stored_task import load_task
from aucseg.training.task import SegmentationTask
from tests.report.synthetic import write_run

MODEL = {
    "encoder": "resnet18",
    "encoder_weights": None,
    "decoder_pyramid_channels": 32,
    "decoder_segmentation_channels": 32,
}


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.marker,)


def pickled(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def zipped(content: Any, path: Path) -> None:
    torch.save(content, path)


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


WRITERS = [pickled, zipped, legacy]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code_was_run"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_card: Path) -> dict[str, Any]:
    """What a checkpoint of 'aucseg fit' holds, as far as loading needs it."""
    torch.manual_seed(0)
    task = SegmentationTask(str(tiny_card), "smp/fpn", MODEL, bank={"min_pixels": 1})
    return {
        "state_dict": task.state_dict(),
        "hyper_parameters": dict(task.hparams),
        "pytorch-lightning_version": "2.6.0",
        "global_step": 1,
        "epoch": 0,
    }


@pytest.mark.parametrize("write", WRITERS)
def test_the_bomb_goes_off_where_nothing_is_done_against_it(write: Any, marker: Path, tmp_path: Path) -> None:
    write({"state_dict": {"weight": Bomb(marker)}}, tmp_path / "bomb.pth")
    torch.load(tmp_path / "bomb.pth", weights_only=False) if write is not pickled else pickle.loads(
        (tmp_path / "bomb.pth").read_bytes()
    )
    assert marker.is_dir()


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "load",
    [
        read_state_dict,
        lambda path: load_checkpoint(nn.Linear(2, 1), path, strict=False),
        lambda path: load_encoder_checkpoint(build_model("smp/fpn", 4, **MODEL), path, strict=False),
        lambda path: build_model("segnext/tiny", 4, encoder_weights=path),
        load_task,
    ],
    ids=["read_state_dict", "load_checkpoint", "load_encoder_checkpoint", "encoder_weights", "load_task"],
)
def test_weights_run_no_code(write: Any, load: Callable[[Path], Any], marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    write({"state_dict": {"weight": torch.ones(1, 2), "bias": Bomb(marker)}, "hyper_parameters": {}}, path)
    with pytest.raises(ValueError, match=r"bomb\.pth (holds other objects|is not a readable checkpoint)"):
        load(path)
    assert not marker.exists()


def test_a_pickle_named_safetensors_runs_no_code(marker: Path, tmp_path: Path) -> None:
    pickled(Bomb(marker), tmp_path / "bomb.safetensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_state_dict(tmp_path / "bomb.safetensors")
    assert not marker.exists()


def run_folder(folder: Path, checkpoint: dict[str, Any], card: Path) -> Path:
    """The run folder of a stranger."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    config = {"data": {"card": str(card), "root": str(card.parent), "num_workers": 0}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize(
    ("command", "place"),
    [
        *(("predict", place) for place in ("hyper_parameters", "state_dict", "callbacks")),
        *(("export", "hyper_parameters"), ("fit", "callbacks"), ("validate", "hyper_parameters")),
    ],
)
def test_commands_run_no_code_of_a_checkpoint(
    command: str,
    place: str,
    checkpoint: dict[str, Any],
    marker: Path,
    tmp_path: Path,
    tiny_card: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = {**checkpoint, place: {**checkpoint.get(place, {}), "model": Bomb(marker)}}
    run = run_folder(tmp_path / "run", bad, tiny_card)
    path = str(run / "checkpoints" / "last.ckpt")
    arguments = {
        "predict": [str(run), str(tiny_card.parent / "images" / "val"), "--out", str(tmp_path / "out")],
        "export": [str(run), "--to", str(tmp_path / "model.onnx")],
    }
    lightning = [
        *("--model.model", "smp/fpn", "--model.model_options", json.dumps(MODEL), "--data.num_workers", "0"),
        *("--data.card", str(tiny_card), "--data.root", str(tiny_card.parent), "--out", str(tmp_path / "new")),
        *("--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *("--ckpt_path", path),
    ]
    assert cli.main([command, *arguments.get(command, lightning)]) == 2
    assert "last.ckpt" in capsys.readouterr().err
    assert not marker.exists()


def test_a_report_of_a_strangers_run_runs_no_code(
    checkpoint: dict[str, Any], marker: Path, tmp_path: Path, tiny_card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = DatasetCard.load(tiny_card).class_names
    run = write_run(tmp_path / "run", class_names=tuple(names), groups=None, image_names=("val/000.png",))
    bad = {**checkpoint, "hyper_parameters": {**checkpoint["hyper_parameters"], "model": Bomb(marker)}}
    run_folder(run, bad, tiny_card)
    assert cli.main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 1
    assert "pictures are left out" in (told := capsys.readouterr().err)
    assert "last.ckpt" in told
    assert (tmp_path / "report.html").is_file()
    assert not marker.exists()


@pytest.mark.parametrize("name", ["hostile_module:build", "hostile_module:build/x", "torch.hub:load"])
def test_a_checkpoint_does_not_choose_what_is_imported(
    name: str,
    checkpoint: dict[str, Any],
    marker: Path,
    tmp_path: Path,
    tiny_card: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = f"import pathlib\npathlib.Path({str(marker)!r}).mkdir()\ndef build(num_classes, **options): ...\n"
    for file in ("hostile_module.py", "hubconf.py"):
        (tmp_path / file).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hostile_module", raising=False)
    options = {"repo_or_dir": str(tmp_path), "model": "build", "source": "local"}
    settings = {**checkpoint["hyper_parameters"], "model": name, "model_options": options}
    run = run_folder(tmp_path / "run", {**checkpoint, "hyper_parameters": settings}, tiny_card)
    with pytest.raises(ValueError, match=r"It is not imported, because that runs code.*AUCSEG_TRUST_FILES=1"):
        load_task(run)
    (tmp_path / "hub").mkdir()
    config = {"name": name, "class_names": ["a"], "palette": [[0, 0, 0]], "pixel_mean": [0.0], "pixel_std": [1.0]}
    (tmp_path / "hub" / "config.json").write_text(json.dumps({**config, "options": options}))
    with pytest.raises(ValueError, match="It is not imported, because that runs code"):
        HubModel.from_pretrained(tmp_path / "hub")
    assert not marker.exists()
    # The same file does harm where the user vouches for it: the test above is not an empty one.
    monkeypatch.setenv("AUCSEG_TRUST_FILES", "1")
    with pytest.raises((ValueError, ImportError)):
        load_task(run)
    assert marker.exists()


def test_the_settings_in_a_checkpoint_do_not_override_the_users(
    checkpoint: dict[str, Any], tmp_path: Path, tiny_card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**checkpoint["hyper_parameters"], "model": "hostile_module:build"}
    run = run_folder(tmp_path / "run", {**checkpoint, "hyper_parameters": settings}, tiny_card)
    out = tmp_path / "out"
    status = cli.main([
        *("validate", "--model.model", "smp/fpn", "--model.model_options", json.dumps(MODEL)),
        *("--model.bank", '{"min_pixels": 1}', "--data.num_workers", "0", "--data.card", str(tiny_card)),
        *("--data.root", str(tiny_card.parent), "--out", str(out), "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")),
    ])  # fmt: skip
    assert status == 0, capsys.readouterr().err
    assert (out / "result.json").is_file()


def test_remote_code_of_a_model_folder_is_not_run(tmp_path: Path) -> None:
    config = {"model_type": "segformer", "trust_remote_code": True, "auto_map": {"AutoConfig": "hostile.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "hostile.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        build_model(f"hf/{tmp_path}", 4, trust_remote_code=True)


def test_old_torch_is_not_relied_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ValueError, match="CVE-2025-32434"):
        read_state_dict(tmp_path / "weights.pth")
    monkeypatch.setenv("AUCSEG_TRUST_FILES", "1")
    assert torch.equal(read_state_dict(tmp_path / "weights.pth")["weight"], torch.ones(1))


def test_a_bank_from_a_file_is_checked_before_it_is_used() -> None:
    bank = TailMemoryBank([1], 2, min_pixels=1, sample_ratio=1.0, scope="image")
    masks = torch.zeros(1, 4, 4, dtype=torch.uint8)
    masks[0, 1, 1:3] = 1
    bank(torch.ones(1, 3, 4, 4), masks)
    good = bank.get_extra_state()
    bank.set_extra_state(good)
    for change in (
        {"runs": torch.tensor([[2**31 - 2], [2], [0]], dtype=torch.int32)},
        {"runs": torch.tensor([[-4], [2], [0]], dtype=torch.int32)},
        {"runs": torch.tensor([[5], [9], [0]], dtype=torch.int32)},
        {"values": torch.ones(3, 3)},
        {"height": 10**12},
        {"width": 2},
    ):
        sample = {**good["samples"][0][0], **change}
        with pytest.raises(ValueError, match="a sample of class 1 is not whole"):
            bank.set_extra_state({**good, "samples": [[sample]]})
    broken: list[dict[str, Any]] = [
        {"samples": []}, {"images_seen": -1}, {"images_with": [5]}, {"generator": torch.ones(3)}
    ]  # fmt: skip
    for entry in broken:
        with pytest.raises(ValueError, match="the saved bank is damaged"):
            bank.set_extra_state({**good, **entry})
    assert bank.num_samples == {1: 1}
