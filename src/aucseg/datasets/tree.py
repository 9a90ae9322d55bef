"""The files below a root folder: what of them is data, and how names that are spelled differently are found.

This module imports neither torch nor anything heavy.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

IMAGE_ENDINGS = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".pnm")
) | {".jp2", ".avif"}
MASK_ENDINGS = IMAGE_ENDINGS | {".npy", ".mat"}
# Made by Windows, macOS, and network storage beside the files of people.
_SYSTEM_NAMES = frozenset(
    {"thumbs.db", "desktop.ini", "@eadir", "#recycle", "#snapshot", "@recycle", "__macosx", "lost+found"}
    | {"$recycle.bin", "system volume information"}
)


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder of this name is hidden or the system's own, so that it is never data.

    Example:
        >>> is_hidden("._frame.png"), is_hidden("Thumbs.db"), is_hidden("@eaDir"), is_hidden("frame.png")
        (True, True, True, False)
    """
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def is_system_file(name: str) -> bool:
    """Returns whether the system made a file of this name: not a user's own file, hidden or not."""
    return name.startswith("._") or name == ".DS_Store" or name.lower() in _SYSTEM_NAMES


def normalized(name: str) -> str:
    """Returns a name without the differences that file systems make: composed characters, lower case.

    macOS stores "é" as "e" and an accent, Linux and Windows as one character.
    """
    return _composed(name).casefold()


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or into a place that may not be entered: named where it is read
        return False


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def ending_of(name: str) -> str:
    """Returns the ending of a file name in lower case, with its dot.

    Example:
        >>> ending_of("a/IMG_1.JPG"), ending_of("a.b/c")
        ('.jpg', '')
    """
    return os.path.splitext(name)[1].lower()


