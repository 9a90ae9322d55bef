"""Messages that help: the nearest known name, how to install a missing extra, notes on exceptions."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any


def closest(name: str, known: Iterable[str]) -> str:
    """Says which known names are nearest to a misspelt one.

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


def check_options(name: str, options: Iterable[str], *takers: Callable[..., Any], given: Iterable[str] = ()) -> None:
    """Refuses options that none of some functions or classes takes by name.

    Args:
        name: What has the options, or the place where they are set.
        options: Names of the options.
        *takers: What is called with them.
        given: Parameters that are set elsewhere, and so are not options.

    Raises:
        TypeError: There is no such option; the message holds the nearest ones.

    Example:
        >>> check_options("data.order", ["revers"], sorted, given=["iterable"])
        Traceback (most recent call last):
        ...
        TypeError: data.order has no option 'revers'; did you mean reverse?
    """
    known = [
        parameter.name
        for taker in takers
        for parameter in inspect.signature(taker).parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in ("self", *given)
    ]
    for option in options:
        check_option(name, option, known)


def takes_any_option(function: Callable[..., Any]) -> bool:
    """Whether a function or class has `**kwargs`.

    Example:
        >>> takes_any_option(lambda size: size), takes_any_option(lambda **options: options)
        (False, True)
    """
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def check_option(name: str, option: str, known: Iterable[str]) -> None:
    """Refuses one option that is not among the known ones; see `check_options`."""
    if option not in (known := list(known)):
        raise TypeError(f"{name} has no option {str(option)!r}; {closest(str(option), known)}")


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Refuses a setting that is none of the values which it may have.

    Raises:
        ValueError: It is not.

    Example:
        >>> check_choice("on_error", "ignore", ("raise", "skip"))
        Traceback (most recent call last):
        ...
        ValueError: on_error must be 'raise' or 'skip', got 'ignore'
    """
    allowed = list(allowed)
    if value not in allowed:
        *first, last = map(repr, allowed)
        raise ValueError(f"{name} must be {', '.join(first)} or {last}, got {value!r}")


def check_number(name: str, value: object) -> None:
    """Refuses a setting that is not a number, such as the text of one.

    Raises:
        TypeError: It is not.

    Example:
        >>> check_number("margin", "1.0")
        Traceback (most recent call last):
        ...
        TypeError: margin must be a number, got '1.0'
    """
    if not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "image"), counted(2340, "image")
        ('1 image', '2,340 images')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def shorten(names: Sequence[str], limit: int = 20, separator: str = ", ") -> str:
    """The first of some names, and how many there are more.

    Example:
        >>> shorten(["road", "car", "sign"], 2)
        'road, car and 1 more'
    """
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more


def import_extra(module: str, extra: str) -> Any:
    """Imports a module of an optional dependency.

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
    """Adds a sentence to an exception, as PEP 678 has it; before Python 3.11 tracebacks do not show it.

    Example:
        >>> error = ValueError("no image")
        >>> add_note(error, "the weights are safe")
        >>> error.__notes__
        ['the weights are safe']
    """
    error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined, unused-ignore]


def difference_of_classes(stored: Sequence[str], now: Sequence[str], where: str) -> tuple[str, bool] | None:
    """The first difference between two lists of class names, and whether the classes may just have been renamed.

    Args:
        stored: Names of the classes in a file.
        now: Names in the card.
        where: What to call the first, such as "in the file".

    Returns:
        None where they are alike. Renamed they may be where there are as many; the same names in another order are
        other classes.

    Example:
        >>> difference_of_classes(("road", "rider"), ("road", "cyclist"), "in the file")
        ("class 1 is 'rider' in the file and 'cyclist' in the card", True)
        >>> difference_of_classes(("road", "rider"), ("rider", "road"), "in the file")
        ("class 0 is 'road' in the file and 'rider' in the card", False)
    """
    if tuple(stored) == tuple(now):
        return None
    shorter = min(len(stored), len(now))
    changed = next((i for i in range(shorter) if stored[i] != now[i]), shorter)
    old, new = (repr(names[changed]) if changed < len(names) else "none" for names in (stored, now))
    may_be_renamed = len(stored) == len(now) and set(stored) != set(now)
    return f"class {changed} is {old} {where} and {new} in the card", may_be_renamed
