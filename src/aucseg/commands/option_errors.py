"""What is wrong with the options of `aucseg fit` and `validate`, in one sentence instead of a page of types."""

from __future__ import annotations

import re
from collections.abc import Iterable

from aucseg.hints import closest


def option_error(message: str, known: Iterable[str]) -> str:
    r"""One sentence about a message of the parser.

    Args:
        message: What jsonargparse says.
        known: Names of the options, without dashes.

    Example:
        >>> option_error('Parser key "model.tau":\n  Expected a <class \'float\'>. Got value: big', [])
        "--model.tau must be float, got 'big'"
        >>> option_error("unrecognized arguments: --data.bach_size 3", ["data.batch_size", "data.card"])
        'there is no option --data.bach_size; did you mean data.batch_size?'
    """
    if message.startswith("unrecognized arguments:"):
        return _unknown(message.partition(":")[2].split(), known)
    setting = re.search(r"does not accept option '([^']+)'", message)
    if setting:
        return f"there is no setting {setting[1]!r}; {closest(setting[1], known)}"
    key = re.match(r'Parser key "([^"]+)":', message)
    if key is None:
        return " ".join(message.split())
    problem = re.search(r"Problem with given class_path '([^']+)':\s*(.+)", message)
    if problem:
        return f"--{key[1]}: {problem[1]!r} cannot be used: {problem[2].strip()}"
    value = re.search(r"(?:Got|Given) value: (.*)", message, re.DOTALL)
    wanted = _types(message)
    if value is None or not wanted:
        return f"--{key[1]}: {' '.join(message[key.end() :].split())}"
    if value[1].strip() == "None":
        return f"--{key[1]} is missing: give it ({wanted})"
    return f"--{key[1]} must be {wanted}, got {value[1].strip()!r}"


def _unknown(words: list[str], known: Iterable[str]) -> str:
    option = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
    if option is None:
        return f"{words[0]!r} is not an option: options begin with '--', and a configuration is given with --config"
    return f"there is no option {option}; {closest(option.lstrip('-'), known)}"


def _types(message: str) -> str:
    """What the parser expects, in words: 'int, 'a', 'b' or null'."""
    found: list[str] = []
    for text in re.findall(r"Expected an? (.+?)(?:\. Got value|$)", message, re.MULTILINE):
        literal = re.fullmatch(r"typing\.Literal\[(.*)\]", text)
        name = literal[1] if literal else re.sub(r"<class '([\w.]+)'>", r"\1", text)
        name = "null" if name == "NoneType" else name
        if " but " not in name and name not in found:  # a path, where the value might have been a file's name
            found.append(name)
    return " or ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def missing_package(message: str) -> str | None:
    r"""What to install, where the parser could not make an object because its package is missing; else None.

    Example:
        >>> missing_package(
        ...     "Problem with given class_path 'lightning.pytorch.loggers.WandbLogger':\n"
        ...     "  Requirement 'wandb>=0.12.10' not met. HINT: ..."
        ... )
        "lightning.pytorch.loggers.WandbLogger needs a package that is not installed: pip install 'wandb>=0.12.10'"
    """
    found = re.search(r"given class_path '([^']+)':\s+Requirement '([^']+)' not met", message)
    return None if found is None else f"{found[1]} needs a package that is not installed: pip install '{found[2]}'"
