"""Made-up label maps for the benchmarks of the loss."""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100


def realistic(num_classes: int, batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Labels (B, size, size) int64: blobs of 8 to 15 classes an image, a long tail over the data set, 1 % ignored.

    Classes are drawn by a power law (class 0 the commonest). In each image those drawn first are large smooth regions,
    the last few are small ellipses.
    """
    rank = torch.arange(1, num_classes + 1)
    target = torch.stack([_scene(1.0 / rank, size, generator) for _ in range(batch)])
    ignored = F.interpolate(torch.rand(batch, 1, 32, 32, generator=generator), size=(size, size)).squeeze(1) < 0.01
    return target.masked_fill(ignored, IGNORE)


def _scene(frequency: Tensor, size: int, generator: torch.Generator) -> Tensor:
    count = int(torch.randint(8, 16, (), generator=generator))
    classes = torch.multinomial(frequency, count, generator=generator)
    num_regions = count - count // 2
    noise = torch.rand(1, num_regions, 7, 7, generator=generator)
    noise -= 0.15 * torch.arange(num_regions).sqrt().view(1, -1, 1, 1)
    mask = classes[F.interpolate(noise, size=(size, size), mode="bicubic").argmax(1)[0]]
    grid = torch.linspace(0, 1, size)
    for class_id in classes[num_regions:]:
        row, column, aspect, share = torch.rand(4, generator=generator).tolist()
        radius = 0.01 * 8**share
        y, x = (grid - row) / radius * (0.6 + aspect), (grid - column) / radius / (0.6 + aspect)
        mask[y[:, None] ** 2 + x[None, :] ** 2 < 1] = class_id
    return mask


def worst_case(num_classes: int, batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Labels (B, size, size) int64: every pixel random over all classes, none ignored."""
    return torch.randint(0, num_classes, (batch, size, size), generator=generator)
