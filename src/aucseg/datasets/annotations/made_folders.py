"""Folders that `aucseg masks` made: below a source they are not part of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from aucseg.datasets.tree import Tree
from aucseg.run_files import CARD_FILE

_MADE_BY = "# Made by `aucseg masks`."
# The beginning of the card in such a folder.
CARD_COMMENT = f"{_MADE_BY} Look at contact_sheet.png, then run: aucseg stats FOLDER\n"


def made_folders(tree: Tree) -> list[str]:
    """Returns the folders below the root, not the root itself, that `aucseg masks` made."""
    return [folder for folder in tree.folders_below() if folder and _is_made(tree, folder)]


def source_files(tree: Tree, endings: Iterable[str]) -> list[str]:
    """Returns the files that `Tree.files` gives, without those in `made_folders`."""
    made = made_folders(tree)
    return [file for file in tree.files(endings) if not any(PurePosixPath(file).is_relative_to(m) for m in made)]


def _is_made(tree: Tree, folder: str) -> bool:
    if not tree.exists(f"{folder}/{CARD_FILE}"):
        return False
    try:
        with (tree.root / folder / CARD_FILE).open("rb") as file:
            return file.read(len(_MADE_BY)) == _MADE_BY.encode()
    except OSError:
        return False