class Tree:
    """The files below a root folder; each folder is listed once, which matters on network drives.

    Args:
        root: The folder.

    Attributes:
        unreadable: Folders that could not be listed, each with the reason.
        again: Folders that were come to although their files were there already, each with where they were.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.unreadable: dict[str, str] = {}
        self.again: dict[str, str] = {}
        self._listings: dict[str, tuple[dict[str, bool], dict[str, list[str]]]] = {}
        self._stem_listings: dict[str, dict[str, list[str]]] = {}

    def listing(self, folder: str) -> dict[str, bool]:
        """Returns the names in a folder, each with whether it is a folder; empty where there is no such folder."""
        return self._listing(folder)[0]

    def _listing(self, folder: str) -> tuple[dict[str, bool], dict[str, list[str]]]:
        if folder not in self._listings:
            names: dict[str, bool] = {}
            try:
                with os.scandir(self.root / folder) as entries:
                    names = {entry.name: _is_folder(entry) for entry in entries}
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                self.unreadable[folder] = error.strerror or str(error)
            spellings: dict[str, list[str]] = {}
            for name in names:
                spellings.setdefault(normalized(name), []).append(name)
            self._listings[folder] = names, spellings
        return self._listings[folder]

    def exists(self, path: str) -> bool:
        """Returns whether there is such a file or folder (or a link, wherever it leads)."""
        folder, _, name = path.rpartition("/")
        return name in self.listing(folder)

    def find(self, path: str) -> str | None:
        """Returns the path as it is spelled on disk, or None.

        A name as it stands takes precedence; else the only one that differs in upper and lower case or in the
        composition of its characters is taken. Where the path ends in `.*`, any ending of a mask does.

        Raises:
            ValueError: Two files fit.
        """
        if self.exists(path):
            return path
        folders = [""]
        *parents, name = path.split("/")
        for part in parents:
            folders = [_below(folder, other) for folder in folders for other in self._spellings(folder, part)]
        for folder in folders:
            if name.endswith(".*"):
                found = self._with_any_ending(folder, name[:-2], path)
            else:
                found = self._only(self._spellings(folder, name), path, name)
            if found is not None:
                return _below(folder, found)
        return None

    def _spellings(self, folder: str, name: str) -> list[str]:
        """The names in a folder that are spelled like this one, itself first."""
        names, spellings = self._listing(folder)
        others = [other for other in spellings.get(normalized(name), []) if other != name]
        return [name, *others] if name in names else others

    def _with_any_ending(self, folder: str, stem: str, path: str) -> str | None:
        stems = self._stems(folder)
        exact = [name for name in stems.get(normalized(stem), []) if os.path.splitext(name)[0] == stem]
        return self._only(exact or stems.get(normalized(stem), []), path)

    def _stems(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._stem_listings:
            stems: dict[str, list[str]] = {}
            for name, is_folder in self.listing(folder).items():
                if not is_folder and not is_hidden(name) and ending_of(name) in MASK_ENDINGS:
                    stems.setdefault(normalized(os.path.splitext(name)[0]), []).append(name)
            self._stem_listings[folder] = stems
        return self._stem_listings[folder]

    def _only(self, names: list[str], path: str, exact: str | None = None) -> str | None:
        if len(names) > 1 and names[0] != exact:
            raise ValueError(
                f"{self.root}: {path} may be {' or '.join(sorted(names))}; rename or move away all but the right one"
            )
        return names[0] if names else None

    def match(self, pattern: str) -> list[tuple[str, tuple[str, ...]]]:
        """Returns the files that a pattern fits, sorted, each with what the wildcards stand for.

        `*` stands for characters within a name, `**` for any folders, `?` for one character. The ending fits in
        upper and lower case, `.*` and a final `*` are any ending of an image. Hidden files are left out.
        """
        pattern = _composed(pattern)
        regex = pattern_regex(pattern)
        any_ending = pattern.endswith("*")
        found = []
        for folder in self._each_once(self._folders(pattern.split("/")[:-1])):
            for path in self._files(folder):
                match = regex.fullmatch(_composed(path))
                if match is not None and (not any_ending or ending_of(path) in IMAGE_ENDINGS):
                    found.append((path, tuple(group or "" for group in match.groups())))
        return sorted(found)

    def _each_once(self, folders: Iterable[str]) -> Iterator[str]:
        """The folders without those that only links make others, whose images would count twice."""
        top = os.path.realpath(self.root)
        real = {folder: os.path.realpath(self.root / folder) for folder in folders}
        seen: dict[str, str] = {}
        # Folders at their own place come first.
        for folder in sorted(real, key=lambda folder: (real[folder] != os.path.join(top, folder).rstrip("/"), folder)):
            first = seen.setdefault(real[folder], folder)
            if first == folder:
                yield folder
            else:
                self.again[folder] = first

    def _folders(self, parts: list[str], folder: str = "") -> Iterator[str]:
        """The folders that the parts of a pattern before its last lead to."""
        if not parts:
            yield folder
            return
        part, *rest = parts
        if part == "**":
            for below in self.folders_below(folder):
                yield from self._folders(rest, below)
        elif "*" in part or "?" in part:
            regex = pattern_regex(part, is_file=False)
            for name, is_folder in self.listing(folder).items():
                if is_folder and regex.fullmatch(_composed(name)) and not is_hidden(name):
                    yield from self._folders(rest, _below(folder, name))
        else:
            # A folder that the pattern names may be hidden.
            for name, is_folder in self.listing(folder).items():
                if is_folder and _composed(name) == part:
                    yield from self._folders(rest, _below(folder, name))

    def _files(self, folder: str) -> list[str]:
        return [
            _below(folder, name)
            for name, is_folder in self.listing(folder).items()
            if not is_folder and not is_hidden(name)
        ]

    def folders_below(self, top: str = "") -> list[str]:
        """Returns a folder and those below it, without hidden ones; each is entered once, however links lead to it."""
        found: list[str] = []
        seen: dict[str, str] = {}
        # Folders at their own place first, then those that only links lead to.
        pending = [top]
        while pending:
            links: list[str] = []
            stack = sorted(pending, reverse=True)
            while stack:
                folder = stack.pop()
                real = os.path.realpath(self.root / folder)
                if real in seen:
                    self.again[folder] = seen[real]
                    continue
                seen[real] = folder
                found.append(folder)
                inner = sorted(n for n, is_folder in self.listing(folder).items() if is_folder and not is_hidden(n))
                for name in reversed(inner):
                    path = _below(folder, name)
                    (links if os.path.islink(self.root / path) else stack).append(path)
            pending = links
        return found

    def files(self, endings: Iterable[str] = MASK_ENDINGS, tops: Iterable[str] = ("",)) -> list[str]:
        """Returns all files with one of the endings, in any case, below some folders, without hidden ones, sorted."""
        wanted = frozenset(endings)
        files = {file for top in tops for folder in self.folders_below(top) for file in self._files(folder)}
        return sorted(file for file in files if ending_of(file) in wanted)


def pattern_regex(pattern: str, *, is_file: bool = True, ending: str | None = None) -> re.Pattern[str]:
    """Returns the regular expression of a pattern, a group for each wildcard.

    Args:
        pattern: As in `Tree.match`.
        is_file: Whether the ending fits in upper and lower case.
        ending: A regular expression to take instead of the pattern's ending; None for the pattern's own.
    """
    stem, dot, tail = pattern.rpartition(".")
    if not is_file or not dot or "/" in tail:
        stem, tail_regex = pattern, ""
    elif ending is not None:
        tail_regex = ending
    else:
        tail_regex = rf"\.(?i:{_wildcards(tail)})"
    return re.compile(_wildcards(stem) + tail_regex)


def _wildcards(pattern: str) -> str:
    known = {"**/": "(?:(.*)/)?", "*": "([^/]*)", "?": "([^/])"}
    return re.sub(r"\*\*/|\*|\?|[^*?]+", lambda m: known.get(m[0], re.escape(m[0])), pattern)
