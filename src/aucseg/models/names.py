"""Helpful failures: the nearest names, and the extra that is missing."""

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Any


def closest(name: str, known: Iterable[str]) -> str:
    """Say which known names are nearest to a misspelt one.

    Example:
        >>> closest("deeplab3+", ["fpn", "deeplabv3plus", "deeplabv3"])
        'did you mean deeplabv3, deeplabv3plus?'
        >>> closest("x", ["fpn", "unet"])
        'known: fpn, unet'
    """
    names = sorted(known)
    matches = difflib.get_close_matches(name.lower(), names, n=3)
    if matches:
        return f"did you mean {', '.join(matches)}?"
    return f"known: {', '.join(names[:40])}{', ...' if len(names) > 40 else ''}"


def import_extra(module: str, extra: str) -> Any:
    """Import a module of an optional dependency.

    Args:
        module: Name of the module.
        extra: The extra of this package that installs it.

    Raises:
        ImportError: The module is missing; the message holds the command that installs it.

    Example:
        >>> import_extra("no_such_module", "train")
        Traceback (most recent call last):
        ...
        ImportError: no_such_module is missing; install it with: pip install "aucseg[train]"
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise ImportError(f'{error.name} is missing; install it with: pip install "aucseg[{extra}]"') from error
