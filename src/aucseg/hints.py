"""Helpful failures, the nearest names and the missing extra among them, and what is named by its import path."""

import difflib
import inspect
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

DEFAULT_IGNORE_INDEX = 255
_CLASS_IDS = "give class ids, a list of integers (DatasetCard.ids_of finds them)"


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


def check_options(options: Iterable[str], function: Callable[..., Any], name: str, given: Iterable[str] = ()) -> None:
    """Refuses options that a function or class does not take.

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


def class_ids(classes: Any, name: str) -> list[int]:
    """The ids in a list of classes, as plain integers.

    Args:
        classes: Integers of any kind, in whatever can be iterated.
        name: What to call the setting in messages.

    Raises:
        TypeError: Something else, such as names, or a mask that says of each class whether it is meant.

    Example:
        >>> class_ids([False, True], "tail_classes")
        Traceback (most recent call last):
        ...
        TypeError: tail_classes holds False: give class ids, a list of integers (DatasetCard.ids_of finds them)
    """
    if not isinstance(classes, Iterable):
        raise TypeError(f"{name} is {classes!r}: {_CLASS_IDS}")
    return [_class_id(entry, name) for entry in classes]


def _class_id(entry: Any, name: str) -> int:
    # Python and torch take a truth for 0 or 1.
    is_truth = isinstance(entry, bool) or str(getattr(entry, "dtype", "")).endswith("bool")
    number: Any = None if is_truth else entry
    try:
        return operator.index(number)
    except TypeError as error:
        raise TypeError(f"{name} holds {entry!r}: {_CLASS_IDS}") from error


def refuse_default_ignore_label(ignore_index: int, num_classes: int) -> None:
    """Refuses the default ignore label where it is one of the classes, as their pixels would not count.

    Raises:
        ValueError: It is 255, and there are more classes than 255.

    Example:
        >>> refuse_default_ignore_label(255, 300)
        Traceback (most recent call last):
        ...
        ValueError: ignore_index=255 (the default) is one of the 300 classes: choose another ignore label, such as -100
    """
    if ignore_index == DEFAULT_IGNORE_INDEX < num_classes:
        raise ValueError(
            f"ignore_index={DEFAULT_IGNORE_INDEX} (the default) is one of the {num_classes} classes: choose another "
            "ignore label, such as -100"
        )


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


def search_current_folder() -> None:
    """Lets Python find modules in the current folder, where a user's own files lie; the console script does not."""
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)


def import_object(path: str, within: str | None = None) -> Any:
    """Imports a class or function by its import path; its module may lie in the current folder.

    Args:
        path: `package.module:Name` or `package.module.Name`.
        within: Module of a bare `Name`.

    Raises:
        ImportError: There is no such module, or nothing of that name in it that can be called; the message has the
            nearest names.

    Example:
        >>> import_object("collections:Counter") is import_object("Counter", "collections")
        True
        >>> import_object("collections.Countr")
        Traceback (most recent call last):
        ...
        ImportError: 'collections.Countr': collections has no class or function 'Countr'; did you mean Counter?
    """
    module_name, _, attribute = path.rpartition(":" if ":" in path else ".")
    module_name = module_name or within or ""
    if not module_name or not attribute:
        raise ImportError(f"{path!r} is not an import path, such as package.module:Name")
    search_current_folder()
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{path!r}: there is no module {error.name!r} to import") from error
    found: Any = getattr(module, attribute, None)
    if not callable(found):
        names = [name for name, value in vars(module).items() if callable(value)]
        raise ImportError(
            f"{path!r}: {module_name} has no class or function {attribute!r}; {closest(attribute, names)}"
        )
    return found


def build_by_path(spec: Any, name: str, within: str | None = None, *positional: Any, **defaults: Any) -> Any:
    """Builds an object from `{class_path, init_args}`, as Lightning's configurations have it, or from a path alone.

    Args:
        spec: The mapping, or an import path; init_args may hold more of such mappings, which are built first.
        name: What to call the place where it is set.
        within: Module of a bare name.
        *positional: First arguments of the class.
        **defaults: Further arguments, unless `init_args` has them.

    Raises:
        ImportError: As in `import_object`.
        TypeError: It is neither, or an argument is unknown or missing.

    Example:
        >>> build_by_path({"class_path": "Fraction", "init_args": {"denominator": 4}}, "data.share", "fractions", 3)
        Fraction(3, 4)
        >>> build_by_path({"class_path": "Fraction", "init_args": {"denomintor": 4}}, "data.share", "fractions")
        Traceback (most recent call last):
        ...
        TypeError: data.share: Fraction has no option 'denomintor'; did you mean denominator?
    """
    if isinstance(spec, str):
        spec = {"class_path": spec}
    if not is_class_path_entry(spec):
        raise TypeError(f"{name} must be an import path, or class_path with all options in init_args, got {spec!r}")
    factory = import_object(spec["class_path"], within)
    options = {key: _built(value, name, within) for key, value in init_args_of(spec, name).items()}
    title = f"{name}: {spec['class_path'].rpartition('.')[2]}"
    check_options(options, factory, title, given=list(inspect.signature(factory).parameters)[: len(positional)])
    try:
        return factory(*positional, **(defaults | options))
    except TypeError as error:
        raise TypeError(f"{title}: {error}") from error


def init_args_of(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The options in `{class_path, init_args}`.

    Raises:
        TypeError: They are not a mapping.

    Example:
        >>> init_args_of({"class_path": "SGD", "init_args": "{lr:0.1}"}, "model.optimizer")
        Traceback (most recent call last):
        TypeError: model.optimizer: init_args must be a mapping such as '{lr: 0.1}', spaces included, got '{lr:0.1}'
    """
    options = spec.get("init_args") or {}
    if not isinstance(options, Mapping):
        raise TypeError(f"{name}: init_args must be a mapping such as '{{lr: 0.1}}', spaces included, got {options!r}")
    return dict(options)


class Entries(list[Any]):
    """Entries of a configuration that are built where they are needed, and not by what reads the configuration."""


def is_class_path_entry(value: Any) -> bool:
    """Whether a value of a configuration is `{class_path, init_args}`."""
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("class_path"), str)
        and value.keys() <= {"class_path", "init_args"}
    )


def _built(value: Any, name: str, within: str | None) -> Any:
    if is_class_path_entry(value):
        return build_by_path(value, name, within)
    return [_built(item, name, within) for item in value] if isinstance(value, list) else value


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
