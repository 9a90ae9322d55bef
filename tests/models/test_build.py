import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aucseg.models import (
    SegmentationModel,
    WrappedNetwork,
    build_model,
    forward_with_auxiliary,
    split_parameters,
    without_weights,
)
from aucseg.models.segmentation_model import crop_logits, logits_of, pad_to_multiple


class Mine(nn.Module):
    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, width, 3, stride=4, padding=1)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        assert images.shape[-1] % 4 == 0
        logits = self.head(self.backbone(images))
        return {"out": logits, "aux": 2 * logits}


class Contracted(SegmentationModel):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.Conv2d(3, num_classes, 1)

    def compute(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.head(images))


def not_a_module(num_classes: int) -> int:
    return num_classes


def without_classes(width: int) -> nn.Module:
    return nn.Conv2d(3, width, 1)


def with_keywords(**options: Any) -> nn.Module:
    return nn.Conv2d(3, options["num_classes"], options["kernel_size"], padding="same")


HERE = __name__


def test_user_class_by_import_path() -> None:
    model = build_model(f"{HERE}:Mine", 6, width=8, stride=4, auxiliary_weight=0.3, pixel_mean=(0.0,) * 3)
    assert isinstance(model, WrappedNetwork)
    assert model.pixel_mean == (0.0,) * 3
    assert model(torch.rand(2, 3, 30, 42)).shape == (2, 6, 30, 42)
    logits, auxiliary = forward_with_auxiliary(model, torch.rand(2, 3, 32, 40))
    assert auxiliary is not None
    torch.testing.assert_close(auxiliary, 2 * logits)
    encoder, head = split_parameters(model)
    assert [tuple(p.shape) for p in encoder] == [(8, 3, 3, 3), (8,)]
    assert [tuple(p.shape) for p in head] == [(6, 8, 1, 1), (6,)]


def test_user_functions_and_modules() -> None:
    assert build_model(f"{HERE}:with_keywords", 6, kernel_size=3)(torch.rand(1, 3, 8, 8)).shape == (1, 6, 8, 8)
    assert isinstance(build_model(f"{HERE}:Contracted", 6), Contracted)
    contracted = Contracted(4)
    assert build_model(contracted, 4) is contracted
    assert build_model(Mine(4), 4, stride=4)(torch.rand(1, 3, 8, 8)).shape == (1, 4, 2, 2)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("segnex/tiny", ValueError, "did you mean segnext/tiny"),
        ("fpn", ValueError, "did you mean smp/fpn"),
        ("deeplabv3+", ValueError, "smp/deeplabv3plus"),
        ("SMP/FPN", ValueError, "did you mean smp/fpn"),
        ("fcn_resnet50", ValueError, "did you mean torchvision/fcn_resnet50"),
        ("segnext", ValueError, "segnext/..."),
        ("segnext/tinny", ValueError, "did you mean tiny"),
        ("hf/segfromer", ValueError, "did you mean segformer"),
        ("torchvision/deeplab_resnet50", ValueError, "did you mean deeplabv3_resnet50"),
        ("no_such_module:Mine", ImportError, "no_such_module"),
        (f"{HERE}:Mime", ImportError, "did you mean .*Mine|Mine"),
        (f"{HERE}:without_classes", TypeError, "must accept the keyword num_classes"),
        (f"{HERE}:not_a_module", TypeError, "returned int"),
    ],
)
def test_wrong_names(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_model(name, 5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("segnext/tiny", {"drop_pth": 0.1}, "did you mean drop_path"),
        ("segnext/tiny", {"stride": 8}, "segnext/tiny has no option 'stride'"),
        ("hf/segformer", {"hiden_sizes": [8]}, "did you mean hidden_sizes"),
        ("torchvision/fcn_resnet50", {"encoder_weights": "coco"}, "None or 'imagenet'"),
        ("smp/unet", {"encoder": "resnet18", "encoder_weights": "imagenett"}, "did you mean imagenet"),
        ("torchvision/fcn_resnet50", {"auxiliary_weight": -1}, "must not be negative"),
    ],
)
def test_wrong_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        build_model(name, 5, **options)


def test_user_module_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lying_here.py").write_text(
        "import torch\n\ndef net(num_classes):\n    return torch.nn.Conv2d(3, num_classes, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    assert build_model("lying_here:net", 7)(torch.rand(1, 3, 8, 8)).shape == (1, 7, 8, 8)


