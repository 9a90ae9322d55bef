"""Offsets inside a model: in the bias of the layer that makes the logits, or behind a model that has none."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aucseg.models.build import build_model
from aucseg.models.segmentation_model import SegmentationModel, WrappedNetwork
from aucseg.tensors.upsampling import two_logits

# Import path of `offset_model`, as a configuration and a checkpoint name it.
OFFSET_MODEL = "aucseg.inference.offset_model:offset_model"
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_TOLERANCE = 1e-4


@torch.no_grad()
def add_to_bias(model: nn.Module, offsets: Sequence[float] | Tensor, images: Tensor) -> str | None:
    """Adds offsets to the logits of a model by way of a bias, in place.

    The layers with K outputs and a bias are tried, the last one first, and one is taken only if the logits of the
    example change by the offsets and by nothing else.

    Args:
        model: From images to logits `(B, K, ...)`, in evaluation mode.
        offsets: `(K,)`; of a model with one logit a pixel `(2,)` as well.
        images: Examples `(B, C, H, W)` of what the model takes, several and various: parts of a network may rest on
            a plain one.

    Returns:
        Dotted name of the layer; None where no bias does it, and the model is as it was.

    Raises:
        ValueError: The model is in training mode, or has another number of classes.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
        >>> images = torch.rand(1, 3, 4, 4)
        >>> before = model(images)
        >>> add_to_bias(model, [0.5, -0.5], images)
        '2'
        >>> (model(images) - before).mean(dim=(0, 2, 3))
        tensor([ 0.5000, -0.5000], grad_fn=<MeanBackward1>)
    """
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")
    before = model(images)
    wanted = torch.as_tensor(offsets, dtype=before.dtype, device=before.device)
    if before.shape[1] == 1 and wanted.shape == (2,):
        wanted = wanted[1:] - wanted[:1]  # one logit z is the two logits (0, z)
    if wanted.shape != before.shape[1:2]:
        raise ValueError(f"{tuple(wanted.shape)} offsets for logits of shape {tuple(before.shape)}: give one a class")
    expected = before + wanted.view(-1, *[1] * (before.ndim - 2))
    tolerance = _TOLERANCE * max(1.0, float(expected.abs().max()))
    layers: list[tuple[str, nn.Module]] = list(model.named_modules())
    for name, layer in reversed(layers):
        bias = layer.bias if isinstance(layer, _LAYERS) else None
        if bias is None or bias.shape != wanted.shape:
            continue
        old = bias.clone()
        bias += wanted.to(bias)
        if float((model(images) - expected).abs().max()) <= tolerance:
            return name
        bias.copy_(old)
    return None


class OffsetNetwork(nn.Module):
    """A model with offsets added to its logits.

    Args:
        model: From images `(B, C, *spatial)` to logits `(B, K, *spatial)`; one logit z a pixel is the two logits
            (0, z).
        offsets: `(K,)`.
    """

    offsets: Tensor

    def __init__(self, model: nn.Module, offsets: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("offsets", torch.as_tensor(offsets, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits `(B, K, *spatial)` with offsets of images `(B, C, *spatial)`.

        Raises:
            ValueError: The model has another number of classes.
        """
        logits = two_logits(self.model(images))
        if logits.shape[1] != len(self.offsets):
            raise ValueError(f"{len(self.offsets)} offsets for logits of {logits.shape[1]} classes: give one a class")
        return logits + self.offsets.to(logits.dtype).view(-1, *[1] * (logits.ndim - 2))


def with_offsets(model: nn.Module, offsets: Sequence[float] | Tensor, num_classes: int) -> SegmentationModel:
    """Wraps a model in an `OffsetNetwork` that meets the contract of `aucseg.models.SegmentationModel`."""
    normalization: dict[str, Any] = {
        name: getattr(model, name) for name in ("pixel_mean", "pixel_std") if hasattr(model, name)
    }
    return WrappedNetwork(OffsetNetwork(model, offsets), num_classes, **normalization)


def offset_model(
    num_classes: int,
    *,
    model: str,
    model_options: Mapping[str, Any] | None = None,
    offsets: Sequence[float] | None = None,
) -> SegmentationModel:
    """Builds a model by its name with offsets behind it, for models without a bias to add them to.

    Args:
        num_classes: K.
        model: Name, see `aucseg.models.build_model`.
        model_options: Its options.
        offsets: `(K,)`; 0 by default, for a checkpoint brings them.

    Raises:
        ValueError: As in `aucseg.models.build_model`.
    """
    inner = build_model(model, num_classes, **(model_options or {}))
    return with_offsets(inner, torch.zeros(num_classes) if offsets is None else offsets, num_classes)
