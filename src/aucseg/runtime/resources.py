"""What this process may use of the machine: cores and memory."""

from __future__ import annotations

import os
from pathlib import Path

_MEMORY_INFO = Path("/proc/meminfo")


def num_cores() -> int:
    """Cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes that programs may still take without swapping; None where the system does not tell."""
    if not _MEMORY_INFO.is_file():
        return None
    lines = (line.partition(":") for line in _MEMORY_INFO.read_text(encoding="ascii").splitlines())
    return next((int(value.split()[0]) * 1024 for name, _, value in lines if name == "MemAvailable"), None)
