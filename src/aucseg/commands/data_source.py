"""The data set that a command is given: a card, or a folder with one or of which one is proposed."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from aucseg.commands.fit_help import check_source
from aucseg.datasets.annotations.recognize import PANOPTIC, describe_annotations
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.card_bands import describe_range
from aucseg.datasets.naming import split_of_path
from aucseg.datasets.propose import propose_card
from aucseg.datasets.scan_cache import ScanCache
from aucseg.datasets.tree import Tree
from aucseg.hints import shorten
from aucseg.run_files import CARD_FILE
from aucseg.safe_files import cache_folder


class Source(NamedTuple):
    """A data set as a command was given it.

    Attributes:
        card: Its card.
        root: Its folder; None for that of an embedded data set.
        is_folder: Whether it was given as a folder, not as a card.
        is_proposed: Whether the card was proposed for the folder, which then holds none.
    """

    card: DatasetCard
    root: Path | None
    is_folder: bool
    is_proposed: bool


def card_and_root(
    source: str, root: str | Path | None, *, num_workers: int, cache: ScanCache | None, tile: int | None = None
) -> Source:
    """The card and its root: a folder is the root, and its card the one that lies in it, or else a proposed one.

    Raises:
        ValueError: No such card, a folder of which no card can be made, or a root beside a folder.
    """
    check_source(source)
    if not is_folder(source):
        _refuse_annotations(Path(source))
        if Path(source).is_file() and Path(source).suffix not in (".yaml", ".yml"):
            raise ValueError(f"{source} is a file, not a card (.yaml): give the folder of images and masks")
        return Source(DatasetCard.load(source), None if root is None else Path(root), False, False)
    folder = Path(source)
    if root is not None and Path(root).resolve() != folder.resolve():
        raise ValueError(f"--root {root} is for a card: {source} is the folder of the data itself")
    if (own := _own_card(folder)) is not None:
        return Source(own, folder, True, False)
    # Panoptic files look like masks of colours.
    annotations = describe_annotations(folder)
    if annotations is not None and PANOPTIC in annotations:
        raise ValueError(annotations)
    tree = Tree(folder)
    try:
        card = propose_card(folder, num_workers=num_workers, progress=True, cache=cache, tile=tile, tree=tree)
    except ValueError as error:
        raise ValueError(annotations or error) from error
    if annotations is not None:
        print(f"note: {annotations}")
    if len(card.splits) == 1 and (lists := _lists_of_splits(tree)):
        print(
            f"note: {shorten(lists, 4)} may list the images of splits, which the proposed card does not take: name "
            "them in a card as 'list' ('aucseg stats --write-card' writes one to begin with)"
        )
    layout = next(iter(card.splits.values()))[0]
    print(
        f"proposed card: {card.num_classes} classes, {card.mask_encoding} masks, splits {', '.join(card.splits)}, "
        f"images {layout.images}, masks {layout.masks}, ignored ids {list(card.ignore_ids)}"
        + ("" if card.bands is None else f", bands {list(card.bands)}")
        + ("" if card.value_range is None else f", value_range {describe_range(card.value_range)}")
    )
    return Source(card, folder, True, True)


def _lists_of_splits(tree: Tree) -> list[str]:
    """Text files that are called like splits."""
    texts = tree.files((".txt", ".csv", ".lst"))
    return [path for path in texts if split_of_path(PurePosixPath(path).stem) is not None]


def is_folder(source: str) -> bool:
    """Whether a data set is given as a folder, not as a card."""
    return Path(source).is_dir() and source not in DatasetCard.available()


def _own_card(folder: Path) -> DatasetCard | None:
    """The card that lies in a folder, such as `aucseg masks` writes.

    Raises:
        ValueError: There is a card with a mistake; another file of that name is passed over, with a note.
    """
    names = (CARD_FILE, str(Path(CARD_FILE).with_suffix(".yml")))
    path = next((path for path in sorted(folder.iterdir()) if path.name.lower() in names and path.is_file()), None)
    if path is None:
        return None
    try:
        card = DatasetCard.load(path)
    except ValueError as error:
        if re.search(r"^(classes|splits|mask_encoding)\s*:", path.read_text(errors="replace"), re.MULTILINE):
            raise
        print(f"note: {path} is not a data set card, so one is proposed: {error}")
        return None
    print(f"card: {path}, {card.num_classes} classes, splits {', '.join(card.splits)}")
    return card


def _refuse_annotations(path: Path) -> None:
    """Raises `ValueError` where a card's place is taken by a file of annotations."""
    if path.suffix.lower() in (".json", ".xml") and path.is_file():
        message = describe_annotations(path)
        if message is not None:
            raise ValueError(message)


def default_cache() -> Path:
    """The file of earlier results, in the user's cache folder."""
    return cache_folder() / "stats.sqlite"
