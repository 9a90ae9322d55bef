"""Modules of Triton kernels, which need Triton and take a moment to import."""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib import import_module
from types import ModuleType


@lru_cache(maxsize=8)
def import_kernels(module: str, user: str) -> ModuleType | None:
    """Imports a module of kernels; without Triton None and, once, a warning.

    Args:
        module: Dotted name of the module.
        user: What needs it, for the warning.
    """
    try:
        return import_module(module)
    except Exception as error:  # not installed, or whatever a broken installation raises
        warnings.warn(f"{user} fall back to slower operations of torch, without Triton: {error}", stacklevel=3)
        return None
