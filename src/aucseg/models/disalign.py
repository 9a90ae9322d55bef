"""The head of DisAlign: a second stage that calibrates the scores of a trained, frozen model."""

from typing import Any

import torch
from torch import Tensor, nn

from aucseg.tensors.upsampling import resize


class DisAlignModel(nn.Module):
    r"""A trained model, frozen, with a calibrated head.

    .. math:: \hat z_c = s(x) (\alpha_c z_c + \beta_c) + (1 - s(x)) z_c

    with a scale and an offset for every class and a confidence s(x), a sigmoid of a 1x1 convolution of the features
    that enter the model's classifier (Zhang et al., *Distribution Alignment*, CVPR 2021). It starts as the model it was
    given. Only these few parameters learn, with `aucseg.losses.baselines.DisAlignLoss`; the model stays in `eval()`.

    Args:
        model: Maps images (B, C, H, W) to logits (B, K, h, w).
        num_classes: Number of classes K.
        classifier: Name of the model's last convolution, a submodule with K outputs; None for the last
            `torch.nn.Conv2d` with K outputs.

    Raises:
        ValueError: No such submodule.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))
        >>> aligned = DisAlignModel(model, num_classes=5)
        >>> sorted(name for name, p in aligned.named_parameters() if p.requires_grad)
        ['confidence.bias', 'confidence.weight', 'offset', 'scale']
    """

    def __init__(self, model: nn.Module, num_classes: int, classifier: str | None = None) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        convolution = _find_classifier(model, num_classes, classifier)
        convolution.register_forward_pre_hook(self._keep_features)
        self._features: Tensor | None = None
        self.scale = nn.Parameter(torch.ones(num_classes, 1, 1))
        self.offset = nn.Parameter(torch.zeros(num_classes, 1, 1))
        self.confidence = nn.Conv2d(convolution.in_channels, 1, kernel_size=1)
        self.to(convolution.weight.device)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, C, H, W) to calibrated logits (B, K, h, w)."""
        with torch.no_grad():
            logits: Tensor = self.model(images)
        assert self._features is not None
        confidence: Tensor = self.confidence(self._features)
        self._features = None
        change: Tensor = (self.scale - 1) * logits + self.offset
        return logits + resize(confidence, logits.shape[2:]).sigmoid() * change

    def train(self, mode: bool = True) -> "DisAlignModel":
        """Sets the mode of the head; the frozen model stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def _keep_features(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._features = inputs[0]


def _find_classifier(model: nn.Module, num_classes: int, name: str | None) -> nn.Conv2d:
    """Finds the convolution that makes the logits."""
    modules = dict(model.named_modules())
    if name is not None and name not in modules:
        raise ValueError(f"the model has no submodule {name!r}")
    candidates = list(modules.values()) if name is None else [modules[name]]
    convolutions = [m for m in candidates if isinstance(m, nn.Conv2d) and m.out_channels == num_classes]
    if not convolutions:
        where = "any submodule of the model" if name is None else f"submodule {name!r}"
        raise ValueError(f"{where} is not a Conv2d with {num_classes} outputs: name the model's last one as classifier")
    return convolutions[-1]
