"""Child processes that are asked to end."""

from __future__ import annotations

import subprocess
from typing import Any

# A training that is asked to end saves a checkpoint after its step.
_SECONDS_TO_END = 60.0


def end_child(child: subprocess.Popen[Any]) -> None:
    """Waits for a child that was asked to end, for a while, and then ends it."""
    try:
        child.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
