"""The embedded data set: the files, and what the card says of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image

import aucseg

DATASETS = Path(aucseg.__file__).parent / "datasets"
ROOT = DATASETS / "freedoom_lt"
SPLITS = {"train": 2000, "val": 500}
IGNORE = 255


@cache
def card() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DATASETS / "cards" / "freedoom_lt.yaml").read_text(encoding="utf-8"))
    return loaded


def names() -> list[str]:
    return [entry["name"] for entry in card()["classes"]]


@cache
def stems(split: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "images" / split).glob("*.jpg"))


@cache
def pixel_counts(split: str) -> npt.NDArray[np.int64]:
    """Pixels of every label value in every mask: (frames, 256)."""
    counts = []
    for stem in stems(split):
        with Image.open(ROOT / "masks" / split / f"{stem}.png") as mask:
            assert (mask.mode, mask.size) == ("L", (160, 120)), stem
            counts.append(np.bincount(np.asarray(mask).ravel(), minlength=256))
    return np.array(counts)


@pytest.mark.parametrize("split", SPLITS)
def test_every_image_has_its_mask(split: str) -> None:
    assert len(stems(split)) == SPLITS[split]
    assert stems(split) == sorted(path.stem for path in (ROOT / "masks" / split).glob("*.png"))


@pytest.mark.parametrize("split", SPLITS)
def test_images_are_whole_and_of_one_size(split: str) -> None:
    for stem in stems(split):
        with Image.open(ROOT / "images" / split / f"{stem}.jpg") as image:
            assert (image.mode, image.size) == ("RGB", (160, 120)), stem
            image.load()


@pytest.mark.parametrize("split", SPLITS)
def test_masks_hold_train_ids_and_ignore_alone(split: str) -> None:
    seen = np.flatnonzero(pixel_counts(split).sum(0))
    assert seen.tolist() == [*range(len(names())), IGNORE]


@pytest.mark.parametrize("split", SPLITS)
def test_every_frame_shows_an_object_and_is_not_one_class(split: str) -> None:
    counts = pixel_counts(split)
    assert counts.max() < 0.98 * 160 * 120
    assert (counts[:, 2:].sum(1) > 0).all()


@pytest.mark.parametrize(("split", "minimum"), [("train", 20), ("val", 5)])
def test_every_class_is_seen_in_enough_frames(split: str, minimum: int) -> None:
    frames = (pixel_counts(split)[:, : len(names())] >= 16).sum(0)
    assert frames.min() >= minimum, dict(zip(names(), frames.tolist(), strict=True))


def test_no_map_is_in_both_splits() -> None:
    train, val = ({stem.rsplit("_", 1)[0] for stem in stems(split)} for split in SPLITS)
    assert not train & val
    assert len(train) + len(val) == 68


def test_groups_follow_the_share_of_training_pixels() -> None:
    counts = pixel_counts("train").sum(0)[: len(names())]
    share = dict(zip(names(), (counts / counts.sum()).tolist(), strict=True))
    expected = {
        "head": [name for name in share if share[name] > 0.01],
        "middle": [name for name in share if 0.001 <= share[name] <= 0.01],
        "tail": [name for name in share if share[name] < 0.001],
    }
    assert card()["groups"] == expected
    assert max(share.values()) / min(share.values()) > 1000  # a long tail


def test_colours_are_distinct() -> None:
    colours = [tuple(entry["color"]) for entry in card()["classes"]]
    assert len(set(colours)) == len(colours)
    assert all(len(colour) == 3 and 0 <= min(colour) <= max(colour) <= 255 for colour in colours)


def test_the_package_stays_small_and_carries_the_licence() -> None:
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < 15_000_000
    assert "Contributors to the Freedoom project" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert (ROOT / "README.md").is_file()
