"""Helpful failures: the nearest names, the extra that is missing, notes about where a run stands."""

import difflib
import inspect
from collections.abc import Callable, Iterable
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
    near = nearest_names(name, names)
    if near:
        return f"did you mean {', '.join(near)}?"
    return f"known: {', '.join(names[:40])}{', ...' if len(names) > 40 else ''}"


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """The known names that a misspelt one may mean, at most three, the nearest first.

    Example:
        >>> nearest_names("overwrit", ["out", "overwrite"]), nearest_names("x", ["out"])
        (['overwrite'], [])
    """
    spelling = {known_name.lower(): known_name for known_name in sorted(known)}
    return [spelling[match] for match in difflib.get_close_matches(name.lower(), spelling, n=3)]


def check_options(options: Iterable[str], function: Callable[..., Any], name: str, given: Iterable[str] = ()) -> None:
    """Refuse options that a function or class does not take.

    Args:
        options: Names of the options.
        function: What is called with them.
        name: What to call the place where the options are set.
        given: Parameters that are set elsewhere, and so are not options.

    Raises:
        TypeError: There is no such option; the message holds the nearest ones.

    Example:
        >>> check_options(["revers"], sorted, "data.order", given=["iterable"])
        Traceback (most recent call last):
        ...
        TypeError: data.order has no option 'revers'; did you mean reverse?
    """
    parameters = inspect.signature(function).parameters
    known = [key for key, p in parameters.items() if key not in given and p.kind is not p.VAR_KEYWORD]
    if len(known) + len(set(given) & set(parameters)) < len(parameters):  # it takes whatever else there is
        return
    for option in options:
        if option not in known:
            raise TypeError(f"{name} has no option {str(option)!r}; {closest(str(option), known)}")


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


def add_note(error: BaseException, note: str) -> None:
    """Add a sentence to an exception, as PEP 678 has it; before Python 3.11 tracebacks do not show it.

    Example:
        >>> error = ValueError("no image")
        >>> add_note(error, "the weights are safe")
        >>> error.__notes__
        ['the weights are safe']
    """
    error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined, unused-ignore]
