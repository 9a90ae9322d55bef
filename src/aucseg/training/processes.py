"""What several processes of a run do together, beyond what Lightning does: sums, states, samples of the bank."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aucseg.losses.pairwise_auc import PairwiseAUCLoss
from aucseg.memory_bank import TailMemoryBank

_T = TypeVar("_T")


def process_number() -> int:
    """Rank of this process, also before there is a process group: as torchrun, SLURM or Lightning's launcher set it."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def say_once(message: str) -> None:
    """Prints to the standard error, on the first process alone."""
    if process_number() == 0:
        print(f"aucseg: {message}", file=sys.stderr, flush=True)


def auc_losses(loss: nn.Module) -> list[PairwiseAUCLoss]:
    """The AUC losses in a loss whose sums can be taken over several processes."""
    return [part for part in loss.modules() if isinstance(part, PairwiseAUCLoss) and part.options.form]


@contextmanager
def process_group_of(loss: nn.Module, group: dist.ProcessGroup | None) -> Iterator[None]:
    """Within the context the AUC losses take the pixels of all processes of ``group`` together; None: this one's."""
    parts = auc_losses(loss)
    before = [part.options.process_group for part in parts]
    try:
        for part in parts:
            object.__setattr__(part.options, "process_group", group)
        yield
    finally:
        for part, old in zip(parts, before, strict=True):
            object.__setattr__(part.options, "process_group", old)


def state_of_process(processes: Sequence[dict[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
    """What a checkpoint holds for one process; says once that there are more or fewer processes than then.

    Args:
        processes: the state of each process of the run that wrote the checkpoint: ``random_states`` and, but for the
            first, ``bank``.
        rank: of this process. Where there was none of that rank, it gets the bank of another and no random states.
        world_size: number of processes now.

    Example:
        >>> state_of_process([{"random_states": 0}, {"random_states": 1, "bank": "b"}], 1, 2)
        {'random_states': 1, 'bank': 'b'}
    """
    if len(processes) != world_size:
        say_once(
            f"The checkpoint is of {len(processes)} processes, this run has {world_size}: it goes on, but not bit by "
            "bit as it would have"
        )
    state = dict(processes[rank % len(processes)])
    if rank >= len(processes):
        del state["random_states"]
    return state


def gathered(value: _T) -> list[_T] | None:
    """The values of all processes on the first one, None on the others; tensors in it should be on the CPU."""
    first = dist.get_rank() == 0
    values: list[Any] | None = [None] * dist.get_world_size() if first else None
    dist.gather_object(value, values)
    return values


def part_of(items: Sequence[_T], rank: int, world_size: int) -> Sequence[_T]:
    """The part of a process: consecutive, and together all items in order.

    Example:
        >>> [part_of("abcde", rank, 2) for rank in range(2)]
        ['ab', 'cde']
    """
    return items[rank * len(items) // world_size : (rank + 1) * len(items) // world_size]


def exchange_samples(bank: TailMemoryBank, device: torch.device, shift: int, generator: torch.Generator) -> int:
    """Each process gives one stored sample of each tail class to the process ``shift`` ranks further on.

    A class that occurs on one process alone thus comes to all of them. What arrives is stored like a new sample: beyond
    ``capacity`` the oldest goes.

    Args:
        bank: the bank of this process.
        device: where the backend's messages live: the CPU for gloo, this process's accelerator for NCCL.
        shift: 1..world size - 1, the same on all processes.
        generator: CPU generator that draws what is given.

    Returns:
        Bytes that this process has sent.
    """
    drawn = [int(torch.randint(n, (), generator=generator)) if n else 0 for n in bank.num_samples.values()]
    # Taken after the draws: the generator may be the bank's own, whose state it holds.
    state = bank.get_extra_state()
    gift = [[cpu_state(samples[i])] if samples else [] for samples, i in zip(state["samples"], drawn, strict=True)]
    buffer = io.BytesIO()
    torch.save(gift, buffer)
    message = torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8).to(device)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    to, source = (rank + shift) % world_size, (rank - shift) % world_size
    size = _swap(
        torch.tensor([message.numel()], device=device), torch.zeros(1, dtype=torch.int64, device=device), to, source
    )
    received = _swap(message, torch.empty(int(size), dtype=torch.uint8, device=device), to, source)
    arrived = torch.load(io.BytesIO(received.cpu().numpy().tobytes()), weights_only=True)
    state["samples"] = [own + new for own, new in zip(state["samples"], arrived, strict=True)]
    bank.set_extra_state(state)
    return message.numel() + 8


def _swap(message: Tensor, received: Tensor, to: int, source: int) -> Tensor:
    operations = [dist.P2POp(dist.isend, message, to), dist.P2POp(dist.irecv, received, source)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return received


def cpu_state(value: Any) -> Any:
    """A copy of nested containers with their tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: cpu_state(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [cpu_state(item) for item in value]
    return value
