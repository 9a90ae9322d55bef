"""A tiny data set in an ordinary layout, for everything that trains or evaluates end to end."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

TINY_COLORS = ((40, 40, 40), (200, 60, 60), (60, 200, 60), (60, 60, 220))


def write_tiny_dataset(root: Path, num_train: int = 8, num_val: int = 4, size: tuple[int, int] = (48, 64)) -> Path:
    """Coloured rectangles: class 0 is the ground, 3 is rare; returns the path of the card."""
    rng = np.random.default_rng(0)
    height, width = size
    palette = np.array(TINY_COLORS, dtype=np.uint8)
    for split, count in (("train", num_train), ("val", num_val)):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for index in range(count):
            mask = np.zeros(size, dtype=np.uint8)
            for class_id in (1, 2, 3) if index % 4 == 0 else (1, 2):
                top, left = rng.integers(0, height - 12), rng.integers(0, width - 12)
                mask[top : top + 12, left : left + 12] = class_id
            noise = rng.integers(-8, 9, (height, width, 3))
            image = np.clip(palette[mask].astype(int) + noise, 0, 255).astype(np.uint8)
            mask[0, :3] = 255
            Image.fromarray(image).save(root / "images" / split / f"frame_{index:02d}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"frame_{index:02d}.png")
    names = ("ground", "box", "crate", "gem")
    card = {
        "name": "tiny",
        "title": "Tiny",
        "ignore_ids": [255],
        "classes": [{"name": name, "color": list(color)} for name, color in zip(names, TINY_COLORS, strict=True)],
        "splits": {
            split: {"images": f"images/{split}/*.png", "masks": f"masks/{split}/{{stem}}.png"}
            for split in ("train", "val")
        },
        "groups": {"head": ["ground"], "middle": ["box", "crate"], "tail": ["gem"]},
    }
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


def write_uneven_dataset(root: Path) -> Path:
    """The tiny data set with five validation images of three sizes, the largest one the third; its card's path."""
    card = write_tiny_dataset(root, num_val=5)
    for index, size in enumerate(((60, 40), (64, 48), (64, 48), (33, 47), (60, 40))):
        for folder in ("images", "masks"):
            path = root / folder / "val" / f"frame_{index:02d}.png"
            with Image.open(path) as file:
                cut = file.crop((0, 0, *size))
            cut.save(path)
    for folder in ("images", "masks"):
        path = root / folder / "val" / "frame_02.png"
        with Image.open(path) as file:
            large = file.resize((80, 60), Image.Resampling.NEAREST)
        large.save(path)
    return card


@pytest.fixture(scope="session")
def uneven_card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the card of a tiny data set whose validation images differ in size."""
    return write_uneven_dataset(tmp_path_factory.mktemp("uneven"))


@pytest.fixture(scope="session")
def tiny_card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the card of a tiny data set; its root is the card's folder."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"))
