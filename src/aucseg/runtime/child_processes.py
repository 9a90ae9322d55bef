"""Cores and child processes, for whatever starts several."""

from __future__ import annotations

import os
import subprocess
from typing import Any

# A training that is asked to end saves a checkpoint after its step.
_SECONDS_TO_END = 60.0


def num_cores() -> int:
    """Cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_child(child: subprocess.Popen[Any]) -> None:
    """Waits for a child that was asked to end, for a while, and then ends it."""
    try:
        child.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
