"""Run folders and example pictures as `aucseg fit` would leave them, made up."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aucseg.report import Example, Paste

HOSTILE = '<script>alert("x")</script>&\'"'
_HEAD = ["wall", "floor and ceiling", "column", "door"]
_MIDDLE = ["barrel", "zombie", "imp", "torch", "health bonus", "armor bonus", "shotgun shells", "tree", "lamp"]
_TAIL = ["candle", "chaingun", "blue keycard", "skull pile", "rocket", "medikit", "plasma rifle", "soul sphere"]
CLASS_NAMES = (*_HEAD, *_MIDDLE, *_TAIL)
GROUPS = {"head": [0, 1, 2, 3], "middle": list(range(4, 13)), "tail": list(range(13, 21))}


def class_counts(num_classes: int = len(CLASS_NAMES)) -> list[float]:
    """Pixel counts over five decades."""
    return [round(10 ** (8 - 4.6 * i / max(num_classes - 1, 1))) for i in range(num_classes)]


def write_run(
    folder: Path,
    *,
    strength: float = 0.0,
    seed: int = 0,
    class_names: tuple[str, ...] = CLASS_NAMES,
    groups: dict[str, list[int]] | None = GROUPS,
    image_names: tuple[str, ...] = (),
    step: int = 800,
    max_steps: int = 800,
    parts: tuple[str, ...] = ("config", "metrics", "result", "confusion", "images", "curves"),
) -> Path:
    """Writes a run whose tail is the better the higher `strength` (0..1) is."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    num_classes = len(class_names)
    frequency = np.linspace(1, 0, num_classes)
    iou = np.clip(
        0.88 * frequency**1.5 + 0.25 * strength * (1 - frequency) + generator.normal(0, 0.03, num_classes), 0, 1
    )
    per_class: dict[str, Any] = dict(zip(class_names, iou.tolist(), strict=True))
    per_class[class_names[-1]] = None  # not in the validation split
    metrics: dict[str, Any] = {"miou": float(iou.mean()), "loss": 0.8 - 0.1 * strength, "auroc": float("nan")}
    for name, ids in (groups or {}).items():
        metrics[name] = float(iou[ids].mean()) if ids else None
    if "config" in parts:
        (folder / "config.yaml").write_text(f"trainer:\n  max_steps: {max_steps}\ndata:\n  card: freedoom_lt\n")
    if "metrics" in parts:
        _write_metrics(folder / "metrics.csv", metrics, step, generator)
    if "result" in parts:
        result = {
            "step": step,
            "metrics": {name: None if value != value else value for name, value in metrics.items()},
            "per_class_iou": per_class,
            "groups": groups,
            "class_names": class_names,
            "palette": palette(num_classes),
            "card": "freedoom_lt",
        }
        (folder / "result.json").write_text(json.dumps(result))
    if "confusion" in parts:
        counts = np.zeros((num_classes, num_classes), dtype=np.int64)
        totals = np.array(class_counts(num_classes)) / 4
        for i in range(num_classes - 1):  # the last class has no pixel
            shares = generator.dirichlet(np.linspace(2, 0.02, num_classes)) * (1 - iou[i])
            shares[i] += iou[i]
            counts[i] = (shares * totals[i]).astype(np.int64)
        (folder / "confusion.json").write_text(json.dumps({"counts": counts.tolist()}))
    if "images" in parts:
        images = {}
        for name in image_names:
            unions = generator.integers(1, 999, min(5, num_classes))
            images[name] = {str(i): [int(u * iou[i]), int(u)] for i, u in enumerate(unions)}
        (folder / "images.json").write_text(json.dumps(images))
    if "curves" in parts:
        grid = np.concatenate([[0.0], np.logspace(-5, 0, 200)])
        exponents = np.linspace(0.12, 0.3, num_classes) / (1 + strength)
        curves = {
            class_names[i]: {"fpr": grid.tolist(), "tpr": (grid ** exponents[i]).tolist(),
                             "auroc": 1 / (1 + float(exponents[i]))}
            for i in (groups or {}).get("tail", [])
        }  # fmt: skip
        (folder / "curves.json").write_text(json.dumps(curves))
    return folder


def _write_metrics(path: Path, metrics: dict[str, Any], step: int, generator: np.random.Generator) -> None:
    names = ["epoch", "lr-AdamW", "step", "train/loss", *(f"val/{name}" for name in metrics)]
    rows: list[dict[str, Any]] = []
    for at in range(9, step, 10):
        loss = 0.5 + 2.5 * np.exp(-at / 150) + generator.normal(0, 0.12)
        rows.append({"epoch": 0, "step": at, "train/loss": float(loss), "lr-AdamW": 1e-3})
        if (at + 1) % 200 == 0:
            share = (at + 1) / step
            values = {f"val/{name}": value * share for name, value in metrics.items() if value is not None}
            rows.append({"epoch": 0, "step": at, **values})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def palette(num_classes: int) -> list[list[int]]:
    """Colours of made-up classes; the last two are the same."""
    colors = np.random.default_rng(7).integers(30, 226, (num_classes, 3)).tolist()
    colors[-1] = colors[max(num_classes - 2, 0)]
    return [[int(part) for part in color] for color in colors]


def scene(seed: int, height: int = 120, width: int = 160) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture of a room with some objects, and its labels."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    horizon = height * generator.uniform(0.35, 0.6)
    mask = np.where(y > horizon + 0.15 * np.abs(x - width / 2), 1, 0).astype(np.uint8)
    for _ in range(4):
        class_id = int(generator.choice([2, 3, 4, 5, 6, 7, 13, 14, 15]))
        cy, cx, r = generator.uniform(0.3, 0.9) * height, generator.uniform(0, 1) * width, generator.uniform(4, 22)
        mask[((y - cy) / 1.6) ** 2 + (x - cx) ** 2 < r * r] = class_id
    mask[:3] = 255
    shades = np.random.default_rng(11).integers(40, 200, (256, 3))
    noise = generator.normal(0, 12, (height, width, 1))
    light = 0.65 + 0.5 * (y / height)[..., None]
    return np.clip(shades[mask] * light + noise, 0, 255).astype(np.uint8), mask


def example(name: str, titles: tuple[str, ...], seed: int, role: Any = "sample") -> Example:
    """An example; each further run makes fewer mistakes, with a loss each run makes more."""
    image, truth = scene(seed)
    predictions = {}
    for index, title in enumerate(titles):
        keep = (index + 1) / len(titles) if role != "loss" else 1 - index / len(titles)
        prediction = np.roll(np.where(truth == 255, 0, truth), 2, axis=1)
        for class_id in np.unique(prediction):
            if class_id > 1 and np.random.default_rng([seed, int(class_id)]).uniform() > keep - 0.1:
                prediction[prediction == class_id] = 0
        predictions[title] = prediction
    return Example(name, image, truth, predictions, role)


def examples(titles: tuple[str, ...], prefix: str = "map") -> list[Example]:
    """Gains, losses and samples."""
    roles = ["gain", "gain", "gain", "loss", "loss", "loss", *["sample"] * 6]
    return [example(f"{prefix}{i:02d}/0{i}3.jpg", titles, i, role) for i, role in enumerate(roles)]


def pastes() -> list[Paste]:
    """Two images with a pasted object each."""
    made = []
    for seed in (31, 32):
        before, mask = scene(seed)
        pasted = np.zeros(mask.shape, dtype=bool)
        pasted[60:84, 20 + seed : 40 + seed] = True
        after = np.where(pasted[..., None], np.uint8(230), before)
        made.append(Paste(f"train/{seed}.jpg", before, after, pasted, (14,)))
    return made
