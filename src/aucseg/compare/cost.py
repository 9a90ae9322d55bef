"""What a training run costs: seconds a step and peak memory, measured inside the run's own process."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aucseg.safe_files import write_json


class CostMeter(Callback):
    """Writes `{"seconds_per_step", "peak_memory", "device"}` when training ends.

    `seconds_per_step` is the median of the times from the end of one step of the optimizer to the end of the next,
    loading and accumulated batches included, without the first tenth of the run and without validations.
    `peak_memory` is in bytes, of the training before the first validation: on CUDA what tensors held
    (`torch.cuda.max_memory_allocated`), on the CPU the largest resident set of the process, the libraries included.
    Both are kept with the checkpoint, for a run that is cut off and goes on: the memory is the most of its processes.

    Args:
        file: JSON file to write.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self._seconds: list[float] = []
        self._last: float | None = None
        self._step = 0
        self._peak_memory: int | None = None
        self._is_on_cuda = False
        # Whether this process has made a step, and has not validated since it began.
        self._is_training = self._has_validated = False

    def state_dict(self) -> dict[str, Any]:
        """What has been measured so far."""
        return {"seconds": list(self._seconds), "peak_memory": self._measured_memory()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what was measured before the run was cut off."""
        self._seconds, self._peak_memory = list(state_dict["seconds"]), state_dict["peak_memory"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the memory of the check before the first step."""
        self._is_on_cuda = pl_module.device.type == "cuda"
        if self._is_on_cuda:
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Notes the time since the last step."""
        self._is_training = not self._has_validated
        if trainer.global_step == self._step:
            return  # one of several batches of a step
        now = time.perf_counter()
        if self._last is not None:
            self._seconds.append(now - self._last)
        self._last, self._step = now, trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock, and reads the memory before the first validation."""
        if trainer.sanity_checking:
            return
        self._last = None
        self._peak_memory = self._measured_memory()
        self._is_training, self._has_validated = False, True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file, also of a run that went on when it had made its last step."""
        steady = self._seconds[len(self._seconds) // 10 :]
        device = trainer.strategy.root_device  # the model has left it already
        cost = {
            "seconds_per_step": statistics.median(steady) if steady else None,
            "peak_memory": self._measured_memory(),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        }
        write_json(self.file, cost)

    def _measured_memory(self) -> int | None:
        if not self._is_training:
            return self._peak_memory
        now = torch.cuda.max_memory_allocated() if self._is_on_cuda else peak_resident_bytes()
        return now if now is None or self._peak_memory is None else max(now, self._peak_memory)


def peak_resident_bytes() -> int | None:
    """The largest resident set of this process so far, in bytes; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: its maximum outlives exec, so a child would report its parent's memory.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
