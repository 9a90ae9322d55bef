"""Modules that `torch.compile` leaves alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class UncompiledModule(nn.Module):
    """A module whose `forward` breaks a compiled graph once, and runs as it is.

    For work with NumPy on the host, which a compiler would take for tensors and break at every number that is asked
    for.
    """

    def __init__(self) -> None:
        super().__init__()
        _leave_alone(type(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _leave_alone(type(self))


def _leave_alone(module: type[nn.Module]) -> None:
    # Not a decorator: that would import the compiler with the package, which takes a second. Whoever trains has an
    # optimizer, which imports it too.
    if not getattr(module.forward, "_torchdynamo_disable", False):
        module.forward = torch.compiler.disable(module.forward)  # type: ignore[no-untyped-call]
