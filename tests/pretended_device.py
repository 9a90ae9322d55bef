"""Apple's MPS, pretended on a CPU: tensors that say "mps" and can do there what MPS can, and nothing else.

Within `PretendedMPS` tensors that are made on, or moved to, the device "mps" are `MPSTensor`s: they hold a tensor of
the CPU. Every operation on one passes `PretendedMPS.__torch_dispatch__`, backward passes included, and is refused where
MPS would refuse it:

- a result of a dtype that MPS has not: float64, complex128, uint16 to uint64;
- an operator that torch has written for the CPU but not for MPS (as `native_functions.yaml` of the installed release
  lists them);
- operators that MPS has for some dtypes alone: `histc` of floating values; `index_add`, and minima and maxima by
  index, not in int64 (in older releases of torch that the package supports);
- tensors of the two devices in one operation (a scalar tensor of the CPU is allowed, an index is not).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchgen  # type: ignore[import-untyped]
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map

MPS = torch.device("mps", 0)  # with its number, or torch would ask a driver for the current one
MISSING_DTYPES = {
    torch.float64,
    torch.complex128,
    torch.uint16,
    torch.uint32,
    torch.uint64,
}
# Operators with dtypes that they lack on MPS, in some of the supported releases.
MISSING_COMBINATIONS: dict[str, set[torch.dtype]] = {
    "histc": {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64},
    "index_add": {torch.int64},
    "scatter_reduce": {torch.int64},
}


# Operators whose result, or its size, the host has to wait for.
WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_consecutive"}


class MPSTensor(torch.Tensor):
    """A tensor of the pretended device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> MPSTensor:
        tensor: MPSTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=held.device,  # for the autograd engine, which knows no "mps" on other machines
        )
        tensor.held = held
        return tensor

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], MPSTensor):
            args = (MPS, args[0].dtype)
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        tensor: Tensor = self if device is None or device.type == "mps" else self.cpu()
        return tensor if dtype is None else torch.Tensor.to(tensor, dtype)

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        assert not (self.requires_grad and torch.is_grad_enabled()), "a differentiable copy to the CPU"
        return self.held.clone()

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> npt.NDArray[np.generic]:
        if not force:
            raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first")
        return self.held.numpy()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"mps({self.held!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.to and isinstance(args[1], MPSTensor):  # tensor.to(other)
            return args[0].to(MPS, args[1].dtype)
        if func is torch.nn.functional.one_hot:  # its C++ asks the tensor for its device
            return MPSTensor(func(args[0].held, *args[1:], **kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} outside of PretendedMPS")


class PretendedMPS(TorchDispatchMode):
    """The context in which the device "mps" exists."""

    def __init__(self) -> None:
        super().__init__()
        self._before: list[bool] = []

    def __enter__(self) -> PretendedMPS:
        # Module.to() must replace parameters: their data cannot become those of another class.
        self._before.append(torch.__future__.get_overwrite_module_params_on_conversion())
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.__future__.set_overwrite_module_params_on_conversion(self._before.pop())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func.namespace == "aucseg":
            # An operator of our own is looked into.
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        on_mps = any(isinstance(value, MPSTensor) for value in tree_iter((args, kwargs)))
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "mps":
            on_mps, kwargs["device"] = True, torch.device("cpu")
        if not on_mps:
            return func(*args, **kwargs)
        self._refuse(func, args, kwargs)
        held_args, held_kwargs = tree_map(_unwrap, (args, kwargs))
        result = func(*held_args, **held_kwargs)
        moves = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        for value in tree_iter(result):
            if isinstance(value, Tensor) and value.dtype in MISSING_DTYPES:
                raise TypeError(f"Cannot convert a MPS Tensor to {value.dtype} as the MPS framework has none ({func})")
        if not any(isinstance(value, MPSTensor) for value in tree_iter((args, kwargs))) or moves:
            wrapped = tree_map(_wrap, result)
            return args[0] if func.overloadpacket is torch.ops.aten.copy_ else wrapped
        return return_and_correct_aliasing(func, args, kwargs, tree_map(_wrap, result))

    def _refuse(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        name = func.overloadpacket.__name__
        if not has_mps_kernel(func):
            raise NotImplementedError(f"The operator {func} is not implemented for the MPS device")
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        for tensor in tensors:
            if tensor.dtype in MISSING_COMBINATIONS.get(name.removesuffix("_"), ()) and tensor is tensors[0]:
                raise NotImplementedError(f"{func} of {tensor.dtype} is not implemented for the MPS device")
        if name in ("_to_copy", "copy_"):
            return
        strangers = [tensor for tensor in tensors if not isinstance(tensor, MPSTensor) and tensor.ndim]
        if strangers and any(isinstance(tensor, MPSTensor) for tensor in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found mps:0 and cpu ({func})")


class NoWaiting(PretendedMPS):
    """A device that refuses everything for which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self._patches: list[pytest.MonkeyPatch] = []  # operators of our own are looked into within the context again

    def __enter__(self) -> NoWaiting:
        super().__enter__()
        self._patches.append(pytest.MonkeyPatch())
        for name in ("cpu", "tolist", "numpy", "item"):
            self._patches[-1].setattr(MPSTensor, name, _refuse_reading, raising=False)
        return self

    def __exit__(self, *error: Any) -> None:
        self._patches.pop().undo()
        super().__exit__(*error)

    def _refuse(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        super()._refuse(func, args, kwargs)
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(t is not None and t.dtype == torch.bool for t in args[1])
        unsized = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITING or by_mask or unsized:
            raise AssertionError(f"the host waits for {func}")


def _refuse_reading(*_: Any, **__: Any) -> None:
    raise AssertionError("the host waits for a copy")


def _unwrap(value: Any) -> Any:
    return value.held if isinstance(value, MPSTensor) else value


def _wrap(value: Any) -> Any:
    return MPSTensor(value) if isinstance(value, Tensor) and not isinstance(value, MPSTensor) else value


def has_mps_kernel(func: Any) -> bool:
    """Whether an operator is written for MPS, or for all devices at once."""
    return func.namespace != "aten" or str(func).removeprefix("aten.") not in _without_mps()


@lru_cache(maxsize=1)
def _without_mps() -> frozenset[str]:
    """Operators, as `name.overload`, that have a kernel for the CPU and none that serves MPS."""
    assert torchgen.__file__ is not None
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries = {_name(entry["func"]): entry for entry in yaml.load(path.read_text(encoding="utf-8"), Loader=loader)}

    def keys(name: str) -> Iterator[str]:
        entry = entries[name]
        if "structured_delegate" in entry:
            yield from keys(_full(entry["structured_delegate"]))
        for key in entry.get("dispatch", {"CompositeImplicitAutograd": ""}):
            yield from (part.strip() for part in key.split(","))

    composite = ("CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    serving = {"MPS", *composite}
    return frozenset(name for name in entries if not serving & set(keys(name)))


def _name(schema: str) -> str:
    return _full(schema.split("(")[0])


def _full(name: str) -> str:
    return name if "." in name else f"{name}.default"
