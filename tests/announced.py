"""Waits for what another thread says."""

import time
from collections.abc import Callable


def wait_for(text: Callable[[], str]) -> str:
    """The first text that is not empty, within ten seconds."""
    end = time.monotonic() + 10
    found = ""
    while not found and time.monotonic() < end:
        time.sleep(0.005)
        found = text()
    return found
