"""What limits the speed of a study's runs: `python -m benchmarks.evidence.speed STUDY [--root DIR] [--steps 200]`.

Times, in this process, the loader alone (images of files or in memory, colours on the host or on the device), the
training step alone (one batch again and again), both together as a run has them, and a validation. Where the loader is
slower than the step it limits; where the step does not get slower with a batch of twice the size, launches do.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.evidence.pool import on_machine
from benchmarks.evidence.shared_studies import SHARED_STUDIES
from benchmarks.evidence.shared_study import SharedStudy
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from aucseg.compare.methods import Configuration, merged
from aucseg.training.datamodule import SegmentationDataModule
from aucseg.training.task import SegmentationTask


def rate(one: Callable[[], Any], count: int, device: torch.device, warm_up: int) -> float:
    """Calls a second, after some that do not count."""
    for _ in range(warm_up):
        one()
    _wait(device)
    start = time.perf_counter()
    for _ in range(count):
        one()
    _wait(device)
    return count / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def loader_rate(config: Configuration, changes: dict[str, Any], steps: int, device: torch.device) -> float:
    """Batches a second, colours and the way to the device included."""
    data = SegmentationDataModule(**(config["data"] | changes))
    batches = iter(data.train_dataloader())

    def one() -> None:
        batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in next(batches).items()}
        data.on_after_batch_transfer(batch, 0)

    return rate(one, steps, device, warm_up=max(2, 2 * data.num_workers))


class OneBatch(SegmentationDataModule):
    """The first batch again and again."""

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Yields a batch that is ready."""
        first = next(iter(super().train_dataloader()))
        repeated: Iterator[dict[str, Any]] = itertools.repeat(first)
        return repeated  # type: ignore[return-value]

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Leaves the batch whole: it comes again."""
        return super().on_after_batch_transfer(dict(batch), dataloader_idx)


class Clock(Callback):
    """Times the steps but for the first tenth, in which kernels are chosen and memory is found."""

    def __init__(self, steps: int) -> None:
        self.first = max(1, steps // 10)
        self.start = 0.0
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Starts and stops the clock where the device has done its work."""
        if trainer.global_step == self.first:
            _wait(pl_module.device)
            self.start = time.perf_counter()
        elif trainer.global_step == trainer.max_steps:
            _wait(pl_module.device)
            self.seconds = time.perf_counter() - self.start

    def rate(self, steps: int) -> float:
        """Steps a second."""
        return (steps - self.first) / self.seconds


def run_rates(config: Configuration, data: SegmentationDataModule, steps: int) -> tuple[float, float]:
    """Steps a second in a trainer, and the seconds of a validation."""
    model = {key: value for key, value in config["model"].items() if key != "card"}
    task = SegmentationTask(card=config["data"]["card"], **model)
    options: dict[str, Any] = {**config["trainer"], "max_steps": steps, "val_check_interval": 2 * steps}
    options |= {"max_epochs": -1, "check_val_every_n_epoch": None, "use_distributed_sampler": False, "logger": False}
    options |= {"enable_checkpointing": False, "num_sanity_val_steps": 0}
    clock = Clock(steps)
    trainer = Trainer(**options, callbacks=[clock])
    trainer.fit(task, datamodule=data)
    start = time.perf_counter()
    trainer.validate(task, datamodule=data, verbose=False)
    return clock.rate(steps), time.perf_counter() - start


def report(study: SharedStudy, config: Configuration, steps: int, device: torch.device) -> None:
    for cache, photometric in itertools.product((None, "memory"), (True, "device")):
        found = loader_rate(config, {"cache": cache, "photometric": photometric}, steps, device)
        colours = "device" if photometric == "device" else "host"
        print(f"loader alone, cache {cache}, colours on the {colours}: {found:.1f} batches a second", flush=True)
    for factor in (1, 2):
        size = factor * config["data"]["batch_size"]
        found, _ = run_rates(config, OneBatch(**(config["data"] | {"batch_size": size})), steps)
        print(f"step alone, {size} crops: {found:.1f} steps a second", flush=True)
    found, validation = run_rates(config, SegmentationDataModule(**config["data"]), steps)
    print(f"whole: {found:.1f} steps a second; validation: {validation:.1f} s")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=SHARED_STUDIES)
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of data that are not in the package")
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--loaders", type=int, default=1, metavar="N", help="loader processes (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.steps < 2:
        parser.error("--steps must be at least 2")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    study = SHARED_STUDIES[args.study]
    try:
        root = study.data_root(args.root)
    except ValueError as error:
        parser.error(str(error))
    config = on_machine(study.jobs({"trials": [], "runs": []})[0].config, root, args.device, args.loaders)
    config = merged(config, {"data": {"val_split": study.splits()[2]}})
    report(study, config, args.steps, torch.device(args.device))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
