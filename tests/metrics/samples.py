"""Logits and labels for the tests of metrics, and how far a float32 result may be off."""

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDING = 1e-6  # float32 results


def sample(
    num_classes: int, num_pixels: int, spread: float = 1.0, signal: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits and labels of a long tail in which every class occurs at least twice."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.logspace(0, -3, num_classes)
    target = torch.multinomial(frequency, num_pixels, replacement=True, generator=generator)
    target[: 2 * num_classes] = torch.arange(num_classes).repeat(2)
    logits = spread * torch.randn(num_pixels, num_classes, generator=generator) + signal * F.one_hot(
        target, num_classes
    )
    return logits, target
