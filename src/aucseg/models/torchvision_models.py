"""Segmentation models of torchvision, with their auxiliary heads."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from aucseg.hints import check_choice, closest, import_extra
from aucseg.models.first_layer import widen_first_layer
from aucseg.models.segmentation_model import WrappedNetwork


class TorchvisionModel(WrappedNetwork):
    """A segmentation model of torchvision without its last upsampling."""

    def compute(self, images: Tensor) -> Mapping[str, Tensor]:
        """Runs the network; the auxiliary head only in training."""
        network: Any = self.network
        features = network.backbone(images)
        outputs = {"out": network.classifier(features.get("out", features))}
        if self.training and getattr(network, "aux_classifier", None) is not None:
            outputs["aux"] = network.aux_classifier(features["aux"])
        return outputs


def build_torchvision_model(
    name: str,
    num_classes: int,
    *,
    encoder_weights: str | None = None,
    auxiliary_weight: float = 0.4,
    in_channels: int = 3,
    full_resolution: bool = False,
    **options: Any,
) -> TorchvisionModel:
    """Builds a segmentation model of torchvision.

    Args:
        name: `"fcn_resnet50"`, `"deeplabv3_resnet50"`, `"lraspp_mobilenet_v3_large"`, ...
        num_classes: K.
        encoder_weights: None (random) or `"imagenet"` (downloads).
        auxiliary_weight: Weight of the loss on the auxiliary head's logits; 0 leaves the head out. LR-ASPP has none.
        in_channels: Channels of the images. With others than three, ImageNet weights of the first layer for red, green
            and blue are repeated in turn, and scaled so that activations keep their size.
        full_resolution: See `aucseg.models.SegmentationModel`.
        **options: Passed on to torchvision.

    Raises:
        ValueError: Unknown name, unknown weights, or no channels.
        ImportError: Torchvision is missing.
        OSError: The weights could not be downloaded.

    Example:
        >>> model = build_torchvision_model("lraspp_mobilenet_v3_large", 5).eval()
        >>> import torch
        >>> model(torch.rand(1, 3, 64, 96)).shape
        torch.Size([1, 5, 8, 12])
    """
    models = import_extra("torchvision.models", "train")
    known = list_torchvision_models()
    if name not in known:
        raise ValueError(f"unknown model {name!r} of torchvision; {closest(name, known)}")
    check_choice("encoder_weights", encoder_weights, (None, "imagenet"))
    has_auxiliary = not name.startswith("lraspp")
    if has_auxiliary:
        options["aux_loss"] = auxiliary_weight > 0
    try:
        network = models.get_model(
            name,
            weights=None,
            weights_backbone="DEFAULT" if encoder_weights else None,
            num_classes=num_classes,
            **options,
        )
    except OSError as error:
        raise OSError(
            f"the ImageNet weights for {name!r} could not be fetched ({error}); use encoder_weights=None"
        ) from error
    widen_first_layer(network.backbone, in_channels, is_trained=encoder_weights is not None)
    return TorchvisionModel(
        network,
        num_classes,
        stride=32,
        auxiliary_weight=auxiliary_weight if has_auxiliary else 0.0,
        full_resolution=full_resolution,
    )


def list_torchvision_models() -> list[str]:
    """Lists the names that `build_torchvision_model` takes.

    Example:
        >>> "fcn_resnet50" in list_torchvision_models()
        True
    """
    models = import_extra("torchvision.models", "train")
    names: list[str] = models.list_models(module=models.segmentation)
    return names
