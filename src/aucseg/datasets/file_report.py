"""What becomes of every file of a data folder: used, in no pair, in another split, or in none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aucseg.datasets.card import DatasetCard
from aucseg.datasets.card_layout import Layout
from aucseg.datasets.naming import is_unlabelled, picture_of, place_of, split_of_path
from aucseg.datasets.pairing import NoImagesError, Pair, SplitFiles, find_pairs, template_regex
from aucseg.datasets.tree import Tree, pattern_regex
from aucseg.hints import counted, shorten
from aucseg.run_files import CONTACT_SHEET_FILE

_MAX_SHOWN = 20
# A whole split that waits for its turn is nobody's mistake.
_MAX_SHOWN_OF_SPLIT = 3
_ANY_ENDING = r"\.[^./]+"
# Splits that share no image; a card may well name others, such as "trainval".
_APART = ("train", "val", "test")


@dataclass
class FileReport:
    """The files below a root folder.

    Attributes:
        splits: The files of each split that was found.
        absent: For each split of which nothing was found: what was looked for.
        broken: For each split that cannot be read: a message.
        unpaired: Files that belong to a pair by their names and places, but are in none.
        unused: Image files that no split names, as masks in colour beside masks of ids.
        shared: For each image that is in two splits: a message.
        unreadable: For each folder that cannot be listed: a message.
        again: Folders whose files are used where others lead to them, each with that place.
    """

    splits: dict[str, SplitFiles] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    unpaired: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    again: dict[str, str] = field(default_factory=dict)

    def problems(self, without: str | None = None) -> list[str]:
        """Returns messages about what should not be: broken lists, files in no pair or in two splits, closed folders.

        Args:
            without: A split whose missing files are reported elsewhere.
        """
        missing = [
            message
            for split, files in self.splits.items()
            if split != without
            for message in _missing(split, files.missing)
        ]
        broken = [f"split {split}: {message}" for split, message in self.broken.items()]
        unpaired = [f"{path}: in no pair" for path in self.unpaired]
        return [*broken, *missing, *unpaired, *self.shared, *self.unreadable]

    def others(self, used: Sequence[str]) -> dict[str, list[str]]:
        """Returns for each split that is not used now its images, without those that are used.

        Args:
            used: The splits that are used; none for all.
        """
        taken = {pair.image for split in used if split in self.splits for pair in self.splits[split].pairs}
        others = {split: files.pairs for split, files in self.splits.items() if used and split not in used}
        found = {split: [pair.image for pair in pairs if pair.image not in taken] for split, pairs in others.items()}
        return {split: images for split, images in found.items() if images}

    def lines(self, used: Sequence[str] = ()) -> list[str]:
        """Returns the numbers of images and what is not used as lines of text, with a few names of each kind.

        Args:
            used: The splits that are used now; the others are called so.
        """
        counts = [
            f"{split} {counted(len(files.pairs), 'image')}" + ("" if not used or split in used else " (not used here)")
            for split, files in self.splits.items()
        ]
        lines = [f"files: {', '.join(counts)}"] if counts else []
        lines += [f"files: {split}: nothing found, looked for {tried}" for split, tried in self.absent.items()]
        for split, images in self.others(used).items():
            lines.append(f"files: of {split}, not used here: {shorten(images, _MAX_SHOWN_OF_SPLIT)}")
        if self.unused:
            lines.append(f"files: {len(self.unused):,} in no split: {shorten(self.unused, _MAX_SHOWN)}")
        lines += [
            f"files: {folder} is a link to {first or '.'}, whose files are used once"
            for folder, first in self.again.items()
        ]
        return lines


def report_files(
    card: DatasetCard,
    root: Path,
    *,
    is_proposed: bool = False,
    whole_root: bool = True,
) -> FileReport:
    """Looks at every file below the root.

    Args:
        card: The data set card.
        root: The folder of the data.
        is_proposed: Whether the card was proposed for this folder: then every image and mask belongs to a pair, but for
            test images and those in folders called so without masks.
        whole_root: Whether to look below the whole root, or only in the folders that the card names.
    """
    tree = Tree(root)
    report = FileReport()
    for split in card.splits:
        try:
            report.splits[split] = find_pairs(card, root, split, tree)
        except NoImagesError as error:  # noqa: PERF203 - not every download has all splits
            report.absent[split] = error.looked_for
        except ValueError as error:
            report.broken[split] = str(error)
    used = {path for files in report.splits.values() for pair in files.pairs for path in _paths(pair)}
    known = used | {pair.image for files in report.splits.values() for pair in files.missing}
    pictures = {(place_of(_folder(path)), picture_of(_stem(path))) for path in used}
    layouts = [layout for split in card.splits for layout in card.splits[split]]
    expected = list(_lenient_patterns(layouts))
    for path in _files(tree, layouts, whole_root):
        if path in known or path == CONTACT_SHEET_FILE:
            continue
        # Beside a pair of the same name: masks in colour or of instances, depth, a copy in another format.
        is_companion = (place_of(_folder(path)), picture_of(_stem(path))) in pictures
        if is_proposed:
            is_expected = split_of_path(_folder(path)) != "test" and not is_unlabelled(_folder(path))
        else:
            is_expected = any(regex.fullmatch(path) for regex in expected)
        (report.unpaired if is_expected and not is_companion else report.unused).append(path)
    report.shared = list(_shared(report.splits))
    report.unreadable = [f"{folder or '.'}: not a readable folder: {why}" for folder, why in tree.unreadable.items()]
    # A card may name the files of a link, and a link above one that is told already says nothing more.
    told = [*used, *tree.again]
    report.again = {
        folder: first for folder, first in tree.again.items() if not any(path.startswith(f"{folder}/") for path in told)
    }
    return report


def _paths(pair: Pair) -> Iterator[str]:
    yield pair.image
    if pair.mask is not None:
        yield pair.mask


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]


def _files(tree: Tree, layouts: Sequence[Layout], whole_root: bool) -> list[str]:
    if whole_root:
        return tree.files()
    tops = {template.partition("/")[0] for layout in layouts for template in (layout.images, layout.masks) if template}
    if any(set("*?{") & set(top) for top in tops):
        return tree.files()
    return tree.files(tops=sorted(tops))


def _lenient_patterns(layouts: Sequence[Layout]) -> Iterator[re.Pattern[str]]:
    """Regular expressions of the files that layouts mean, whatever their endings; lists mean what they name alone."""
    for layout in layouts:
        if layout.list is None:
            yield pattern_regex(layout.images, ending=_ANY_ENDING)
            if layout.masks is not None:
                yield template_regex(layout.masks, ending=_ANY_ENDING)


def _missing(split: str, missing: Sequence[Pair]) -> Iterator[str]:
    for pair in missing:
        what = "in no pair" if pair.mask is None else f"{pair.mask} is missing"
        yield f"{pair.image} of {split}: {what}"


def _shared(splits: dict[str, SplitFiles]) -> Iterator[str]:
    split_of: dict[str, str] = {}
    for split in (split for split in _APART if split in splits):
        for pair in splits[split].pairs:
            if pair.image in split_of:
                yield f"{pair.image} is in split {split_of[pair.image]} and in {split}"
            split_of.setdefault(pair.image, split)
