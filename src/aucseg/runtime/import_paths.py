"""What a configuration names by its import path, a user's own files in the current folder included."""

import inspect
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from aucseg.hints import check_options, closest, takes_any_option


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
    if not takes_any_option(factory):
        check_options(title, options, factory, given=list(inspect.signature(factory).parameters)[: len(positional)])
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