def test_options_without_weights() -> None:
    assert without_weights("segnext/large", {"encoder_weights": "mscan_l.pth", "dropout": 0.2}) == {"dropout": 0.2}
    assert without_weights("hf/my/folder", {"stride": 64}) == {"stride": 64, "pretrained": False}
    mine = {"encoder_weights": "of my own"}
    assert without_weights(f"{HERE}:Mine", mine) == mine
    packaged = {"encoder_weights": "package:efficientnet_lite0", "decoder_segmentation_channels": 32}
    same = build_model("smp/fpn", 5, **without_weights("smp/fpn", packaged))
    assert same.state_dict().keys() == build_model("smp/fpn", 5, **packaged).state_dict().keys()


def test_transformers_from_the_file_of_a_configuration(tmp_path: Path) -> None:
    config = {"model_type": "segformer", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
    (tmp_path / "small.json").write_text(json.dumps({**config, "num_attention_heads": [1, 1, 2, 2]}))
    model = build_model(f"hf/{tmp_path / 'small.json'}", 5, decoder_hidden_size=16)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 5, 16, 16)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"name a model type: .*segformer"):
        build_model(f"hf/{tmp_path}", 5)


def test_folder_with_a_model_of_another_task(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert', which is not a semantic segmentation model"):
        build_model(f"hf/{tmp_path}", 5)


def test_segnext_takes_encoder_weights(tmp_path: Path) -> None:
    source = build_model("segnext/tiny", 5)
    torch.save({"state_dict": source.get_submodule("backbone").state_dict()}, tmp_path / "mscan_t.pth")
    target = build_model("segnext/tiny", 7, encoder_weights=tmp_path / "mscan_t.pth")
    for first, second in zip(source.encoder_parameters(), target.encoder_parameters(), strict=True):
        assert torch.equal(first, second)


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def test_logits_of() -> None:
    logits = torch.rand(1, 2, 3, 3)
    outputs: list[Any] = [logits, {"out": logits}, {"logits": logits}, Output(logits), (logits, 1), [{"out": logits}]]
    for output in outputs:
        assert logits_of(output)[0] is logits
    wrong: list[Any] = [None, {}, (), {"masks": logits}]
    for output in wrong:
        with pytest.raises(TypeError, match="expected logits"):
            logits_of(output)


@pytest.mark.parametrize("full_resolution", [False, True])
def test_volumes_are_padded_and_cut_back(full_resolution: bool) -> None:
    network = nn.Conv3d(1, 4, 2, stride=2)
    model = build_model(network, 4, stride=4, full_resolution=full_resolution)
    volumes = torch.rand(2, 1, 8, 6, 5)
    padded = nn.functional.pad(volumes, (0, 3, 0, 2))
    upsampled = nn.functional.interpolate(network(padded), (8, 8, 8), mode="trilinear", align_corners=False)
    torch.testing.assert_close(model(volumes), upsampled[..., :6, :5])
    even = network(padded)[..., :3, :] if not full_resolution else upsampled[..., :6, :]
    torch.testing.assert_close(model(padded[..., :6, :]), even)
    with pytest.raises(ValueError, match=r"expected \(B, 4, d, h, w\)"):
        build_model(nn.Sequential(network, nn.Flatten(3)), 4)(volumes)


@pytest.mark.parametrize("images", [torch.rand(3, 8, 8), torch.rand(8, 8)])
def test_images_need_four_dimensions(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, C, H, W\)"):
        build_model(Contracted(4), 4)(images)


def test_wrong_number_of_classes_is_told() -> None:
    with pytest.raises(ValueError, match="build it for 5 classes"):
        build_model(nn.Conv2d(3, 4, 1), 5)(torch.rand(1, 3, 8, 8))


def test_cropping_keeps_every_pixel_in_place() -> None:
    """A column's number, computed at half the resolution, padded and cut, stays where it is."""
    for width in (7, 8, 9, 12, 13):
        columns = torch.arange(width).float().expand(1, 1, 8, width)
        padded = pad_to_multiple(columns, 4)
        assert padded.shape[-1] % 4 == 0
        assert torch.equal(padded[..., :width], columns)
        half = nn.functional.avg_pool2d(padded, 2)
        cut = crop_logits(half, (padded.shape[-2], padded.shape[-1]), (8, width))
        back = nn.functional.interpolate(cut, (8, width), mode="bilinear", align_corners=False)
        inside = slice(1, width - (2 if width % 4 == 0 else 4))
        torch.testing.assert_close(back[..., inside], columns[..., inside])
