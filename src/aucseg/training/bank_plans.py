"""Batches that bring what the memory bank needs to know of their masks."""

from typing import Any

from lightning.pytorch import Trainer

from aucseg.memory_bank import TailMemoryBank


def planned_by_workers(trainer: Trainer | None) -> dict[str, Any]:
    """Options of a training loader: its workers plan for the bank of the module that is trained, if it has one."""
    bank = None if trainer is None else getattr(trainer.lightning_module, "bank", None)
    return {"collate_fn": bank.planner.collate} if isinstance(bank, TailMemoryBank) else {}
