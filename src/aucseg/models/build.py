"""build_model(): every model by its name."""

from typing import Any

from torch import nn

from aucseg.models.smp_models import build_smp_model


def build_model(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Build a model by its name.

    Args:
        name: ``"smp/<architecture>"``: an architecture of segmentation_models_pytorch, see :func:`build_smp_model`.
        num_classes: K, at least 1.
        **options: Options of the family.

    Returns:
        A module from normalized images ``(B, C, H, W)`` to logits ``(B, K, h, w)`` at any resolution.

    Raises:
        ValueError: Unknown name or option.
        ImportError: The extra that the family needs is missing.

    Example:
        >>> build_model("smp/unet", 5, encoder="resnet18").num_classes
        5
    """
    family, _, rest = name.partition("/")
    if family == "smp":
        return build_smp_model(rest, num_classes, **options)
    raise ValueError(f"unknown model {name!r}")
