"""Weights of red, green and blue in a first layer for other channels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aucseg.models import build_model
from aucseg.models.first_layer import widen_first_layer
from aucseg.models.segmentation_model import SegmentationModel

SEGNEXT = {"embed_dims": (8, 16, 16, 24), "depths": (1, 1, 2, 1), "head_channels": 32, "num_bases": 4}


def first_convolution(model: nn.Module) -> nn.Conv2d:
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def check(wide: SegmentationModel, colours: Tensor, channels: int) -> None:
    weight = first_convolution(wide.get_submodule(wide.encoder_name or "")).weight
    assert weight.shape[1] == channels
    for channel in range(channels):
        torch.testing.assert_close(weight[:, channel], colours[:, channel % 3] * 3 / channels)
    # A grey image, the same in all channels, looks as it does to the network of colours (up to uneven counts).
    if channels % 3 == 0:
        torch.testing.assert_close(weight.sum(1), colours.sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_segnext_takes_weights_of_colours(channels: int, tmp_path: Path) -> None:
    source = build_model("segnext/tiny", 3, **SEGNEXT)
    torch.save(source.get_submodule("backbone").state_dict(), tmp_path / "mscan.pth")
    wide = build_model("segnext/tiny", 3, in_channels=channels, encoder_weights=tmp_path / "mscan.pth", **SEGNEXT)
    check(wide, first_convolution(source).weight, channels)
    assert wide.eval()(torch.rand(1, channels, 64, 64)).shape[1] == 3


def test_other_shapes_than_the_channels_are_still_refused(tmp_path: Path) -> None:
    source = build_model("segnext/tiny", 3, **SEGNEXT | {"embed_dims": (16, 16, 16, 24)})
    torch.save(source.get_submodule("backbone").state_dict(), tmp_path / "mscan.pth")
    with pytest.raises(ValueError, match="does not fit"):
        build_model("segnext/tiny", 3, in_channels=5, encoder_weights=tmp_path / "mscan.pth", **SEGNEXT)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", pytest.param("fcn_resnet50", marks=pytest.mark.slow)])
def test_torchvision_takes_weights_of_colours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    get_model = models.get_model
    built: list[Any] = []

    def without_download(name: str, *, weights_backbone: str | None, **options: Any) -> nn.Module:
        """Random weights stand for those of ImageNet, which would be downloaded."""
        network: nn.Module = get_model(name, weights_backbone=None, **options)
        built.append((weights_backbone, first_convolution(network.get_submodule("backbone")).weight.clone()))
        return network

    monkeypatch.setattr(models, "get_model", without_download)
    wide = build_model(f"torchvision/{name}", 3, in_channels=5, encoder_weights="imagenet")
    assert built[0][0] == "DEFAULT"
    check(wide, built[0][1], 5)
    assert wide.eval()(torch.rand(1, 5, 64, 64)).shape[1] == 3

    drawn = build_model(f"torchvision/{name}", 3, in_channels=5)
    weight = first_convolution(drawn).weight
    assert not torch.equal(weight[:, 0], weight[:, 3])
    with pytest.raises(ValueError, match="in_channels must be at least 1, got 0"):
        build_model(f"torchvision/{name}", 3, in_channels=0)


def test_bias_place_and_settings_of_the_layer_stay() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 5, stride=2, padding=1)), nn.Conv2d(4, 2, 1))
    bias = network[0][0].bias  # type: ignore[index]
    widen_first_layer(network, 2, is_trained=True)
    layer = first_convolution(network)
    assert layer is network[0][0]  # type: ignore[index]
    assert layer.bias is bias
    assert (layer.in_channels, layer.kernel_size, layer.stride, layer.padding) == (2, (5, 5), (2, 2), (1, 1))
