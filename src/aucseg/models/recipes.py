"""Learning rates that go with a family of models, where none is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from aucseg.models.smp_models import PACKAGE_ENCODER

BATCH_SIZE = 8
"""The batch that the rates are for: of smaller ones the gradient is noisier, and the rate goes with the square root."""


@dataclass(frozen=True)
class Recipe:
    """Settings of the optimizer for a family of models, with AdamW and polynomial decay.

    Attributes:
        learning_rate: Of the encoder.
        head_rate_factor: The rate of everything else is this many times higher.
        warmup: Most steps of warm-up; of a short training a tenth.
        reason: Where they come from.
    """

    learning_rate: float
    head_rate_factor: float
    warmup: int
    reason: str

    def warmup_steps(self, max_steps: float) -> int:
        """Steps of warm-up in a training of a number of steps."""
        return max(1, int(min(self.warmup, max_steps / 10)))


_FPN = Recipe(4e-3, 3.0, 200, "within a point of the best rate for this model on three data sets")
_SEGFORMER = replace(_FPN, reason="that of FPN with this encoder, within a point of the best on three data sets")
_WITH_PACKAGE_ENCODER = {"smp/fpn": _FPN, "smp/segformer": _SEGFORMER}
_CUSTOMARY = "customary for such a model, not measured here"
_CONVOLUTIONS = Recipe(1e-3, 3.0, 200, _CUSTOMARY)
_TRANSFORMERS = Recipe(1e-4, 10.0, 500, _CUSTOMARY)
_TRANSFORMER_NAMES = ("mit_", "swin", "vit", "segformer", "convnext", "dinov", "beit", "pvt", "dpt")
_WITH_CONVOLUTIONS = ("smp/", "torchvision/")


def recipe_of(model: str | None, options: Mapping[str, Any] | None = None, *, batch_size: int = BATCH_SIZE) -> Recipe:
    """Returns the rates for a model; those of transformers, which every model bears, where its family is not known.

    Args:
        model: Name, as for `aucseg.models.build_model`; None for a module.
        options: Its options.
        batch_size: Images in a step of the optimizer, those of all accumulated batches and all processes.

    Example:
        >>> recipe_of("smp/unet", {"encoder": "resnet34"}, batch_size=2).learning_rate
        0.0005
        >>> recipe_of("smp/fpn", {"encoder": "tu-convnext_tiny"}).learning_rate
        0.0001
        >>> recipe_of(None).warmup_steps(1000)
        100
    """
    encoder = str((options or {}).get("encoder", ""))
    name = f"{model or ''} {encoder}"
    if model in _WITH_PACKAGE_ENCODER and encoder.removeprefix("tu-") == PACKAGE_ENCODER.removeprefix("tu-"):
        recipe = _WITH_PACKAGE_ENCODER[model]
    elif name.startswith(_WITH_CONVOLUTIONS) and not any(part in name for part in _TRANSFORMER_NAMES):
        recipe = _CONVOLUTIONS
    else:
        recipe = _TRANSFORMERS
    rate = recipe.learning_rate * min(1.0, math.sqrt(batch_size / BATCH_SIZE))
    return replace(recipe, learning_rate=float(f"{rate:.2g}"))
