"""One run of a shared study, in a process of its own: `python -m benchmarks.evidence.one_run FOLDER < JOB`.

The job is JSON, see `benchmarks.evidence.pool`. Trains, validates, and with `offsets` fits one offset a class on the
held-out images and measures it on the validation split. What was measured is in the folder's `measured.json`; with
that a run is finished. A run that was cut off goes on from its checkpoint, one of other code, data or configuration
makes room. Exit status 75: another process is at this run.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from benchmarks.evidence.records import read_result, rounded

from aucseg.run_files import RESULT_FILE
from aucseg.safe_files import replace_file
from aucseg.training.run_lock import lock_if_free

JOB_FILE = "job.json"
MEASURED_FILE = "measured.json"
LOG_FILE = "log.txt"
BUSY = 75
_LOCK_FILE = "run.lock"


def main(folder: Path, job: dict[str, Any]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    with lock_if_free(folder / _LOCK_FILE) as is_ours:
        if not is_ours:
            return BUSY
        before = read_result(folder / JOB_FILE)
        if before is None or before["record"]["hashes"] != job["record"]["hashes"]:
            _clear(folder)
            (folder / JOB_FILE).write_text(json.dumps(job), encoding="utf-8")
        return 0 if (folder / MEASURED_FILE).is_file() else train(job, folder)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name in (_LOCK_FILE, LOG_FILE):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def train(job: dict[str, Any], folder: Path) -> int:
    """Trains and measures; returns an exit status."""
    from aucseg import cli  # after the lock: whoever comes late need not wait for these imports

    start = time.perf_counter()
    cost = folder / "cost.json"
    config = dict(job["config"])
    meter = {"class_path": "aucseg.compare.cost.CostMeter", "init_args": {"file": str(cost)}}
    config["trainer"] = {**config["trainer"], "callbacks": [meter]}
    source = folder / "input.yaml"
    source.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    options = ["--checkpoint_every", str(max(500, config["trainer"]["max_steps"] // 4)), "--resume", "auto"]
    status = cli.main(["fit", "--config", str(source), "--out", str(folder), *options])
    if status != 0:
        return status
    result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    measured: dict[str, Any] = {
        "metrics": rounded(result["metrics"]),
        "per_class_iou": rounded(result["per_class_iou"]),
        "cost": json.loads(cost.read_text(encoding="utf-8")) if cost.is_file() else {},
    }
    if job["offsets"]:
        measured |= with_offsets(config, folder)
    measured["seconds"] = round(time.perf_counter() - start, 1)
    replace_file(folder / MEASURED_FILE, (json.dumps(measured) + "\n").encode())
    return 0


def with_offsets(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The scores on the held-out images, and those of both splits with the offsets that are best on these images."""
    import torch
    from benchmarks.evidence.shared_study import HELD_OUT
    from torch.nn import functional as F
    from torch.utils.data import DataLoader

    from aucseg.inference.offsets import fit_offsets
    from aucseg.metrics import GroupedMeanIoU
    from aucseg.training.datamodule import SegmentationDataModule
    from aucseg.training.stored_task import load_task

    device = torch.device("cpu" if config["trainer"]["accelerator"] == "cpu" else "cuda")
    task = load_task(folder, device)
    data = SegmentationDataModule(**config["data"])
    half = str(config["trainer"].get("precision", "")).startswith("bf16")

    def batches(split: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        dataset = data.dataset(split, data.evaluation_transform)
        loader = DataLoader(dataset, batch_size=data.eval_batch_size, num_workers=data.num_workers)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            return [(task(batch["image"].to(device)), batch["mask"].to(device)) for batch in loader]

    held_out, validation = batches(HELD_OUT), batches(data.val_split)
    ignore_index = task.card.ignore_index
    fit = fit_offsets(held_out, task.card.num_classes, ignore_index=ignore_index)

    def measure(split: list[tuple[torch.Tensor, torch.Tensor]], offsets: Sequence[float]) -> dict[str, torch.Tensor]:
        metric = GroupedMeanIoU(task.card.num_classes, groups=task.groups, ignore_index=ignore_index).to(device)
        added = torch.tensor(offsets, device=device).view(-1, 1, 1)
        for logits, target in split:
            full = F.interpolate(logits.float(), target.shape[-2:], mode="bilinear", align_corners=False)
            metric.update((full + added).argmax(1), target)
        return metric.details()

    def means(details: dict[str, torch.Tensor]) -> dict[str, float | None]:
        return plain({name: details[name] for name in ("miou", *(task.groups or ()))})

    def plain(values: dict[str, torch.Tensor]) -> dict[str, float | None]:
        return rounded({name: None if value.isnan() else float(value) for name, value in values.items()})

    validated = measure(validation, fit.offsets)
    return {
        "heldout": means(measure(held_out, [0.0] * task.card.num_classes)),
        "with_offsets": {
            "offsets": list(fit.offsets),
            "heldout": means(measure(held_out, fit.offsets)),
            "metrics": means(validated),
            "per_class_iou": plain(dict(zip(task.card.class_names, validated["per_class"], strict=True))),
        },
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.load(sys.stdin)))
