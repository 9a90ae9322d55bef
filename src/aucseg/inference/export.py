"""Write trained models for other programs: ONNX, torch.export, safetensors, a folder for the Hugging Face hub.

Each file is run beside the model, and kept only if both agree.
"""

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aucseg.hints import import_extra
from aucseg.safe_files import replacing

MAX_LOGIT_ERROR = 1e-4
MIN_LABEL_AGREEMENT = 0.9999
_METADATA_FILE = "aucseg.json"


class ExportError(RuntimeError):
    """The exported file does not compute what the model computes; it was not kept."""


@dataclass(frozen=True)
class ExportMetadata:
    """What a reader needs beside the weights; it is written into the file.

    Attributes:
        class_names: K names.
        palette: K colours `(red, green, blue)` in 0..255.
        pixel_mean: To subtract from each channel of an RGB image in 0..255.
        pixel_std: To divide each channel by.
        stride: The sides of the image must be multiples of it: pad at the bottom and the right, cut the result.
    """

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    stride: int = 32

    def as_strings(self) -> dict[str, str]:
        """Encodes every value as JSON."""
        return {key: json.dumps(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class ExportCheck:
    """How the exported file compares with the model.

    Attributes:
        num_images: Images that both were run on.
        logit_error: Largest absolute difference of the logits, divided by the largest absolute logit where that exceeds
            1.
        label_agreement: Share of the pixels with the same label.
    """

    num_images: int
    logit_error: float
    label_agreement: float

    def __str__(self) -> str:
        return (
            f"checked on {self.num_images} images: logits differ by at most {self.logit_error:.2g}, "
            f"{100 * self.label_agreement:.4f} % of the labels agree"
        )


class ExportableModel(nn.Module):
    """A model with its logits brought to the size of the images (bilinear, `align_corners=False`).

    Args:
        model: From normalized images `(B, C, H, W)` to logits `(B, K, h, w)`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Computes logits `(B, K, H, W)` of images `(B, C, H, W)`, H and W multiples of the stride."""
        return F.interpolate(self.model(images), images.shape[-2:], mode="bilinear", align_corners=False)


def export_model(
    model: nn.Module,
    path: str | Path,
    metadata: ExportMetadata,
    *,
    images: Sequence[npt.NDArray[Any]] | None = None,
    in_channels: int = 3,
) -> ExportCheck:
    """Exports a model and checks the file against it.

    Args:
        model: From normalized images `(B, C, H, W)` to logits `(B, K, h, w)`; put in evaluation mode, on the CPU,
            as a copy.
        path: `*.onnx` (opset of the installed exporter; one file) or `*.pt2` (`torch.export.save`). Input
            `images`: float32 `(B, C, H, W)`, normalized, any B, H and W multiples of `metadata.stride`. Output
            `logits`: `(B, K, H, W)`.
        metadata: Written into the file: ONNX metadata properties, each as JSON; `aucseg.json` in a `.pt2`.
        images: Images `(H, W, C)` in units of 0..255 to check on. Default: two of random colours,
            which show whether the file computes the same, though not on what it is made for.
        in_channels: C.

    Returns:
        The comparison.

    Raises:
        ValueError: Unknown suffix, or metadata for another number of classes.
        ExportError: Logits differ by more than 1e-4 (relative to the largest), or fewer than 99.99 % of the labels
            agree.
        ImportError: Onnx, onnxscript or onnxruntime is missing.
    """
    path = Path(path)
    write = {".onnx": _write_onnx, ".pt2": _write_torch_export}.get(path.suffix)
    if write is None:
        raise ValueError(f"cannot export to {path.name!r}: the suffix must be .onnx or .pt2")
    reference = ExportableModel(_on_cpu(model)).eval()
    exportable = ExportableModel(with_static_padding(_on_cpu(model))).eval()
    stride = metadata.stride
    example = torch.randn(2, in_channels, 2 * stride, 3 * stride)
    with torch.no_grad():
        num_classes = exportable(example).shape[1]
    if len(metadata.class_names) != num_classes or len(metadata.palette) != num_classes:
        raise ValueError(
            f"the model has {num_classes} classes; the metadata has {len(metadata.class_names)} names and "
            f"{len(metadata.palette)} colours"
        )
    batch, rows, columns = (torch.export.Dim(name, min=1, max=2**16) for name in ("batch", "rows", "columns"))
    dynamic = {"images": {0: batch, 2: stride * rows, 3: stride * columns}}
    program = torch.export.export(exportable, (example,), dynamic_shapes=dynamic)
    with replacing(path) as temporary:
        run = write(program, temporary, metadata)
        return _check(reference, run, _batches(images, metadata, in_channels))


def _on_cpu(model: nn.Module) -> nn.Module:
    # Training lays weights out channels last, which the file formats take for parts of larger tensors.
    return copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format)


def with_static_padding(model: nn.Module) -> nn.Module:
    """Replaces, in place, timm's convolutions that compute their padding from the size of what they see.

    That padding ("same", as TensorFlow has it) is constant where the size is a multiple of the convolution's stride,
    and it is, in images that are multiples of the model's stride. Left as it is, each such convolution nests one more
    condition on the size of the image into the shapes after it, and the export of a network with a handful of them
    did not end within minutes.
    """
    for name, child in model.named_children():
        if type(child).__name__ == "Conv2dSame":
            assert isinstance(child, nn.Conv2d)
            setattr(model, name, _padded(child))
        else:
            with_static_padding(child)
    return model


def _padded(convolution: nn.Conv2d) -> nn.Sequential:
    extents = [d * (k - 1) + 1 for d, k in zip(convolution.dilation, convolution.kernel_size, strict=True)]
    vertical, horizontal = (max(e - s, 0) for e, s in zip(extents, convolution.stride, strict=True))
    padding = (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2)
    plain = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]
        convolution.stride,  # type: ignore[arg-type]
        dilation=convolution.dilation,  # type: ignore[arg-type]
        groups=convolution.groups,
        bias=convolution.bias is not None,
    )
    plain.load_state_dict(convolution.state_dict())
    return nn.Sequential(nn.ZeroPad2d(padding), plain)


