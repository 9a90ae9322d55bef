"""What `tests/test_two_processes.py` runs under torchrun: everything in one start of two processes."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from aucseg import AUCSegLoss, SegmentationDataModule, SegmentationTask
from aucseg.commands import fit as lightning_cli
from aucseg.memory_bank import TailMemoryBank
from aucseg.training.step_guard import StepGuard
from tests.small_runs import SMALL_RUN, make_trainer

STEPS = 6


class PlainNetwork(nn.Module):
    """No batch normalization, no dropout: the gradient of a batch is that of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(8, 4, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def train_plain(
    card: Path,
    folder: Path,
    batch_size: int,
    loss: nn.Module | None = None,
    micro_batches: int = 1,
    model: nn.Module | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """The weights after a few steps; the same for two processes with half the batch each."""
    torch.manual_seed(0)
    task = SegmentationTask(
        str(card),
        model or PlainNetwork(),
        loss=loss or AUCSegLoss(),
        learning_rate=0.01,
        warmup_steps=1,
        micro_batches=micro_batches,
    )
    data = SegmentationDataModule(
        str(card), str(card.parent), batch_size=batch_size, num_workers=0, crop_size=(32, 40), eval_batch_size=1
    )
    trainer = make_trainer(folder, STEPS, **options)
    trainer.fit(task, data)
    return task.model.state_dict()


def arguments(card: Path, out: Path, **more: object) -> list[str]:
    options = {
        "trainer.max_steps": STEPS,
        "trainer.val_check_interval": 6,
        "trainer.accumulate_grad_batches": 2,
        **SMALL_RUN,
        "model.bank_exchange_every": 1,
        "model.pixel_metrics": "true",
        "model.warmup_steps": 2,
        "data.card": card,
        "data.root": card.parent,
        "data.batch_size": 2,
        "data.eval_batch_size": 1,
        "data.num_workers": 0,
        "data.crop_size": "[32, 40]",
        "checkpoint_every": 2,
        "out": out,
        **more,
    }
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


class PartlyUsed(PlainNetwork):
    """Has a layer that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Conv2d(8, 4, 1)


def unused_parameters(card: Path, folder: Path, strategy: str) -> str:
    """What is said of them; nothing where they are trained."""
    try:
        train_plain(card, folder, 2, model=PartlyUsed(), strategy=strategy, devices=2)
    except ValueError as error:
        return str(error)
    return ""


class HalfBad(nn.Module):
    """A mean of its own on each process, infinite on the second one in the third step."""

    calls = 0

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = logits.square().mean()
        self.calls += self.training
        return loss * torch.inf if self.training and self.calls == 3 and dist.get_rank() == 1 else loss


class Losses(Callback):
    """Keeps the logged loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


class Tell(Callback):
    """Sends this process a signal, on one rank alone."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


class Kill(Callback):
    """Kills one of the processes."""

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


class ExpectSyncBatchNorm(Callback):
    """Fails without synchronized batch normalization, which nobody has asked for."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert any(isinstance(module, nn.SyncBatchNorm) for module in pl_module.modules())


def uneven_arguments(folder: Path, out: str, eval_batch_size: int) -> list[str]:
    """Of `aucseg validate`: the model of `whole` on images of unequal sizes; needs the data in `data`."""
    checkpoint = folder / "whole" / "checkpoints" / "last.ckpt"
    options: dict[str, object] = {"data.eval_batch_size": eval_batch_size, "ckpt_path": checkpoint}
    return arguments(folder / "data" / "tiny.yaml", folder / out, **options)


def main(card: Path, folder: Path) -> None:
    results: dict[str, Any] = {"plain": train_plain(card, folder, 2, strategy="ddp", devices=2)}
    results["micro-batches"] = train_plain(card, folder, 2, micro_batches=2, strategy="ddp", devices=2)
    rank = dist.get_rank()
    strategies = ("ddp", "ddp_find_unused_parameters_true")
    results["unused"] = [unused_parameters(card, folder, strategy) for strategy in strategies]
    guard, losses = StepGuard(), Losses()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="step 2 was skipped")
        guarded = folder / "guarded"
        callbacks = [guard, losses]
        results["guarded"] = train_plain(card, guarded, 2, HalfBad(), strategy="ddp", devices=2, callbacks=callbacks)
    results["num_skipped"], results["losses"] = guard.num_skipped, losses.values
    fitted = lightning_cli.run_lightning("fit", arguments(card, folder / "whole"))
    bank = fitted.model.bank
    assert isinstance(bank, TailMemoryBank)
    results["bank"] = bank.get_extra_state()
    results["weights"] = fitted.model.model.state_dict()
    results["rates"] = [group["initial_lr"] for group in fitted.trainer.optimizers[0].param_groups]
    half = arguments(card, folder / "half", resume="auto")
    tell = ["--trainer.callbacks", '[{"class_path": "tests.two_processes.Tell"}]']
    results["status"] = [lightning_cli.run("fit", half + tell), lightning_cli.run("fit", half)]
    results["again"] = lightning_cli.run("fit", half)
    checkpoint = folder / "whole" / "checkpoints" / "last.ckpt"
    lightning_cli.run("validate", arguments(card, folder / "validate", ckpt_path=checkpoint))
    lightning_cli.run("validate", uneven_arguments(folder, "uneven", 2))
    torch.save(results, folder / f"{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
