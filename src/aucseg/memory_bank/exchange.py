"""What the banks of several processes give each other: stored samples, so that a class of one comes to all."""

from __future__ import annotations

import io

import torch
import torch.distributed as dist
from torch import Tensor

from aucseg.memory_bank.bank import TailMemoryBank


def exchange_samples(bank: TailMemoryBank, device: torch.device, shift: int, generator: torch.Generator) -> int:
    """Each process gives one stored sample of each tail class to the process `shift` ranks further on.

    A class that occurs on one process alone thus comes to all of them. What arrives is stored like a new sample: beyond
    `capacity` the oldest goes.

    Args:
        bank: The bank of this process.
        device: Where the backend's messages live: the CPU for gloo, this process's accelerator for NCCL.
        shift: 1..world size - 1, the same on all processes.
        generator: CPU generator that draws what is given.

    Returns:
        Bytes that this process has sent.
    """
    drawn = [int(torch.randint(n, (), generator=generator)) if n else 0 for n in bank.num_samples.values()]
    samples = bank.get_extra_state()["samples"]
    gift = [
        [{**own[i], "runs": own[i]["runs"].cpu(), "values": own[i]["values"].cpu()}] if own else []
        for own, i in zip(samples, drawn, strict=True)
    ]
    buffer = io.BytesIO()
    torch.save(gift, buffer)
    message = torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8).to(device)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    to, source = (rank + shift) % world_size, (rank - shift) % world_size
    size = swap(
        torch.tensor([message.numel()], device=device), torch.zeros(1, dtype=torch.int64, device=device), to, source
    )
    received = swap(message, torch.empty(int(size), dtype=torch.uint8, device=device), to, source)
    bank.add_samples(torch.load(io.BytesIO(received.cpu().numpy().tobytes()), weights_only=True))
    return message.numel() + 8


def swap(message: Tensor, received: Tensor, to: int, source: int) -> Tensor:
    """Sends a message to one process and fills `received` with that of another, of the same dtype and device."""
    operations = [dist.P2POp(dist.isend, message, to), dist.P2POp(dist.irecv, received, source)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return received
