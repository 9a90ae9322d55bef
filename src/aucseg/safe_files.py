"""Files that are written whole and read plainly: replaced in one step, plain YAML, cells that are not formulas."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml


def replace_file(path: Path, data: bytes | memoryview, keep: Path | None = None) -> None:
    """Writes a file so that at any moment, also at a power cut, the old or the new content is there as a whole.

    Args:
        path: The file; its folder is made.
        data: Its new content.
        keep: Where the old content is kept, in the same folder; None to drop it.

    Raises:
        OSError: It cannot be written, for example because the disk is full; the old content is as it was, in its place
            or in that of `keep`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The new name is a change of the folder, which has to reach the disk as well.
    if os.name == "posix":
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to that takes its place when nothing was raised, for what writes files by itself.

    What is there afterwards is the old or the new content as a whole; unlike `replace_file` it does not wait for the
    disk.

    Args:
        path: The file; its folder is made.

    Example:
        >>> path = Path(tempfile.mkdtemp(), "new", "a.txt")
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('whole', 1)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder, not a file of another name: what is written has the permissions of any new file, and the right suffix.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = Path(folder, path.name)
        yield temporary
        new = Path(folder, ".new")
        new.touch()
        temporary.chmod(new.stat().st_mode)  # some libraries make files that nobody else may read
        os.replace(temporary, path)


def cache_folder() -> Path:
    """The package's folder in the user's cache, which need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "aucseg"


def check_folder(folder: Path) -> None:
    """Checks that a folder is there or can be made: that it and the folders above it are not files.

    Raises:
        ValueError: One of them is a file.

    Example:
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     try:
        ...         check_folder(Path(file.name, "runs", "a"))
        ...     except ValueError as error:
        ...         print(str(error).replace(file.name, "FILE"))
        FILE is a file, not a folder: give another folder
    """
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{place} is a file, not a folder: give another folder")


def missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist yet, the innermost first.

    Example:
        >>> home = Path(tempfile.mkdtemp())
        >>> [path.name for path in missing_folders(home / "runs" / "a")]
        ['a', 'runs']
    """
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty_folders(folders: Iterable[Path]) -> None:
    """Removes those that exist and are empty, in the order given; what cannot be removed stays, without a word."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def no_empty_folders(folder: Path) -> Iterator[None]:
    """Removes a folder, and those made above it, where what is done here fails and leaves them empty.

    Example:
        >>> home = Path(tempfile.mkdtemp())
        >>> with suppress(ValueError), no_empty_folders(home / "runs" / "a"):
        ...     (home / "runs" / "a").mkdir(parents=True)
        ...     raise ValueError
        >>> list(home.iterdir())
        []
    """
    new = missing_folders(folder)
    try:
        yield
    except BaseException:
        remove_empty_folders(new)
        raise


def write_named(path: Path, data: bytes) -> None:
    """Writes a file whose name a user gave: as a whole, but through a link, a pipe or a device such as `/dev/stdout`.

    Example:
        >>> home = Path(tempfile.mkdtemp())
        >>> (home / "link").symlink_to(home / "file")
        >>> write_named(home / "link", b"counts")
        >>> (home / "link").is_symlink(), (home / "file").read_bytes()
        (True, b'counts')
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data)
    else:
        replace_file(path, data)


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    r"""JSON, which has no NaN (a class that a split does not hold) and no infinity: null stands for them.

    Example:
        >>> json_bytes({"miou": [0.5, math.nan]})
        b'{"miou": [0.5, null]}\n'
    """
    return (json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Writes `json_bytes`, replaced as a whole: a report on a running run never meets half a file."""
    replace_file(path, json_bytes(value, indent))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


MAX_BYTES = 10_000_000


class _PlainLoader(yaml.SafeLoader):
    """Safe tags only, and no merge keys (`<<`): nested ones double what they hold at every level."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not read", key.start_mark)
        super().flatten_mapping(node)


# YAML 1.1 takes 1e-4 for a word; the configurations of `aucseg fit` take it for a number.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, such as an option of a command line.

    Raises:
        ValueError: It is not YAML.

    Example:
        >>> parse_yaml("{rate: 1e-4, steps: [10, 20]}")
        {'rate': 0.0001, 'steps': [10, 20]}
    """
    try:
        return _loaded(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not YAML: {error}") from error


def _loaded(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_PlainLoader)  # nosec B506
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def read_text(path: Path) -> str:
    """The text of a file of at most 10 MB.

    Raises:
        ValueError: The file is larger, or no UTF-8 text.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path}: more than {MAX_BYTES // 10**6} MB, too large for a file of this kind")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a UTF-8 text file: {error}") from error


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: There is no such file, or it is not YAML, or holds something else than a mapping.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        content = _loaded(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping, not a {type(content).__name__}")
    return content


_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def text_cell(text: str) -> str:
    """Text of others (class and file names) that no spreadsheet takes for a formula: those get an apostrophe in front.

    Example:
        >>> text_cell("bus"), text_cell("=HYPERLINK(A1)")
        ('bus', "'=HYPERLINK(A1)")
    """
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def text_of_cell(cell: str) -> str:
    """What `text_cell` has made the cell of.

    Example:
        >>> text_of_cell("bus"), text_of_cell("'=HYPERLINK(A1)")
        ('bus', '=HYPERLINK(A1)')
    """
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA_STARTS) else cell
