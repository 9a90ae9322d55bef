"""Every family of models through one round: odd sizes, a training step with bank and loss, a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from aucseg.losses import AUCSegLoss
from aucseg.memory_bank import TailMemoryBank
from aucseg.models import build_model, forward_with_auxiliary, load_checkpoint, split_parameters

NUM_CLASSES = 5
SEGNEXT = {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "head_channels": 32, "num_bases": 4}
SEGFORMER = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
BEIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 128}
DPT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 128,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 8, 16, 16],
    "fusion_hidden_size": 16,
}
SMALL = {"encoder": "tu-mobilenetv3_small_050"}
FAST: list[tuple[str, dict[str, Any]]] = [
    ("segnext/tiny", SEGNEXT),
    ("smp/fpn", {"encoder": "tf_efficientnet_lite0", "decoder_segmentation_channels": 32}),
    ("hf/segformer", SEGFORMER),
    ("torchvision/lraspp_mobilenet_v3_large", {}),
]
SLOW: list[tuple[str, dict[str, Any]]] = [
    ("segnext/small", {}),
    ("smp/unet", SMALL),
    ("smp/unetplusplus", {"encoder": "resnet18"}),
    ("smp/manet", {"encoder": "resnet18"}),
    ("smp/linknet", SMALL),
    ("smp/pspnet", SMALL),
    ("smp/deeplabv3", SMALL),
    ("smp/deeplabv3plus", SMALL),
    ("smp/deeplabv3plus", {"encoder": "resnet18"}),
    ("smp/pan", {"encoder": "resnet18"}),
    ("smp/upernet", {"encoder": "convnext_atto", "decoder_channels": 32}),
    ("smp/upernet", {"encoder": "swin_tiny_patch4_window7_224", "decoder_channels": 32}),
    ("smp/segformer", {"encoder": "mit_b0"}),
    ("smp/dpt", {"encoder": "tu-vit_tiny_patch16_224"}),
    ("hf/upernet", {"backbone_config": CONVNEXT, "hidden_size": 16}),
    ("hf/dpt", DPT),
    ("hf/beit", {**BEIT, "out_indices": [0, 1, 2, 3]}),
    ("hf/data2vec-vision", {**BEIT, "out_indices": [0, 1, 2, 3]}),
    ("hf/mobilevit", {}),
    ("hf/mobilevitv2", {}),
    ("hf/mobilenet_v2", {"depth_multiplier": 0.35}),
    ("torchvision/fcn_resnet50", {}),
    ("torchvision/deeplabv3_mobilenet_v3_large", {}),
    ("torchvision/deeplabv3_resnet50", {"auxiliary_weight": 0}),
]
MODELS = [pytest.param(*entry, id=entry[0]) for entry in FAST]
MODELS += [
    pytest.param(*entry, id=f"{entry[0]}-{entry[1].get('encoder', '')}", marks=pytest.mark.slow) for entry in SLOW
]
FIXED_SIZE = {"hf/beit", "hf/data2vec-vision", "hf/dpt"}  # position embeddings for one size


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
    masks = torch.randint(3, (2, size, size), generator=generator, dtype=torch.uint8)
    masks[0, 10:40, 20:50] = 4
    masks[1, 60:] = 255
    return images, masks


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_one_round(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    fixed_size = name in FIXED_SIZE or "img_size" in options
    size = options.get("img_size", 128)
    model = build_model(name, NUM_CLASSES, **options)
    encoder, head = split_parameters(model)
    assert encoder
    assert head
    assert {id(p) for p in (*encoder, *head)} == {id(p) for p in model.parameters()}

    images, masks = TailMemoryBank([4], NUM_CLASSES, sample_ratio=1.0)(*batch(size))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.pixel_mean, model.pixel_std))
    pixels = (images.float() - mean) / std

    model.train()
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    groups: list[dict[str, Any]] = [{"params": encoder, "lr": 1e-3}, {"params": head}]
    optimizer = torch.optim.SGD(groups, lr=1e-2)
    criterion = AUCSegLoss()
    logits, auxiliary = forward_with_auxiliary(model, pixels)
    loss = criterion(logits, masks)
    if auxiliary is not None:
        loss = loss + model.auxiliary_weight * criterion(auxiliary, masks)
    loss.backward()
    assert loss.isfinite()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    # Some encoders keep layers that only a classifier needs.
    assert name.startswith("hf/") or name in {"smp/dpt", "smp/pspnet"} or without == []
    optimizer.step()
    # Behind a layer scale of 1e-6 gradients are too small to move a weight in one step.
    reached = [
        key for key, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    ]
    moved = [key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])]
    assert len(reached) > 0.8 * (len(before) - len(without))
    assert len(moved) > 0.5 * (len(before) - len(without))

    model.eval()
    sizes = [(size, size)] if fixed_size else [(128, 96), (97, 130)]
    with torch.no_grad():
        for height, width in sizes:
            logits = model(torch.rand(2, 3, height, width))
            assert logits.shape[:2] == (2, NUM_CLASSES)
            # Whatever their resolution, the logits cover the image.
            assert logits.shape[-2] * width == pytest.approx(logits.shape[-1] * height)
            assert height % logits.shape[-2] == 0
            assert logits.isfinite().all()
        expected = model(pixels)

    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pth")
    again = build_model(name, NUM_CLASSES, **options)
    assert not load_checkpoint(again, tmp_path / "model.pth")
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(pixels), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("auxiliary_weight", "has_head"), [(0.4, True), (0, False)])
def test_auxiliary_head_of_torchvision(auxiliary_weight: float, has_head: bool) -> None:
    model = build_model("torchvision/fcn_resnet50", 3, auxiliary_weight=auxiliary_weight)
    assert model.auxiliary_weight == auxiliary_weight
    images = torch.rand(2, 3, 64, 64)
    logits, auxiliary = forward_with_auxiliary(model.train(), images)
    assert logits.shape == (2, 3, 8, 8)
    assert (auxiliary is not None) is has_head
    assert auxiliary is None or auxiliary.shape == (2, 3, 8, 8)
    assert forward_with_auxiliary(model.eval(), images)[1] is None


def test_torchvision_logits_are_those_before_the_upsampling() -> None:
    model = build_model("torchvision/lraspp_mobilenet_v3_large", 3).eval()
    images = torch.rand(1, 3, 64, 96)
    network: Any = model.get_submodule("network")
    with torch.no_grad():
        upsampled = F.interpolate(model(images), (64, 96), mode="bilinear", align_corners=False)
        torch.testing.assert_close(upsampled, network(images)["out"])


def test_transformers_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = build_model("hf/segformer", 7, **SEGFORMER)
    network: Any = source.get_submodule("network")
    network.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        same = build_model(f"hf/{tmp_path}", 7).eval()
        torch.testing.assert_close(same(images), source.eval()(images))
        assert same.pixel_mean == source.pixel_mean

        processor = transformers.SegformerImageProcessor(image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25])
        processor.save_pretrained(tmp_path)
        other_classes = build_model(f"hf/{tmp_path}", 3).eval()
        assert other_classes(images).shape == (1, 3, 16, 16)
        assert other_classes.pixel_mean == (127.5,) * 3
        assert other_classes.pixel_std == (63.75,) * 3
        encoder_before = {id(p): p for p in source.encoder_parameters()}.values()
        for expected, loaded in zip(encoder_before, other_classes.encoder_parameters(), strict=True):
            torch.testing.assert_close(loaded, expected, rtol=0, atol=0)

        random = build_model(f"hf/{tmp_path}", 7, pretrained=False).eval()
        assert not torch.allclose(random(images), same(images))
