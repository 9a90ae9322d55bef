"""Random numbers that depend on a seed alone and leave no trace, and the states of all generators of a process."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch (on the CPU), `random` and numpy inside the block; afterwards their states are as before.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(2)
        >>> with seeded(3):
        ...     second = torch.rand(2)
        >>> torch.equal(first, second)
        True
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def stable_seed(*parts: int) -> int:
    """A seed in [0, 2**63) drawn from all `parts`, unrelated between neighbours and the same on every platform.

    Example:
        >>> stable_seed(0, 1) == stable_seed(0, 1), stable_seed(0, 1) == stable_seed(1, 0)
        (True, False)
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def random_states(device: torch.device) -> dict[str, Any]:
    """States of `random`, numpy, torch and, if `device` is an accelerator, of its generator."""
    version, internal, gauss = random.getstate()
    # The legacy generator is the one that transforms of other libraries draw from.
    name, keys, position, has_gauss, cached = cast(Any, np.random.get_state(legacy=True))  # noqa: NPY002
    accelerator = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "accelerator": accelerator,
    }


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Restores what `random_states` gave; on another kind of device its generator is left as it is.

    Example:
        >>> states = random_states(torch.device("cpu"))
        >>> first = torch.rand(2), random.random(), np.random.rand()
        >>> set_random_states(states, torch.device("cpu"))
        >>> second = torch.rand(2), random.random(), np.random.rand()
        >>> bool((first[0] == second[0]).all()), first[1:] == second[1:]
        (True, True)
    """
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if states["accelerator"] is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states["accelerator"].cpu(), device)
