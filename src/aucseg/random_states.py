"""The states of all random generators of a process, as plain containers and tensors."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch


def random_states(device: torch.device) -> dict[str, Any]:
    """States of `random`, numpy, torch and, if ``device`` is an accelerator, of its generator."""
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
