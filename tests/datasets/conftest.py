from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aucseg.datasets import DatasetCard
from tests.datasets.trees import Mask

MINI = """\
name: mini
mask_encoding: gray
ignore_ids: [255]
classes:
  - {name: road, color: [128, 64, 128]}
  - {name: car, color: [0, 0, 142], ids: [7, 8]}
  - {name: bird, color: [220, 20, 60], ids: [9]}
splits:
  train: {images: "images/*.png", masks: "masks/{stem}.png"}
"""


@pytest.fixture
def write_card(tmp_path: Path) -> Callable[..., DatasetCard]:
    """Writes a card text, with replacements, and loads it."""

    def write(text: str = MINI, **replace: str) -> DatasetCard:
        for old, new in replace.items():
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "mini.yaml"
        path.write_text(text)
        return DatasetCard.load(path)

    return write


@pytest.fixture
def mini_root(tmp_path: Path) -> Path:
    """Four images and masks with the raw ids of the mini card."""
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(root / f"images/{i}.png")
        save_mask(rng.choice([0, 7, 8, 9, 255], (12, 16)), root / f"masks/{i}.png")
    return root


def save_mask(mask: Mask, path: Path) -> None:
    Image.fromarray(mask.astype(np.uint8)).save(path)
