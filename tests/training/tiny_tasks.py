"""A task small enough to train in a test, and its data."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aucseg import AUCSegLoss, SegmentationDataModule, SegmentationTask


class TinyNetwork(nn.Module):
    """Quarter-resolution logits; the first layer plays the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images))
        return logits


def make_task(card: Path, **options: Any) -> SegmentationTask:
    torch.manual_seed(0)
    options = {"loss": AUCSegLoss(), "learning_rate": 0.01, "warmup_steps": 2, **options}
    return SegmentationTask(str(card), TinyNetwork(), **options)


def make_data(card: Path) -> SegmentationDataModule:
    return SegmentationDataModule(
        str(card), str(card.parent), batch_size=4, eval_batch_size=4, num_workers=0, crop_size=(40, 48)
    )
