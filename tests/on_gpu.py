"""What the tests on a GPU share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "aucseg", *map(str, command)]
    return subprocess.run(words, capture_output=True, text=True, check=False)
