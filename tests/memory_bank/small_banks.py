"""Small banks, and masks and images whose every pixel tells its label."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from aucseg.memory_bank import TailMemoryBank

NUM_CLASSES = 6
TAIL = [3, 4, 5]
IGNORE = 255


def colours(masks: Tensor, dtype: torch.dtype = torch.uint8, channels: int = 3) -> Tensor:
    """Images (B, C, H, W) that encode the label of every pixel, ignored ones too, in every channel."""
    planes = [masks.long() * (7 + 4 * c) % 251 + c for c in range(channels)]
    return torch.stack(planes, dim=1).to(dtype)


def random_masks(generator: torch.Generator, batch_size: int, height: int, width: int, low: int = 0) -> Tensor:
    """Masks (B, H, W) uint8 of random rectangles of all classes from `low` on, some pixels ignored."""
    masks = torch.zeros(batch_size, height, width, dtype=torch.uint8)
    for mask in masks:
        for _ in range(5):
            y, x = (
                int(torch.randint(height, (), generator=generator)),
                int(torch.randint(width, (), generator=generator)),
            )
            h, w = torch.randint(1, max(height, width) + 1, (2,), generator=generator).tolist()
            mask[y : y + h, x : x + w] = int(torch.randint(low, NUM_CLASSES, (), generator=generator))
        mask[torch.rand(height, width, generator=generator) < 0.02] = IGNORE
    return masks


def make_bank(seed: int = 0, **options: Any) -> TailMemoryBank:
    settings_: dict[str, Any] = {"resize_ratio": 1.0, "scope": "image", "min_pixels": 1} | options
    if settings_.get("presence_target") is None:
        settings_.setdefault("sample_ratio", 1.0)
    return TailMemoryBank(TAIL, NUM_CLASSES, generator=torch.Generator().manual_seed(seed), **settings_)


def stored(bank: TailMemoryBank) -> Iterator[dict[str, Any]]:
    for samples in bank.get_extra_state()["samples"]:
        yield from samples


def empty(height: int, width: int, batch_size: int = 1) -> Tensor:
    return torch.zeros(batch_size, height, width, dtype=torch.uint8)


def one_object(class_id: int, rows: slice, columns: slice, height: int = 20, width: int = 30) -> Tensor:
    masks = empty(height, width)
    masks[0, rows, columns] = class_id
    return masks


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)
