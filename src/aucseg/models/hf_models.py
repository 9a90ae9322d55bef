"""Semantic segmentation models of Hugging Face transformers."""

from pathlib import Path
from typing import Any

from torch import nn

from aucseg.hints import check_option, closest, import_extra
from aucseg.models.segmentation_model import WrappedNetwork
from aucseg.tensors.imagenet import IMAGENET_MEAN, IMAGENET_STD


def build_hf_model(
    name: str,
    num_classes: int,
    *,
    pretrained: bool = True,
    stride: int = 32,
    full_resolution: bool = False,
    **options: Any,
) -> WrappedNetwork:
    """Builds a model that `AutoModelForSemanticSegmentation` knows: SegFormer, UPerNet, DPT, BEiT, MobileViT, ...

    Args:
        name: A model type (`"segformer"`, `"upernet"`, `"dpt"`) or the file of a configuration
            (`"my/config.json"`) for random weights; a folder or a name on the hub (`"nvidia/mit-b0"`) for a
            configuration and its weights. A head for other classes starts at random.
        num_classes: K.
        pretrained: False takes only the configuration of a folder or hub name.
        stride: Multiple that the sides of the images are padded to.
        full_resolution: See `aucseg.models.SegmentationModel`.
        **options: Entries of the configuration, e.g. `depths`, `hidden_sizes`, `backbone_config`.

    Returns:
        The model; its `pixel_mean` and `pixel_std` are those of the image processor in the folder, or ImageNet's.

    Raises:
        ValueError: Unknown model type.
        TypeError: Unknown entry of the configuration.
        ImportError: Transformers is missing.
        OSError: The folder or hub name holds no model, or could not be fetched.

    Example:
        >>> sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}
        >>> model = build_hf_model("segformer", 5, num_attention_heads=[1, 1, 2, 2], **sizes).eval()
        >>> import torch
        >>> model(torch.rand(1, 3, 64, 96)).shape
        torch.Size([1, 5, 16, 24])
    """
    transformers = import_extra("transformers", "hf")
    auto_model = transformers.AutoModelForSemanticSegmentation
    model_types = list_hf_model_types()
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    if name in model_types:
        entries = _entries(transformers.AutoConfig.for_model(name), num_classes, options)
        network = auto_model.from_config(transformers.AutoConfig.for_model(name, **entries))
    elif "/" not in name and not Path(name).is_dir():
        raise ValueError(f"{name!r} is not a model type, folder or hub name; model types: {closest(name, model_types)}")
    else:
        from_file = Path(name).is_file()
        network = _from_file_or_hub(name, num_classes, pretrained and not from_file, options, model_types)
        mean, std = _normalization(str(Path(name).parent) if from_file else name, transformers)
    return WrappedNetwork(
        network,
        num_classes,
        stride=stride,
        encoder=_encoder(network),
        pixel_mean=mean,
        pixel_std=std,
        full_resolution=full_resolution,
    )


def list_hf_model_types() -> list[str]:
    """Lists the model types that `build_hf_model` takes.

    Example:
        >>> "segformer" in list_hf_model_types()
        True
    """
    auto_model = import_extra("transformers", "hf").AutoModelForSemanticSegmentation
    return sorted(config.model_type for config in auto_model._model_mapping)


def _from_file_or_hub(
    name: str, num_classes: int, pretrained: bool, options: dict[str, Any], model_types: list[str]
) -> nn.Module:
    transformers = import_extra("transformers", "hf")
    auto_model = transformers.AutoModelForSemanticSegmentation
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise OSError(
            f"no model could be loaded from {name!r} ({str(error).splitlines()[0]}); "
            f"for random weights name a model type: {', '.join(model_types)}"
        ) from error
    if config.model_type not in model_types:
        raise ValueError(
            f"{name!r} is of type {config.model_type!r}, which is not a semantic segmentation model; "
            f"{closest(config.model_type, model_types)}"
        )
    config = transformers.AutoConfig.from_pretrained(name, **_entries(config, num_classes, options))
    network: nn.Module = (
        auto_model.from_pretrained(name, config=config, ignore_mismatched_sizes=True)
        if pretrained
        else auto_model.from_config(config)
    )
    return network


def _entries(config: Any, num_classes: int, options: dict[str, Any]) -> dict[str, Any]:
    # A misspelt entry would be stored and never read.
    for key in options:
        if key == "trust_remote_code":
            raise ValueError("trust_remote_code runs code from the model's folder and is not offered here")
        if not hasattr(config, key):
            check_option(f"hf/{config.model_type}", key, config.to_dict())
    entries = {"num_labels": num_classes, **options}
    if hasattr(config, "use_auxiliary_head"):
        entries.setdefault("use_auxiliary_head", False)  # its logits are not returned: parameters without a gradient
    return entries


def _normalization(name: str, transformers: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):  # none beside the weights
        return IMAGENET_MEAN, IMAGENET_STD
    if not processor.do_normalize:
        return (0.0,) * 3, (255.0,) * 3
    return tuple(255 * value for value in processor.image_mean), tuple(255 * value for value in processor.image_std)


def _encoder(network: nn.Module) -> str | None:
    children = dict(network.named_children())
    names = (getattr(network, "base_model_prefix", ""), "backbone", "encoder")
    return next((name for name in names if name in children), None)
