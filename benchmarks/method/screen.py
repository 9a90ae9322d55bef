"""Trains with one loss and bank, judges on held-out training images: `python -m benchmarks.method.screen DATA LOSS`.

Settings of a data set are the same for every method; see README.md for examples.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from benchmarks.method.candidates import Candidate
from benchmarks.method.judge import judge
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import functional as F

import aucseg
from aucseg.training.datamodule import SegmentationDataModule
from aucseg.training.task import SegmentationTask

RESULTS = Path(__file__).parent / "results"
_CARDS = Path(__file__).parents[1] / "evidence" / "cards"
DATA: dict[str, dict[str, Any]] = {
    "cityscapes_256": {"crop_size": (128, 128), "scale": (0.5, 1.0), "val_split": "heldout"},
    "ccp": {"crop_size": (192, 192), "scale": (0.5, 1.0), "val_split": "heldout", "eval_batch_size": 1},
    "freedoom_lt": {"crop_size": (96, 128), "scale": (0.75, 1.5), "val_split": "heldout", "cache": None},
    "camvid": {
        "card": "camvid", "base_size": (240, 180), "eval_base_size": (240, 180), "crop_size": (160, 192),
        "scale": (0.75, 1.5), "held_out_share": 0.2,
    },
}  # fmt: skip
_MODEL: dict[str, Any] = {
    "encoder": "tu-tf_efficientnet_lite0",
    "encoder_weights": "package:efficientnet_lite0",
    "decoder_pyramid_channels": 64,
    "decoder_segmentation_channels": 64,
}


def data_module(name: str, root: str | None, seed: int, **options: Any) -> SegmentationDataModule:
    """The data of a study, in batches of 8."""
    settings = {
        "card": str(_CARDS / f"{name}.yaml"), "batch_size": 8, "eval_batch_size": 8, "num_workers": 0,
        "cache": "memory", "seed": seed, **DATA[name], **options,
    }  # fmt: skip
    if root is None and name == "freedoom_lt":
        root = str(Path(aucseg.__file__).parent / "datasets" / name)
    return SegmentationDataModule(root=root, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("loss", help="see candidates.py")
    parser.add_argument("--root", help="folder of the data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--bank", type=json.loads, help="options of TailMemoryBank, JSON")
    parser.add_argument("--data-options", type=json.loads, default={}, help="options of the data module, JSON")
    parser.add_argument("--tag", default="", help="of bank and options, for the name of the file")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    tag = f"_{args.tag}" if args.tag else ""
    file = args.results / f"{args.data}_{args.loss.replace(':', '-')}{tag}_s{args.seed}_{args.steps}.json"
    if file.exists():
        print(f"{file} is there")
        return
    result = screen(args)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result) + "\n")
    print(
        f"{file.stem:48s} "
        + "  ".join(
            f"{key} {' '.join(f'{v:5.1f}' for v in result[key].values())}" for key in ("plain", "offsets", "ap")
        )
    )


def screen(args: argparse.Namespace) -> dict[str, Any]:
    """Trains and judges; settings and figures."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    data = data_module(args.data, args.root, args.seed, **args.data_options)
    task = SegmentationTask(
        data.card.name if args.data == "camvid" else str(_CARDS / f"{args.data}.yaml"),
        "smp/fpn",
        _MODEL,
        loss=Candidate(args.loss, data.class_counts(), args.steps),
        bank=args.bank,
        mean=[127.0] * 3,
        std=[128.0] * 3,
        learning_rate=args.learning_rate,
        head_rate_factor=3.0,
        weight_decay=0.01,
        warmup_steps=min(100, args.steps // 8),
    )
    begin = time.perf_counter(), time.process_time()
    Trainer(
        max_steps=args.steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    ).fit(task, data)  # fmt: skip
    seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]
    task.eval()
    settings = {
        key: getattr(args, key)
        for key in ("data", "loss", "tag", "seed", "steps", "learning_rate", "bank", "data_options")
    }
    groups = task.card.groups
    assert groups is not None
    return settings | judge(*_predicted(task, data), groups) | {
        "seconds": round(seconds[0]), "cpu_seconds": round(seconds[1]), "torch": torch.__version__,
    }  # fmt: skip


def _predicted(task: SegmentationTask, data: SegmentationDataModule) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Pixels by truth and prediction at full size; logits and labels of each image at the network's resolution."""
    num_classes, ignore_index = task.card.num_classes, task.card.ignore_index
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    logits, labels = [], []
    with torch.inference_mode():
        for batch in data.val_dataloader():
            images, masks = batch["image"], batch["mask"]
            # Images of different sizes come in lists.
            pairs = (
                [(images, masks)]
                if isinstance(images, Tensor)
                else [(i[None], m[None]) for i, m in zip(images, masks, strict=True)]
            )
            for image, mask in pairs:
                scores, truth = task(image).float(), mask.long()
                predicted = F.interpolate(scores, truth.shape[-2:], mode="bilinear").argmax(1)
                valid = truth != ignore_index
                pixels = truth[valid] * num_classes + predicted[valid]
                confusion += torch.bincount(pixels, minlength=num_classes**2).view(num_classes, -1).double()
                for score, one in zip(scores, truth, strict=True):
                    small = one[_centres(one.shape[0], score.shape[1])][
                        :, _centres(one.shape[1], score.shape[2])
                    ].flatten()
                    counts = small != ignore_index
                    logits.append(score.flatten(1)[:, counts].half())
                    labels.append(small[counts].to(torch.uint8))
    return confusion, logits, labels


def _centres(size: int, count: int) -> Tensor:
    return torch.arange(count) * size // count + size // count // 2


if __name__ == "__main__":
    main()
