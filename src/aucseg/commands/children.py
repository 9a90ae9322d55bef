"""Processes that a command starts: several trainings side by side, and what ends with the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from aucseg.runtime.child_processes import end_child
from aucseg.runtime.resources import num_cores

_SECONDS_BETWEEN_LOOKS = 0.1


@contextmanager
def signals_as_exit() -> Iterator[None]:
    """Raises KeyboardInterrupt at SIGTERM and SIGHUP, too, so that children end first, and failed starts are removed.

    A closed terminal is one of the reasons: a child in a session of its own is not ended by the system. What `nohup`
    has the process ignore stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return

    def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train_side_by_side(runs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Runs `aucseg fit` once for each title, all at the same time; what they tell is shown with the title in front.

    Small steps on a few cores leave most of them waiting for each other; trainings side by side, each with its share of
    the cores, do not. On Ctrl-C, or when one fails, the others are asked to end, and save a checkpoint.

    Args:
        runs: For each title the options of `aucseg fit`.

    Returns:
        For each title the exit status, negative for the signal that ended it.
    """
    threads = max(1, num_cores() // len(runs))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    children: dict[str, subprocess.Popen[str]] = {}
    readers = []
    is_over = threading.Event()
    with signals_as_exit():
        try:
            for title, options in runs.items():
                # Our own command, a list of arguments without a shell.
                children[title] = child = subprocess.Popen(  # nosec B603
                    [sys.executable, "-m", "aucseg", "fit", *options],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    # Ctrl-C is for this process: a second signal would deny a training its checkpoint.
                    start_new_session=True,
                )
                assert child.stderr is not None
                readers.append(threading.Thread(target=_show, args=(title, child.stderr, is_over), daemon=True))
                readers[-1].start()
            while (states := [child.poll() for child in children.values()]).count(None) and not any(states):
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            alive = [child for child in children.values() if child.poll() is None]
            if alive:  # what these say of their end is not what ended this
                is_over.set()
            for child in alive:
                child.terminate()
            for child in alive:
                end_child(child)
    for reader in readers:
        reader.join()
    return {title: child.wait() for title, child in children.items()}


def _show(title: str, lines: IO[str], is_over: threading.Event) -> None:
    for line in lines:
        if line.strip() and not is_over.is_set():
            print(f"{title}: {line.rstrip().removeprefix('aucseg: ')}", file=sys.stderr, flush=True)
