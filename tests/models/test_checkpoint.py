import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aucseg.models import SegNeXt, WrappedNetwork, build_model, load_checkpoint, load_encoder_checkpoint
from aucseg.models.checkpoint import read_state_dict


def segnext(num_classes: int = 5) -> SegNeXt:
    return SegNeXt(num_classes, embed_dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), head_channels=32, num_bases=4)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


META = {"epoch": 1, "iter": 160000, "CLASSES": ("road", "train"), "PALETTE": [[0, 0, 142]], "config": "model = dict()"}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_wrappers_and_prefixes(prefix: str, wrapper: str | None, tmp_path: Path) -> None:
    source, target = segnext(), segnext()
    tensors = prefixed(source.state_dict(), prefix)
    torch.save(tensors if wrapper is None else {"meta": META, wrapper: tensors, "optimizer": {}}, tmp_path / "a.pth")
    report = load_checkpoint(target, tmp_path / "a.pth")
    assert not report
    assert str(report) == ""
    assert same(source.state_dict(), target.state_dict())


def test_weights_without_the_wrapper_go_into_a_wrapped_network(tmp_path: Path) -> None:
    source = build_model("smp/fpn", 5, encoder="resnet18", decoder_segmentation_channels=32)
    target = build_model("smp/fpn", 5, encoder="resnet18", decoder_segmentation_channels=32)
    assert isinstance(source, WrappedNetwork)
    torch.save(source.network.state_dict(), tmp_path / "bare.pth")
    assert not load_checkpoint(target, tmp_path / "bare.pth")
    assert same(source.state_dict(), target.state_dict())


def test_other_parts_of_a_training_state_are_passed_over(tmp_path: Path) -> None:
    source, target = segnext(), segnext()
    state = {**prefixed(source.state_dict(), "model."), "criterion.weight": torch.ones(5)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    assert not load_checkpoint(target, tmp_path / "last.ckpt")
    assert same(source.state_dict(), target.state_dict())


def test_safetensors(tmp_path: Path) -> None:
    source, target = segnext(), segnext()
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    assert not load_checkpoint(target, tmp_path / "a.safetensors")
    assert same(source.state_dict(), target.state_dict())


def test_mismatch_is_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    source, target = segnext(num_classes=7), segnext(num_classes=5)
    tensors = source.state_dict()
    del tensors["backbone.norm1.weight"]
    tensors["decode_head.extra"] = torch.ones(1)
    torch.save(tensors, tmp_path / "a.pth")
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit SegNeXt") as raised:
        load_checkpoint(target, tmp_path / "a.pth")
    for line in (
        "missing (1):\n  backbone.norm1.weight",
        "unexpected (1):\n  decode_head.extra",
        "misshapen (2):",
        "decode_head.conv_seg.weight: (7, 32, 1, 1) is not (5, 32, 1, 1)",
    ):
        assert line in str(raised.value)
    assert same(before, target.state_dict())

    report = load_checkpoint(target, tmp_path / "a.pth", strict=False)
    assert report.missing == ["backbone.norm1.weight"]
    assert len(report.misshapen) == 2
    assert torch.equal(target.decode_head.squeeze.conv.weight, source.decode_head.squeeze.conv.weight)
    assert torch.equal(target.decode_head.conv_seg.weight, before["decode_head.conv_seg.weight"])


def test_nothing_fits(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="does not fit"):
        load_checkpoint(segnext(), tmp_path / "a.pth", strict=False)


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    source = {k: v for k, v in segnext().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(source, tmp_path / "a.pth")
    assert not load_checkpoint(segnext(), tmp_path / "a.pth")


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": segnext().state_dict(), "meta": Evil()}, "evil.pth")
    with pytest.raises(ValueError, match="could run code from the file"):
        load_checkpoint(segnext(), "evil.pth")
    assert not Path("ran").exists()
    torch.save({"state_dict": {}, "time": datetime.datetime(2024, 1, 1)}, "objects.pth")
    with pytest.raises(ValueError, match="other objects than tensors"):
        load_checkpoint(segnext(), "objects.pth")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    torch.save(segnext().state_dict(), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-5000])
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.safetensors").write_text("<html>not found</html>")
    for name in ("cut.pth", "text.pth", "empty.pth", "text.safetensors"):
        with pytest.raises(ValueError, match=name):
            read_state_dict(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state_dict(tmp_path / "list.pth")
    with pytest.raises(FileNotFoundError, match="absent"):
        read_state_dict(tmp_path / "absent.pth")


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
def test_encoder_alone(prefix: str, tmp_path: Path) -> None:
    source, target = segnext(), segnext()
    classifier = {"head.weight": torch.ones(1000, 16), "head.bias": torch.ones(1000)}
    if prefix:
        classifier = {"module.decode_head.bias" if prefix[0] == "m" else "decode_head.bias": torch.ones(3)}
    tensors = {**prefixed(source.backbone.state_dict(), prefix), **classifier}
    torch.save({"state_dict": tensors}, tmp_path / "mscan.pth")
    before = {name: tensor.clone() for name, tensor in target.decode_head.state_dict().items()}
    assert not load_encoder_checkpoint(target, tmp_path / "mscan.pth")
    assert same(source.backbone.state_dict(), target.backbone.state_dict())
    assert same(before, target.decode_head.state_dict())


def test_encoder_mismatch_is_listed(tmp_path: Path) -> None:
    torch.save({"norm1.weight": torch.ones(99)}, tmp_path / "mscan.pth")
    with pytest.raises(ValueError, match=r"norm1.weight: \(99,\) is not \(8,\)"):
        load_encoder_checkpoint(segnext(), tmp_path / "mscan.pth")
    with pytest.raises(ValueError, match="has no encoder"):
        load_encoder_checkpoint(nn.Linear(1, 1), tmp_path / "mscan.pth")
