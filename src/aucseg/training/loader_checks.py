"""What loader processes need of the machine, asked before they start."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def check_shared_memory(num_workers: int, batch_bytes: int) -> None:
    """Refuses loaders without room for their batches in shared memory: they would die of a bus error.

    Args:
        num_workers: loader processes of each rank.
        batch_bytes: bytes of a batch.

    Raises:
        ValueError: there is too little of it; the message says how much is needed and how to get it.
    """
    folder = Path("/dev/shm")
    if num_workers == 0 or not folder.is_dir():
        return
    # Each loader process prepares two batches ahead.
    workers = num_workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed, free = 2 * workers * batch_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder} has {free / 1e6:.1f} MB left, and {workers} loader processes need up to "
            f"{needed / 1e6:.1f} MB of it: make it larger (docker run --shm-size=8g; mount -o remount,size=8G "
            f"{folder}), remove what other programs left there, or lower data.num_workers (0 needs none)"
        )
