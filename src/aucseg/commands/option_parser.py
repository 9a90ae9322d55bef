"""The parser of the commands: a wrong option is one line with the nearest name, not a page of usage."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from aucseg.hints import closest


class OptionParser(argparse.ArgumentParser):
    """Like argparse's, with one line about what is wrong; an unknown option is reported before a missing one.

    Example:
        >>> parser = OptionParser(prog="aucseg demo")
        >>> _ = parser.add_argument("--iterations", type=int)
        >>> parser.parse_args(["--iteration", "5"]).iterations
        5
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses what is known, after a look at the names of all options."""
        if args is not None and not {"-h", "--help"} & set(args):
            options = [name for action in self._actions for name in action.option_strings]
            unknown = unknown_option(args, options)
            if unknown is not None:
                long = [option for option in options if option.startswith("--")]
                self.error(f"there is no option {unknown}; {closest(unknown, long)}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit status 2."""
        self.exit(2, f"{self.prog}: error: {message} (all options: {self.prog} --help)\n")


def output_folder(text: str) -> Path:
    """The `type` of an option that names a folder to write to: what cannot be one is refused before work is lost.

    Raises:
        ArgumentTypeError: It, or a folder above it, is a file.
    """
    from aucseg.safe_files import check_folder

    try:
        check_folder(Path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def output_file(text: str) -> Path:
    """The `type` of an option that names a file to write, like `output_folder`.

    Raises:
        ArgumentTypeError: It is a folder, or a folder above it is a file.
    """
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: give the name of a file")
    output_folder(str(Path(text).parent))
    return Path(text)


def at_least(least: int) -> Callable[[str], int]:
    """The `type` of an option that takes a whole number from `least` on.

    Example:
        >>> at_least(1)("20")
        20
    """

    def number(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return number


def fraction(text: str) -> float:
    """The `type` of an option that takes a number between 0 and 1, both excluded.

    Raises:
        ArgumentTypeError: It is not one.

    Example:
        >>> fraction("0.25")
        0.25
    """
    try:
        if 0 < float(text) < 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, got {text!r}")


def split_list(text: str) -> list[str]:
    """The items of an option with commas between them.

    Example:
        >>> split_list("ce, aucseg,")
        ['ce', 'aucseg']
    """
    return [item.strip() for item in text.split(",") if item.strip()]


def listed(text: str, option: str) -> list[str]:
    """Like `split_list`, of an option that must list something.

    Raises:
        ValueError: It lists nothing.
    """
    items = split_list(text)
    if not items:
        raise ValueError(f"{option} lists nothing")
    return items


def unknown_option(arguments: Sequence[str], known: Iterable[str]) -> str | None:
    """The first option that is neither a known one nor the beginning of one; None if all are known.

    Example:
        >>> unknown_option(["-1.5", "--out=a", "--iter", "--", "--no"], ["--out", "--iterations"]) is None
        True
        >>> unknown_option(["--output=a"], ["--out", "--iterations"])
        '--output'
    """
    names = tuple(known)
    for argument in arguments:
        if argument == "--":
            return None
        name = argument.partition("=")[0]
        if not name.startswith("-") or name == "-" or " " in name or _is_number(name):
            continue
        is_short = not name.startswith("--")
        if not (name[:2] in names if is_short else any(option.startswith(name) for option in names)):
            return name
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
