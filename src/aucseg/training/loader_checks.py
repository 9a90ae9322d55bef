"""What the data module refuses: settings that do not go together, and a machine without room for its loaders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aucseg.datasets import DatasetCard
from aucseg.hints import check_choice, check_options
from aucseg.loading.rare_classes import SAMPLERS
from aucseg.statistics.class_statistics import ClassStatistics
from aucseg.training.processes import print_note

# Options of a sampler that follow from the run.
_SET_BY_THE_RUN = ("statistics", "seed", "num_replicas", "rank")
_IN_ORDER = (
    "shards are read in their order: no sampler 'rare_class' or 'repeat_factor', no held_out_share or fold with them"
)


def check_sampling(*, cache: str | None, shards: Any, sampler: str, sampler_options: Mapping[str, Any]) -> None:
    """Refuses names that there are not, and options that do not go together.

    Raises:
        TypeError: An option that the sampler does not have.
        ValueError: Everything else.
    """
    check_choice("cache", cache, ("memory", None))
    if cache is not None and shards is not None:
        raise ValueError("cache keeps images of files; shards are read as a stream: leave one of the two out")
    check_choice("sampler", sampler, ("random", "sequential", *SAMPLERS))
    if sampler in SAMPLERS:
        check_options("data.sampler_options", sampler_options, SAMPLERS[sampler], given=_SET_BY_THE_RUN)
        if shards is not None:
            raise ValueError(_IN_ORDER)
    elif sampler_options:
        raise ValueError("sampler_options go with the samplers 'rare_class' and 'repeat_factor'")


def check_tile(tile: int | None, *, cache: str | None, shards: Any, base_size: Any) -> None:
    """Refuses what does not go with images that are read by windows.

    Raises:
        ValueError: As said.
    """
    if tile is None:
        return
    if cache is not None:
        raise ValueError("cache keeps whole images, and tile reads them by windows: leave one of the two out")
    if shards is not None:
        raise ValueError("tile reads windows of files on disk; images in shards are read whole: cut them before")
    if base_size is not None:
        raise ValueError("base_size and eval_base_size fit whole images, and tile reads windows: use scale instead")


def check_held_out(share: float, by: str, *, fold: tuple[int, int] | None, shards: Any, statistics: str | None) -> None:
    """Refuses a share outside [0, 1), a fold that there is not, an unknown unit, and what does not go with them.

    Raises:
        ValueError: As said.
    """
    check_choice("held_out_by", by, ("sequence", "image"))
    if not 0 <= share < 1:
        raise ValueError(f"held_out_share must lie in [0, 1), got {share}")
    if fold is not None and not 0 <= fold[0] < fold[1]:
        raise ValueError(f"fold must be [number, how many], such as [0, 5], the number from 0; got {list(fold)}")
    if (share or fold) and shards is not None:
        raise ValueError(_IN_ORDER)
    if (share or fold) and statistics is not None:
        raise ValueError("statistics are those of the whole split: leave them out with held_out_share and fold")


def load_statistics(path: str, card: DatasetCard) -> ClassStatistics:
    """Loads class statistics of the card's classes.

    Raises:
        ValueError: They are of others, see `ClassStatistics.check_classes`.
    """
    statistics = ClassStatistics.load(Path(path))
    if notice := statistics.check_classes(card, path):
        print_note(notice)
    return statistics


def check_at_least(least: int, **values: int) -> None:
    """Refuses numbers below the least, by their names.

    Example:
        >>> check_at_least(1, batch_size=0)
        Traceback (most recent call last):
        ValueError: batch_size must be at least 1, got 0
    """
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_number_of_shards(num_shards: int, num_workers: int, world_size: int) -> None:
    """Refuses fewer shards than there are loader processes.

    Raises:
        ValueError: With the number that is needed.
    """
    needed = max(1, num_workers) * world_size
    if num_shards < needed:
        raise ValueError(
            f"too few shards in data.shards: {num_shards} for {needed} loader processes (data.num_workers "
            f"{num_workers}, {world_size} ranks), and each needs one: write more shards, or lower data.num_workers"
        )


def check_shared_memory(num_workers: int, batch_bytes: int) -> None:
    """Refuses loaders without room for their batches in shared memory: they would die of a bus error.

    Args:
        num_workers: Loader processes of each rank.
        batch_bytes: Bytes of a batch.

    Raises:
        ValueError: There is too little of it; the message says how much is needed and how to get it.
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
