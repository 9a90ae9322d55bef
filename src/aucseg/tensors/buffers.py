"""Buffers of modules: settings that stay what was given, and which buffers can be written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aucseg.tensors.dtypes import has_values, wide_dtype


class ExactBuffers(nn.Module):
    """A module with settings as buffers that are no part of checkpoints, and yet always what was given.

    They are not rounded where the module is turned into a narrower dtype, as `nn.Module.half` does, nor lost where it
    is made on the device `meta` and gets empty buffers on another (`to_empty`, `from_pretrained` of transformers).
    """

    def __init__(self) -> None:
        super().__init__()
        # The values of buffers that had none when they were last looked at, on `meta`; None where none were given.
        self._given: dict[str, Tensor | None] = {}

    def keep(self, name: str, values: Tensor | None, device: torch.device | None = None) -> None:
        """Registers a buffer.

        Args:
            name: Of the buffer.
            values: Its values; None for none.
            device: Where to have it; None for where the values are.
        """
        self.register_buffer(name, values if values is None else values.to(device), persistent=False)
        # Who fills the modules that are made here fills them whole, with buffers that are elsewhere, too.
        if values is not None and torch.empty(0).device.type == "meta":
            self._given[name] = values if has_values(values) else None

    def put_back(self) -> None:
        """Gives buffers that were made on `meta`, and are elsewhere by now, their values.

        Raises:
            ValueError: None were given.
        """
        for name, values in list(self._given.items()):
            device = self.get_buffer(name).device
            if device.type == "meta":
                continue
            if values is None:
                raise ValueError(
                    f"{name} was given on the device 'meta' and has no values: pass a list, or a tensor on the CPU"
                )
            self._buffers[name] = values.to(device)
            del self._given[name]

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> ExactBuffers:
        before = dict(self._buffers)
        super()._apply(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is None or new is None or old.device.type == "meta":
                continue
            if new.device.type == "meta":
                self._given[name] = old
                continue
            is_narrow = new.element_size() < min(4, old.element_size())
            wide = wide_dtype(new.device) if old.dtype == torch.float64 else old.dtype
            self._buffers[name] = old.to(wide if is_narrow else new.dtype).to(new.device)
        return self


def is_expanded(buffer: Tensor) -> bool:
    """Whether several elements are one place in memory, so that nothing is ever written there.

    Example:
        >>> is_expanded(torch.zeros(1).expand(4)), is_expanded(torch.zeros(4))
        (True, False)
    """
    return any(step == 0 and size > 1 for step, size in zip(buffer.stride(), buffer.shape, strict=True))
