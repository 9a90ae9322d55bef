from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from aucseg.compare import cost


class _Slow(LightningModule):
    """Every batch takes a second of a clock that is not real, or as many as are given."""

    def __init__(self, clock: list[float], seconds: Sequence[float] = ()) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.clock, self.seconds = clock, seconds

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        self.clock[0] += self.seconds[number] if self.seconds else 1
        loss: torch.Tensor = self.layer(batch[0]).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("accumulated", [1, 4])
def test_a_step_is_one_of_the_optimizer(accumulated: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_steps=5, accumulate_grad_batches=accumulated, callbacks=[cost.CostMeter(str(tmp_path / "cost.json"))],
        accelerator="cpu", enable_model_summary=False, **quiet,
    )  # fmt: skip
    trainer.fit(_Slow(clock), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(40, 1))))
    assert json.loads((tmp_path / "cost.json").read_text())["seconds_per_step"] == accumulated


def test_the_median_without_the_first_tenth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    # The time of the first step has no beginning; of the other 21 the first two are left out.
    seconds = [500.0, 100.0, 90.0, *range(1, 20)]
    trainer = Trainer(
        max_steps=22, callbacks=[cost.CostMeter(str(tmp_path / "cost.json"))], accelerator="cpu",
        enable_model_summary=False, **quiet,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(22, 1)))
    trainer.fit(_Slow(clock, seconds), loader)
    assert json.loads((tmp_path / "cost.json").read_text())["seconds_per_step"] == 10  # of 1, 2, ..., 19


class _Validated(_Slow):
    def validation_step(self, batch: list[torch.Tensor], _: Any) -> None:
        """Nothing."""


def test_memory_is_that_of_training_and_not_of_the_check_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(cost, "peak_resident_bytes", lambda: int(clock[0]))
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_steps=6, num_sanity_val_steps=1, val_check_interval=3, accelerator="cpu", enable_model_summary=False,
        check_val_every_n_epoch=None, callbacks=[cost.CostMeter(str(tmp_path / "cost.json"))], **quiet,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(6, 1)))
    trainer.fit(_Validated(clock), loader, loader)
    assert json.loads((tmp_path / "cost.json").read_text())["peak_memory"] == 3


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize(("at", "peak"), [(6, 3), (4, 30)])
def test_what_was_measured_before_a_run_is_cut_off_counts(
    at: int, peak: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second part has nothing to train, or two steps that take longer and more memory."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(cost, "peak_resident_bytes", lambda: int(clock[0]))
    path, loader = (
        tmp_path / "cost.json",
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(8, 1))),
    )

    def fit(steps: int, each: float, resumed: str | None) -> None:
        trainer = Trainer(
            max_steps=steps, num_sanity_val_steps=0, val_check_interval=3, check_val_every_n_epoch=None, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
            callbacks=[cost.CostMeter(str(path))],
        )  # fmt: skip
        trainer.fit(_Validated(clock, [each] * 8), loader, loader, ckpt_path=resumed)
        trainer.save_checkpoint(tmp_path / "last.ckpt")

    fit(at, 1, None)
    path.unlink()
    clock[0] = 10
    fit(6, 10, str(tmp_path / "last.ckpt"))
    found = json.loads(path.read_text())
    assert (found["seconds_per_step"], found["peak_memory"]) == (1, peak)
