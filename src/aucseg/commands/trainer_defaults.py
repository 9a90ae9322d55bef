"""What `aucseg fit` fills in of the trainer's settings, where the user says nothing."""

from __future__ import annotations

import os
from typing import Any

import torch


def steps_between_logs(max_steps: int) -> int:
    """Ten, or more where a long run would log more than 10,000 times: so the logs of a run stay below about 6 MB."""
    return max(10, -(-max_steps // 10_000))


def use_processes_of_launcher(trainer: Any) -> None:
    """Takes the numbers of processes from torchrun, and synchronizes batch normalization where torch can.

    Raises:
        ValueError: A strategy that a run cannot be trained with.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if trainer.devices == "auto":
            trainer.devices, trainer.num_nodes = local, world // local
        if trainer.strategy == "auto" and world > 1:
            trainer.strategy = "ddp"
    name = trainer.strategy if isinstance(trainer.strategy, str) else ""
    if any(way in name for way in ("spawn", "fork", "notebook")):
        raise ValueError(
            f"trainer.strategy {name} starts processes within this one, which cannot take the model over or hand it "
            "back: take ddp, or start the processes with torchrun"
        )
    # torch has no synchronized batch normalization on the CPU.
    if trainer.accelerator == "cpu" or not torch.cuda.is_available():
        trainer.sync_batchnorm = False