def _write_onnx(program: Any, path: Path, metadata: ExportMetadata) -> Callable[[Tensor], Tensor]:
    onnx = import_extra("onnx", "export")
    import_extra("onnxscript", "export")
    onnxruntime = import_extra("onnxruntime", "export")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        onnx_program = torch.onnx.export(
            program, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
        )
    assert onnx_program is not None
    proto = onnx_program.model_proto
    onnx.helper.set_model_props(proto, metadata.as_strings())
    onnx.save(proto, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_torch_export(program: Any, path: Path, metadata: ExportMetadata) -> Callable[[Tensor], Tensor]:
    torch.export.save(program, path, extra_files={_METADATA_FILE: json.dumps(asdict(metadata))})
    loaded: Callable[[Tensor], Tensor] = torch.export.load(path).module()
    return loaded


def _batches(images: Sequence[npt.NDArray[Any]] | None, metadata: ExportMetadata, in_channels: int) -> Iterator[Tensor]:
    """Normalized images, padded; those of one size two at a time, so that the size of the batch changes as well."""
    if images is None:
        generator = np.random.default_rng(0)
        sizes = ((3 * metadata.stride, 4 * metadata.stride), (2 * metadata.stride, 5 * metadata.stride))
        images = [generator.integers(0, 256, (*size, in_channels), dtype=np.uint8) for size in sizes]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (metadata.pixel_mean, metadata.pixel_std))
    for index, image in enumerate(images):
        pixels = (torch.from_numpy(image.copy()).permute(2, 0, 1).float() - mean) / std
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels, (0, -width % metadata.stride, 0, -height % metadata.stride))[None]
        yield torch.cat([padded, padded.flip(-1)]) if index % 2 else padded


@torch.no_grad()
def _check(model: nn.Module, run: Callable[[Tensor], Tensor], batches: Iterator[Tensor]) -> ExportCheck:
    errors, same, pixels, num_images = [], 0, 0, 0
    for images in batches:
        expected, actual = model(images), run(images)
        if actual.shape != expected.shape:
            raise ExportError(
                f"the exported file returns shape {tuple(actual.shape)}, the model {tuple(expected.shape)}"
            )
        if not bool(expected.isfinite().all()):
            raise ExportError("the model itself returns logits that are not finite: there is nothing to export")
        scale = expected.abs().max().clamp(min=1)
        errors.append((actual - expected).abs().max() / scale)
        same += int((actual.argmax(1) == expected.argmax(1)).sum())
        pixels += actual[:, 0].numel()
        num_images += len(images)
    if num_images == 0:
        raise ValueError("no images to check the exported file on")
    check = ExportCheck(num_images, float(torch.stack(errors).amax()), same / pixels)
    # Written so that a NaN fails.
    if not (check.logit_error <= MAX_LOGIT_ERROR and check.label_agreement >= MIN_LABEL_AGREEMENT):
        raise ExportError(f"the exported file computes something else than the model and was not kept: {check}")
    return check


def save_weights(model: nn.Module, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a model's weights as safetensors, to be read by `aucseg.models.load_checkpoint` or any other program.

    Args:
        model: Any module.
        path: `*.safetensors`.
        metadata: Strings to write into the file, e.g. of `ExportMetadata.as_strings`.

    Raises:
        ValueError: Another suffix.
        ImportError: Safetensors is missing.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"the suffix of {path.name!r} must be .safetensors")
    safetensors = import_extra("safetensors.torch", "export")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        safetensors.save_file(tensors, temporary, metadata=metadata)


def save_for_hub(
    model: nn.Module, folder: str | Path, metadata: ExportMetadata, *, name: str, options: Mapping[str, Any]
) -> None:
    """Writes a model as a folder for the Hugging Face hub, to be read by `aucseg.models.hub.HubModel`.

    Args:
        model: What `aucseg.models.build_model` makes of name and options.
        folder: To write to; made if need be.
        metadata: Class names, palette and normalization, for the settings in the folder.
        name: The model's name, by which a reader builds it again.
        options: Options of `aucseg.models.build_model`.

    Raises:
        ValueError: The folder has a model or settings that were not written here.
        ImportError: huggingface_hub is missing.
    """
    config = Path(folder, "config.json")
    is_ours = config.is_file() and b'"pixel_mean"' in config.read_bytes()
    if not is_ours and any(Path(folder, name).exists() for name in ("config.json", "model.safetensors")):
        raise ValueError(f"{folder} has another model's files (config.json, model.safetensors): give another folder")
    hub = import_extra("aucseg.models.hub", "export")
    settings = {key: value for key, value in asdict(metadata).items() if key != "stride"}
    copy_of_model = hub.HubModel(name, **settings, options=options)
    copy_of_model.model.load_state_dict(model.state_dict())
    copy_of_model.save_pretrained(folder)
    # safetensors makes files that nobody else may read.
    Path(folder, "model.safetensors").chmod(config.stat().st_mode)
