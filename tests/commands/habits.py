"""A user's own network, loss and callback, a configuration of four steps with them, and the folder that they are in."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from aucseg.cli import main
from tests.conftest import write_tiny_dataset

PARTS = '''
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, images):
        return self.head(self.backbone(images))


class Backwards(nn.Module):
    """Unlearns: what was best comes first."""

    def __init__(self, class_counts, weight=1.0, ignore_index=255):
        super().__init__()
        assert len(class_counts) == 4
        self.weight, self.ignore_index = weight, ignore_index

    def forward(self, logits, target):
        logits = nn.functional.interpolate(logits, target.shape[-2:])
        return -self.weight * nn.functional.cross_entropy(logits, target, ignore_index=self.ignore_index)


class Marker(Callback):
    def on_train_start(self, trainer, pl_module):
        Path("marked").touch()


def upside_down(sample):
    return {**sample, "image": sample["image"].flip(-2), "mask": sample["mask"].flip(-2)}
'''
RUN = {
    "trainer": {
        "max_steps": 4,
        "val_check_interval": 2,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "model": {"model": "habit_parts:Net", "loss": "ce", "warmup_steps": 0, "learning_rate": 0.01},
    "data": {"card": "data/tiny.yaml", "root": "data", "batch_size": 2, "num_workers": 0, "crop_size": [32, 40]},
}


@contextmanager
def current_folder(path: Path) -> Iterator[Path]:
    """Within the context a folder is the current one: data, a module of the user's own, a configuration."""
    write_tiny_dataset(path / "data", num_train=4, num_val=2)
    (path / "habit_parts.py").write_text(PARTS)
    (path / "run.yaml").write_text(yaml.safe_dump(RUN))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv("AUCSEG_TRUST_FILES", "1")
        yield path


def fit(*options: object) -> int:
    """`aucseg fit` with that configuration; returns its exit status."""
    return main(["fit", "--config", "run.yaml", *map(str, options)])
