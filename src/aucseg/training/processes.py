"""What several processes of a run do together, beyond what Lightning does: sums and states."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.utilities.seed import pl_worker_init_function
from torch import Tensor

from aucseg.randomness import stable_seed
from aucseg.runtime.announce import process_number

_T = TypeVar("_T")


def print_note(message: str) -> None:
    """Prints to the standard error, on the first process alone."""
    if process_number() == 0:
        print(f"aucseg: {message}", file=sys.stderr, flush=True)


def state_of_process(processes: Sequence[dict[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
    """What a checkpoint holds for one process; says once that there are more or fewer processes than then.

    Args:
        processes: The state of each process of the run that wrote the checkpoint: `random_states` and, but for the
            first, `bank`.
        rank: Of this process. Where there was none of that rank, it gets the bank of another and no random states.
        world_size: Number of processes now.

    Example:
        >>> state_of_process([{"random_states": 0}, {"random_states": 1, "bank": "b"}], 1, 2)
        {'random_states': 1, 'bank': 'b'}
    """
    if len(processes) != world_size:
        print_note(
            f"The checkpoint is of {len(processes)} processes, this run has {world_size}: it goes on, but not bit by "
            "bit as it would have"
        )
    state = dict(processes[rank % len(processes)])
    if rank >= len(processes):
        del state["random_states"]
    return state


def start_worker(number: int, rank: int) -> None:
    """Begins a process of a loader: in a process group of its own.

    A terminal's Ctrl-C, `timeout` and launchers signal the whole group of a run, and a training whose loader has died
    could not end its step and write a checkpoint. Loaders end with the training, or when it is gone.

    Args:
        number: Of the process among those of the loader.
        rank: Of the training process.
    """
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()
    if int(os.environ.get("PL_SEED_WORKERS", "0")):  # Lightning does it for loaders without a function of their own
        pl_worker_init_function(number, rank)


def gathered(value: _T) -> list[_T] | None:
    """The values of all processes on the first one, None on the others; tensors in it should be on the CPU."""
    first = dist.get_rank() == 0
    values: list[Any] | None = [None] * dist.get_world_size() if first else None
    dist.gather_object(value, values)
    return values


def draw_apart(rank: int, generator: torch.Generator) -> None:
    """Gives a process a seed of its own: the weights are the same in all, but each pastes and drops out on its own."""
    seed = stable_seed(torch.initial_seed(), rank)
    torch.manual_seed(seed)
    generator.manual_seed(seed)


def part_of(items: Sequence[_T], rank: int, world_size: int) -> Sequence[_T]:
    """The part of a process: consecutive, and together all items in order.

    Example:
        >>> [part_of("abcde", rank, 2) for rank in range(2)]
        ['ab', 'cde']
    """
    return items[rank * len(items) // world_size : (rank + 1) * len(items) // world_size]


def cpu_state(value: Any) -> Any:
    """A copy of nested containers with their tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: cpu_state(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [cpu_state(item) for item in value]
    return value
