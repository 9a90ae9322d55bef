"""Folders of predictions as other frameworks leave them, made up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

NUM_CLASSES = 4
NAMES = ("ground", "box", "crate", "gem")
COLORS = ((0, 0, 0), (200, 60, 60), (60, 200, 60), (60, 60, 220))


def write_cases(root: Path, number: int = 6, size: tuple[int, int] = (40, 52)) -> Path:
    """A data set in nnU-Net's layout: `imagesTs/case_000_0000.png` with `labelsTs/case_000.png`; its card."""
    rng = np.random.default_rng(0)
    for folder in ("imagesTs", "labelsTs"):
        (root / folder).mkdir(parents=True)
    for index in range(number):
        noise = np.stack([ndimage.gaussian_filter(rng.normal(size=size), 3) for _ in range(NUM_CLASSES)])
        noise[3] -= 0.05  # rare
        mask = noise.argmax(0).astype(np.uint8)
        mask[0, :7] = 255
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(image).save(root / "imagesTs" / f"case_{index:03}_0000.png")
        Image.fromarray(mask).save(root / "labelsTs" / f"case_{index:03}.png")
    card = {
        "name": "cases",
        "ignore_ids": [255],
        "classes": [{"name": name, "color": list(color)} for name, color in zip(NAMES, COLORS, strict=True)],
        "splits": {"val": {"images": "imagesTs/*_0000.png", "masks": "labelsTs/{1}.png"}},
        "groups": {"head": ["ground"], "middle": ["box", "crate"], "tail": ["gem"]},
    }
    path = root / "cases.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


def truths(card: Path) -> dict[str, NDArray[np.uint8]]:
    """The mask of each case."""
    return {path.stem: np.asarray(Image.open(path)) for path in sorted((card.parent / "labelsTs").glob("*.png"))}


def probabilities(card: Path, signal: float, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """For each case softmax scores (K, H, W), the better the larger `signal` is."""
    rng = np.random.default_rng(seed)
    made = {}
    for case, truth in truths(card).items():
        logits = rng.normal(size=(NUM_CLASSES, *truth.shape))
        logits += signal * (truth == np.arange(NUM_CLASSES)[:, None, None])
        shares = np.exp(logits)
        made[case] = (shares / shares.sum(0)).astype(np.float32)
    return made


def write_nnunet(folder: Path, scores: dict[str, NDArray[np.float32]]) -> Path:
    """What `nnUNetv2_predict --save_probabilities` leaves: maps, probabilities (K, 1, H, W), and its own files."""
    folder.mkdir(parents=True)
    for case, values in scores.items():
        Image.fromarray(values.argmax(0).astype(np.uint8)).save(folder / f"{case}.png")
        np.savez_compressed(folder / f"{case}.npz", probabilities=values[:, None])
        (folder / f"{case}.pkl").write_bytes(b"")
    for name in ("dataset.json", "plans.json", "predict_from_raw_data_args.json"):
        (folder / name).write_text(json.dumps({}))
    return folder
