"""A line about what takes a while, so that nobody waits before an empty screen."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType

# Seconds before a line about the current work is printed: what is over sooner needs none.
PATIENCE = 0.5
# The same for a part of a longer wait that has its line.
LONG_PATIENCE = 3.0
_started = time.perf_counter()


class Announcement:
    """Says on the standard error what is going on if it takes longer than a moment; the first process alone does.

    Args:
        what: Such as "reading 1,340 masks".
        patience: Seconds to wait first, by default `PATIENCE`.
        enabled: False says nothing.

    Example:
        >>> with Announcement("building the model", patience=60):
        ...     pass
    """

    def __init__(self, what: str, patience: float | None = None, enabled: bool = True) -> None:
        self._what = what
        self._patience = PATIENCE if patience is None else patience
        self._timer: threading.Timer | None = None
        self._enabled = enabled and process_number() == 0

    def start(self) -> None:
        """Starts the clock."""
        if self._enabled:
            self._timer = threading.Timer(self._patience, self._say)
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        """Takes back a line that was not printed yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _say(self) -> None:
        print(f"aucseg: {self._what} ...", file=sys.stderr, flush=True)

    def __enter__(self) -> Announcement:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def process_number() -> int:
    """Rank of this process, also before there is a process group: as torchrun, Lightning's launcher or SLURM set it."""
    # In a shell of SLURM what Lightning's launcher starts inherits the rank 0 of the shell.
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def start_of_command() -> None:
    """Notes that a command begins, from which the time that it may take counts."""
    global _started  # one command at a time is all that a process runs
    _started = time.perf_counter()


def seconds_since_start() -> float:
    """Seconds since the command began; imports take some of them."""
    return time.perf_counter() - _started


def loading() -> Announcement:
    """Announces the imports that most commands begin with."""
    return Announcement("loading PyTorch")
