"""Synthetic scores whose best offsets are known, and plain definitions to compare with."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


def gaussian_images(
    num_images: int,
    shift: Sequence[float],
    *,
    prior: Sequence[float],
    size: int = 24,
    spread_of_images: float = 0.0,
    seed: int = 0,
) -> list[Batch]:
    """Images of independent pixels with logits that are true log probabilities, plus a shift.

    Each class has a Gaussian in the plane; the logits are the log posteriors, to which `shift` is added, and for each
    image one more shift of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    share = torch.tensor(prior, dtype=torch.float64)
    num_classes = len(share)
    angle = torch.arange(num_classes) * (2 * torch.pi / num_classes)
    centers = 1.6 * torch.stack([angle.cos(), angle.sin()], dim=1).double()
    batches = []
    for _ in range(num_images):
        target = torch.multinomial(share, size * size, replacement=True, generator=generator)
        points = centers[target] + torch.randn(size * size, 2, generator=generator, dtype=torch.float64)
        logits = share.log() - 0.5 * torch.cdist(points, centers) ** 2 + torch.tensor(shift)
        logits += spread_of_images * torch.randn(num_classes, generator=generator, dtype=torch.float64)
        batches.append((logits.T.reshape(1, num_classes, size, size).float(), target.reshape(1, size, size)))
    return batches


def mean_iou(batches: Sequence[Batch], offsets: Sequence[float], num_classes: int) -> float:
    """Over the classes that occur in the truth, pixel by pixel."""
    hits, union, seen = np.zeros(num_classes), np.zeros(num_classes), np.zeros(num_classes)
    for logits, target in batches:
        predicted = (logits.double() + torch.tensor(offsets).double().view(1, -1, 1, 1)).argmax(1)
        valid = target != 255
        for c in range(num_classes):
            true, positive = (target == c) & valid, (predicted == c) & valid
            hits[c] += int((true & positive).sum())
            union[c] += int((true | positive).sum())
            seen[c] += int(true.sum())
    return float((hits[seen > 0] / union[seen > 0]).mean())


@pytest.fixture(scope="session")
def shifted_images() -> list[Batch]:
    """Four classes; the logits of the rarest are 1.5 too low."""
    return gaussian_images(40, (0.0, 0.0, 0.0, -1.5), prior=(0.6, 0.25, 0.1, 0.05))
