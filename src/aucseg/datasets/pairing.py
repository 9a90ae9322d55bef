"""Finding the images of a split and the mask of each."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from aucseg.datasets.card import DatasetCard, Layout


@dataclass(frozen=True)
class Pair:
    """An image and its mask (or None), as paths below the root folder with forward slashes."""

    image: str
    mask: str | None

    @property
    def name(self) -> str:
        """The image's path below the root without its ending."""
        return str(PurePosixPath(self.image).with_suffix(""))


def find_pairs(card: DatasetCard, root: Path, split: str) -> tuple[list[Pair], list[Pair], Layout]:
    """List the pairs of a split in the order of the image paths (or of the list file).

    Of several layouts the first one with at least one image and one mask is taken.

    Returns:
        The pairs, the pairs whose image or mask does not exist, and the layout that was found.

    Raises:
        ValueError: Unknown split, no such folder, no image found, one mask for two images.
    """
    if split not in card.splits:
        raise ValueError(f"data set {card.name!r} has no split {split!r}; it has {', '.join(card.splits)}")
    if not root.is_dir():
        raise ValueError(f"{root}: there is no such folder; give the folder that holds {card.splits[split][0].images}")
    tried = []
    found: tuple[list[Pair], list[Pair], Layout] | None = None
    for layout in card.splits[split]:
        good, missing = _pairs_of_layout(card, root, layout)
        if good:
            return good, missing, layout
        if missing and found is None:
            found = good, missing, layout
        tried.append(layout.images if layout.list is None else f"{layout.list} with {layout.images}")
    if found is None:
        raise ValueError(
            f"{root}: no image of split {split!r} of {card.name!r}; looked for {' and for '.join(tried)}. "
            f"Is this the right root folder? {card.source}".rstrip()
        )
    return found


def _pairs_of_layout(card: DatasetCard, root: Path, layout: Layout) -> tuple[list[Pair], list[Pair]]:
    if layout.list is None:
        pairs = [
            Pair(image, None if layout.masks is None else _fill(layout.masks, image, groups))
            for image, groups in _match_images(root, layout.images)
            if layout.stems is None or layout.stems[0] <= PurePosixPath(image).stem <= layout.stems[1]
        ]
    else:
        pairs = _pairs_of_list(card, root, layout)
    image_of: dict[str, str] = {}
    for pair in pairs:
        if pair.mask is not None and pair.mask in image_of:
            raise ValueError(
                f"{root}: {image_of[pair.mask]} and {pair.image} share the mask {pair.mask}; "
                "move one of the two images away, or make the patterns of the card tell them apart"
            )
        if pair.mask is not None:
            image_of[pair.mask] = pair.image
    # One listing a folder instead of one question a file: data sets lie on network drives.
    entries: dict[str, frozenset[str]] = {}
    good: list[Pair] = []
    missing: list[Pair] = []
    for pair in pairs:
        files = [file for file in (pair.image, pair.mask) if file is not None]
        (good if all(_exists(root, file, entries) for file in files) else missing).append(pair)
    return good, missing


def _pairs_of_list(card: DatasetCard, root: Path, layout: Layout) -> list[Pair]:
    assert layout.list is not None
    path = root / layout.list
    if not path.is_file():
        return []
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        # Some lists carry a second column (a label, a flag); the stem is the first.
        stem = line.split()[0] if line.strip() else ""
        if not stem:
            continue
        if stem.startswith("/") or ".." in stem.split("/"):
            raise ValueError(f"{path}:{number}: {stem!r} leads out of the root folder; a stem is a name below it")
        masks = None if layout.masks is None else layout.masks.replace("{stem}", stem)
        pairs.append(Pair(layout.images.replace("{stem}", stem), masks))
    if not pairs:
        raise ValueError(f"{path}: the list of data set {card.name!r} holds no stem; is the file complete?")
    return pairs


def _match_images(root: Path, pattern: str) -> list[tuple[str, tuple[str, ...]]]:
    regex = re.compile(
        re.sub(
            r"\*\*/|\*|\?|[^*?]+",
            lambda m: {"**/": "(?:(.*)/)?", "*": "([^/]*)", "?": "([^/])"}.get(m[0], re.escape(m[0])),
            pattern,
        )
    )
    matches = []
    for found in _find_files(root, pattern):
        image = found.replace(os.sep, "/")
        match = regex.fullmatch(image)
        if match is not None:
            matches.append((image, tuple(group or "" for group in match.groups())))
    return sorted(matches)


def _find_files(root: Path, pattern: str) -> list[str]:
    """Files below the root, as ``glob`` finds them, but ``**`` enters each folder once, however links lead to it."""
    head, recursive, _ = pattern.partition("**")
    if not recursive:
        return glob.glob(pattern, root_dir=root)
    folders = [root / folder for folder in glob.glob(head, root_dir=root)] if head else [root]
    found: list[str] = []
    seen: set[str] = set()
    # Folders at their own place first, then those that only links lead to.
    while folders:
        links: list[Path] = []
        for top in sorted(folders, key=lambda path: (path.is_symlink(), path)):
            if os.path.realpath(top) in seen:
                continue
            for folder, names, files in os.walk(top):
                seen.add(os.path.realpath(folder))
                names[:] = [name for name in names if not name.startswith(".")]
                links += [Path(folder, name) for name in names if os.path.islink(os.path.join(folder, name))]
                place = os.path.relpath(folder, root)
                found += [os.path.normpath(os.path.join(place, name)) for name in files if not name.startswith(".")]
        folders = links
    return found


def _fill(template: str, image: str, groups: tuple[str, ...]) -> str:
    fields: Mapping[str, str] = {"stem": PurePosixPath(image).stem} | {
        str(i): group for i, group in enumerate(groups, start=1)
    }

    def value(match: re.Match[str]) -> str:
        if match[1] not in fields:
            raise ValueError(f"masks {template!r}: {match[0]} is unknown; known are {{{'}, {'.join(fields)}}}")
        return fields[match[1]]

    # A "**" that matched nothing leaves an empty folder name behind.
    return re.sub(r"\{(\w+)\}", value, template).replace("//", "/")


def _exists(root: Path, file: str, entries: dict[str, frozenset[str]]) -> bool:
    folder, _, name = file.rpartition("/")
    if folder not in entries:
        try:
            entries[folder] = frozenset(os.listdir(root / folder))
        except OSError:
            entries[folder] = frozenset()
    return name in entries[folder]
