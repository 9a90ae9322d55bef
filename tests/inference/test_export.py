import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from aucseg.inference.export import ExportError, ExportMetadata, export_model, save_weights, with_static_padding
from aucseg.inference.predictor import Predictor
from aucseg.models import SegmentationModel, WrappedNetwork, build_model, load_checkpoint

NAMES = ("wall", "floor", "door", "barrel")
PALETTE = ((128, 96, 64), (0, 200, 0), (0, 0, 200), (9, 8, 7))
METADATA = ExportMetadata(NAMES, PALETTE, (127.0, 120.0, 110.0), (128.0, 60.0, 50.0), stride=4)
EXAMPLE = Path(__file__).parents[2] / "examples" / "predict_onnx.py"


class Small(nn.Module):
    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.GELU())
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images))
        return logits


def small() -> SegmentationModel:
    torch.manual_seed(0)
    return WrappedNetwork(Small(), 4, stride=4).eval()


def picture(height: int = 37, width: int = 50, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    check = export_model(small(), path, METADATA, images=[picture(), picture(64, 20, 1)])
    assert check.num_images == 3
    assert check.logit_error < 1e-4
    assert check.label_agreement == 1
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    return path


def test_onnx_for_any_batch_and_size(exported: Path) -> None:
    onnx.checker.check_model(exported)
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 4, 8), (3, 3, 44, 20), (2, 3, 128, 64)):
        images = torch.randn(shape)
        logits = session.run(["logits"], {"images": images.numpy()})[0]
        assert logits.shape == (shape[0], 4, *shape[2:])
        with torch.no_grad():
            small_logits = small()(images)
        expected = nn.functional.interpolate(small_logits, shape[2:], mode="bilinear", align_corners=False)
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


def test_onnx_metadata(exported: Path) -> None:
    properties = {entry.key: json.loads(entry.value) for entry in onnx.load(exported).metadata_props}
    assert properties == {
        "class_names": list(NAMES),
        "palette": [list(color) for color in PALETTE],
        "pixel_mean": [127.0, 120.0, 110.0],
        "pixel_std": [128.0, 60.0, 50.0],
        "stride": 4,
    }


def test_example_reads_it_without_aucseg(exported: Path, tmp_path: Path) -> None:
    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    command = [sys.executable, "-I", str(EXAMPLE), str(exported), "photo.png", "labels.png"]
    result = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == list(NAMES)
    with Image.open(tmp_path / "labels.png") as image:
        labels = np.array(image)
        assert (image.getpalette("RGB") or [])[:6] == [128, 96, 64, 0, 200, 0]
    expected = Predictor(small(), pixel_mean=METADATA.pixel_mean, pixel_std=METADATA.pixel_std).labels(pixels)
    assert (labels == expected.numpy()).mean() > 0.999
    text = EXAMPLE.read_text()
    code = [line for line in text.splitlines()[1:] if line and not line.startswith(("import", "from"))]
    assert len(code) <= 20
    assert "aucseg" not in "\n".join(code)


def test_torch_export(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    check = export_model(small(), path, METADATA)
    assert check.logit_error < 1e-4
    files = {"aucseg.json": ""}
    program = torch.export.load(path, extra_files=files)
    assert json.loads(files["aucseg.json"])["class_names"] == list(NAMES)
    assert program.module()(torch.randn(3, 3, 20, 8)).shape == (3, 4, 20, 8)


class Lies(Small):
    """Computes something else when it is exported."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if torch.compiler.is_exporting():
            return logits + self.shift * torch.arange(4).view(1, 4, 1, 1)
        return logits


@pytest.mark.parametrize("shift", [1.0, float("nan")])
def test_a_file_that_computes_something_else_is_not_kept(shift: float, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="something else than the model"):
        export_model(Lies(shift), tmp_path / "model.pt2", METADATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_padding_by_size_becomes_constant(kernel: int, stride: int, dilation: int) -> None:
    torch.manual_seed(0)
    dynamic = Conv2dSame(6, 8, (kernel, 3), stride=stride, dilation=dilation, groups=2, bias=kernel > 1)
    images = torch.randn(2, 6, 12, 20)
    static = with_static_padding(nn.Sequential(nn.ModuleDict({"inner": dynamic})))
    replaced: Any = static.get_submodule("0.inner")
    assert not any(isinstance(module, Conv2dSame) for module in static.modules())
    torch.testing.assert_close(replaced(images), dynamic(images))


def test_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"suffix must be \.onnx or \.pt2"):
        export_model(small(), tmp_path / "model.tflite", METADATA)
    other = ExportMetadata(NAMES[:3], PALETTE[:3], (0.0,) * 3, (1.0,) * 3, stride=4)
    with pytest.raises(ValueError, match="4 classes; the metadata has 3 names"):
        export_model(small(), tmp_path / "model.onnx", other)
    with pytest.raises(ValueError, match=r"must be \.safetensors"):
        save_weights(small(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match="no images"):
        export_model(small(), tmp_path / "model.pt2", METADATA, images=[])


def test_the_model_itself_is_left_alone(tmp_path: Path) -> None:
    model = small().train()
    export_model(model, tmp_path / "model.pt2", METADATA)
    assert model.training


def test_safetensors(tmp_path: Path) -> None:
    source, target = small(), WrappedNetwork(Small(), 4, stride=4)
    kernel = source.get_submodule("network.backbone.0").get_parameter("weight")
    kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)  # which safetensors does not store
    save_weights(source, tmp_path / "model.safetensors", METADATA.as_strings())
    assert not load_checkpoint(target, tmp_path / "model.safetensors")
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name])
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["class_names"]) == list(NAMES)


SEGNEXT = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "head_channels": 32, "num_bases": 4}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("segnext/tiny", SEGNEXT),
        ("smp/fpn", {"encoder": "tf_efficientnet_lite0", "decoder_segmentation_channels": 32}),
        ("smp/deeplabv3plus", {"encoder": "resnet18"}),
        ("smp/unet", {"encoder": "resnet18"}),
        ("torchvision/lraspp_mobilenet_v3_large", {}),
        (
            "hf/segformer",
            {
                "hidden_sizes": [8, 8, 16, 16],
                "depths": [1, 1, 1, 1],
                "num_attention_heads": [1, 1, 2, 2],
                "decoder_hidden_size": 16,
            },
        ),
    ],
)
def test_architectures(name: str, options: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(name, 4, **options).eval()
    metadata = ExportMetadata(NAMES, PALETTE, (127.0,) * 3, (128.0,) * 3, stride=model.stride)
    check = export_model(model, tmp_path / f"model.{suffix}", metadata, images=[picture(96, 130), picture(200, 64)])
    assert check.num_images == 3


class Broken(Small):
    """Its logits are NaN, also when it is exported."""

    def forward(self, images: Tensor) -> Tensor:
        """NaN of the right shape."""
        return super().forward(images) * float("nan")


def test_a_model_without_numbers_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the model itself returns logits that are not finite"):
        export_model(Broken(), tmp_path / "model.pt2", METADATA)


class SureOfItsFirst(Lies):
    """Predicts the first class everywhere, which is what the argmax of NaN gives, too."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits of which the first is the largest."""
        return super().forward(images) + torch.tensor([1e3, 0.0, 0.0, 0.0]).view(1, 4, 1, 1)


def test_a_file_that_computes_nan_is_not_kept_where_the_labels_agree(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="something else than the model"):
        export_model(SureOfItsFirst(float("nan")), tmp_path / "model.pt2", METADATA)
