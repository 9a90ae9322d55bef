"""What a policy of the memory bank does to Freedoom-LT's batches: `python -m benchmarks.bank_policy [--batches N]`.

No training: the training batches of `freedoom_lt_fpn_aucseg.yaml` go through banks with different policies. For each
one: pastes an image; how many images hold a class of the tail and of the middle, before and after (mean over the
classes of the group); the tail's pixels after over before; the share of the middle's and the head's pixels that pastes
cover. Prints a table and writes `benchmarks/results/bank_policy.json`.
"""

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import aucseg
from aucseg import TailMemoryBank
from aucseg.training.datamodule import SegmentationDataModule

RESULTS = Path(__file__).parent / "results" / "bank_policy.json"
CONFIG = Path(aucseg.__file__).parent / "configs" / "freedoom_lt_fpn_aucseg.yaml"
COMMON: dict[str, Any] = {"capacity": 5, "resize_ratio": 1.0, "placement": "uniform"}


def policies(middle: list[int]) -> dict[str, dict[str, Any]]:
    ratio = {"scope": "image", "sample_ratio": 0.2}
    result: dict[str, dict[str, Any]] = {
        "sample_ratio 0.2, by image": ratio,
        "sample_ratio 0.2, by image, middle protected": {**ratio, "protect_classes": middle},
        "sample_ratio 0.2, by batch": {"scope": "batch", "sample_ratio": 0.2},
        "sample_ratio 1, by batch": {"scope": "batch", "sample_ratio": 1.0},
    }
    for target in (0.05, 0.1, 0.2, 0.3):
        options = {"scope": "image", "presence_target": target, "protect_classes": middle}
        result[f"presence_target {target:g}, by image, middle protected"] = options
    advised = {"scope": "image", "presence_target": 0.082, "max_factor": 5.0, "protect_classes": middle}
    result["presence_target 0.082, max_factor 5, by image, middle protected"] = advised
    return result


def measure(batches: list[tuple[Tensor, Tensor]], groups: dict[str, list[int]], bank: TailMemoryBank) -> dict[str, Any]:
    """What the bank does to the batches."""
    num_classes = bank.num_classes
    pixels = torch.zeros(2, num_classes, dtype=torch.float64)
    covered = torch.zeros(num_classes, dtype=torch.float64)
    holds = torch.zeros(2, num_classes, dtype=torch.float64)
    num_images = num_pastes = 0
    for images, masks in batches:
        _, pasted = bank(images, masks)
        num_pastes += len(bank.last_pastes)
        num_images += len(masks)
        covered += torch.bincount(masks[masks != pasted].long(), minlength=256)[:num_classes]
        for moment, labels in enumerate((masks, pasted)):
            counts = torch.stack([torch.bincount(m.flatten().long(), minlength=256)[:num_classes] for m in labels])
            pixels[moment] += counts.sum(0)
            holds[moment] += (counts > 0).sum(0)
    share, result = holds / num_images, {"pastes_per_image": num_pastes / num_images}
    for group in ("middle", "tail"):
        for moment, name in enumerate(("before", "after")):
            result[f"{group}_presence_{name}"] = float(share[moment, groups[group]].mean())
    result["tail_pixels_factor"] = float(pixels[1, groups["tail"]].sum() / pixels[0, groups["tail"]].sum())
    for group in ("middle", "head"):
        result[f"{group}_covered"] = float(covered[groups[group]].sum() / pixels[0, groups[group]].sum())
    return {name: round(value, 4) for name, value in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=150)
    arguments = parser.parse_args()
    data = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["data"]
    datamodule = SegmentationDataModule(**{**data, "num_workers": 0})
    card = datamodule.card
    assert card.groups is not None
    assert card.tail_classes is not None
    batches = [(b["image"], b["mask"]) for b in islice(datamodule.train_dataloader(), arguments.batches)]
    report: dict[str, Any] = {"config": CONFIG.name, "batches": len(batches), "policies": {}}
    print(f"{'policy':52}{'pastes':>8}{'tail presence':>18}{'middle presence':>18}{'tail px':>9}{'middle covered':>16}")
    for name, options in policies(card.groups["middle"]).items():
        generator = torch.Generator().manual_seed(0)
        bank = TailMemoryBank(card.tail_classes, card.num_classes, generator=generator, **COMMON, **options)
        row = measure(batches, card.groups, bank)
        report["policies"][name] = row
        presence = [
            f"{row[f'{g}_presence_before']:.3f} -> {row[f'{g}_presence_after']:.3f}" for g in ("tail", "middle")
        ]
        print(
            f"{name:52}{row['pastes_per_image']:8.2f}{presence[0]:>18}{presence[1]:>18}"
            f"{row['tail_pixels_factor']:8.1f}x{row['middle_covered']:16.3f}"
        )
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
