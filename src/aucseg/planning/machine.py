"""What a plan needs to know of the machine: device, cores, memory, and which pretrained weights are installed."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from aucseg.models.pretrained import has_packaged_weights
from aucseg.runtime.resources import free_memory, num_cores


@dataclass(frozen=True)
class Machine:
    """The figures of a machine that a plan follows from.

    Attributes:
        device: `"cpu"`, `"cuda"`, or another type of torch's devices.
        name: What to call it.
        num_cores: Cores that this process may use.
        free_memory: Bytes of main memory that are free.
        free_device_memory: Bytes that are free on the accelerator, 0 without one.
        has_bfloat16: Whether the accelerator computes in bfloat16.
        has_packaged_weights: Whether a package with ImageNet weights is installed.
        can_download: False where weights could not be fetched.
    """

    device: str
    name: str
    num_cores: int
    free_memory: int
    free_device_memory: int = 0
    has_bfloat16: bool = False
    has_packaged_weights: bool = False
    can_download: bool = True


def find_machine(accelerator: str = "auto") -> Machine:
    """Looks at this machine.

    Args:
        accelerator: `trainer.accelerator` of the run: `"cpu"` plans for the processor whatever else there is.
    """
    cores = num_cores()
    packaged = has_packaged_weights()
    memory = _memory_to_plan_with()
    if accelerator != "cpu" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return Machine(
            "cuda",
            torch.cuda.get_device_name(),
            cores,
            memory,
            free_device_memory=free,
            has_bfloat16=torch.cuda.is_bf16_supported(),
            has_packaged_weights=packaged,
        )
    if accelerator != "cpu" and torch.backends.mps.is_available():
        return Machine("mps", "Apple GPU", cores, memory, free_device_memory=memory, has_packaged_weights=packaged)
    threads = torch.get_num_threads()
    name = f"CPU with {cores} core{'s' * (cores != 1)}"
    if threads < cores:
        name += f" ({threads} thread{'s' * (threads != 1)})"
    return Machine("cpu", name, cores, memory, has_packaged_weights=packaged)


def _memory_to_plan_with() -> int:
    """Free bytes of main memory; an eighth of it all where the system does not tell."""
    if (free := free_memory()) is not None:
        return free
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8
    except (AttributeError, ValueError, OSError):  # Windows
        return 2**30
