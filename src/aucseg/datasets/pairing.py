"""Finding the images of a split and the mask of each."""

from __future__ import annotations

import codecs
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from aucseg.datasets.card import DatasetCard
from aucseg.datasets.card_layout import TEMPLATE_FIELD, Layout
from aucseg.datasets.tree import IMAGE_ENDINGS, MASK_ENDINGS, Tree, ending_of
from aucseg.datasets.windows import Tile


@dataclass(frozen=True)
class Pair:
    """An image and its mask (or None), as paths below the root folder with forward slashes.

    Attributes:
        tile: The part of the image that is meant; None for all of it.
        shares_stem: Whether another image of the split has the same path but for its ending (`a.jpg` and `a.png`).
    """

    image: str
    mask: str | None
    tile: Tile | None = None
    shares_stem: bool = False

    @property
    def name(self) -> str:
        """The image's path below the root without its ending; with it where that alone tells two images apart."""
        return self.image if self.shares_stem else _without_ending(self.image)


def _without_ending(image: str) -> str:
    return str(PurePosixPath(image).with_suffix(""))


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split.

    Attributes:
        pairs: The pairs, in the order of the image paths, or of the list files.
        missing: Pairs whose image or mask does not exist.
        train_ids: Whether the masks hold train ids already.
        layouts: The layouts that the pairs come from.
    """

    pairs: list[Pair]
    missing: list[Pair] = field(default_factory=list)
    train_ids: bool = False
    layouts: tuple[Layout, ...] = ()


class NoImagesError(ValueError):
    """No image of a split was found.

    Args:
        message: What a user is told.
        looked_for: The patterns and lists that were tried.
    """

    def __init__(self, message: str, looked_for: str) -> None:
        super().__init__(message)
        self.looked_for = looked_for


def find_pairs(card: DatasetCard, root: Path, split: str, tree: Tree | None = None) -> SplitFiles:
    """Finds the files of a split: those of all its layouts together.

    The first layout under which an image has its mask decides about that image. Layouts with masks of train ids, or
    without masks, do not mix with others: the first layout that finds a pair decides.

    Args:
        card: The data set card.
        root: The folder that its patterns are below.
        split: A split that the card names.
        tree: The files of the root, where they are listed already.

    Raises:
        NoImagesError: No image found.
        ValueError: Unknown split, no such folder, a list that cannot be used, one mask for two images, two masks for an
            image.
    """
    if split not in card.splits:
        raise ValueError(
            f"data set {card.name!r} has no split {split!r}; it has {', '.join(card.splits)}: name one of these, or "
            "give the folders other names"
        )
    layouts = card.splits[split]
    if not root.is_dir():
        raise ValueError(
            f"{root}: there is no such folder; give the folder that holds {layouts[0].images} (--root DIR, or "
            "data.root in a configuration)"
        )
    tree = tree or Tree(root)
    found = [(layout, *_pairs_of_layout(card, tree, layout)) for layout in layouts]
    filled = [entry for entry in found if entry[1]] or [entry for entry in found if entry[2]]
    if not filled:
        tried = " and for ".join(_describe_search(root, layout) for layout in layouts)
        raise NoImagesError(
            f"{root}: no image of split {split!r} of {card.name!r}; looked for {tried}. Is this the right root folder? "
            f"{card.source}".rstrip(),
            tried,
        )
    kind = _kind(filled[0][0])
    same_kind = [entry for entry in found if _kind(entry[0]) == kind]
    pairs: dict[str, Pair] = {}
    for _, good, _ in same_kind:
        for pair in good:
            pairs.setdefault(pair.image, pair)
    masks = {pair.mask for pair in pairs.values()}
    # What is the mask of one image is not another image, where both lie in one folder.
    missing = {
        pair.image: pair
        for _, _, lacking in reversed(same_kind)
        for pair in lacking
        if pair.image not in pairs and pair.image not in masks
    }
    image_of: dict[str, str] = {}
    for pair in pairs.values():
        if pair.mask is not None and pair.mask in image_of:
            raise ValueError(
                f"{root}: {image_of[pair.mask]} and {pair.image} share the mask {pair.mask}; "
                "move one of the two images away, or make the patterns of the card tell them apart"
            )
        if pair.mask is not None:
            image_of[pair.mask] = pair.image
    chosen, lost = list(pairs.values()), list(missing.values())
    if len(layouts) > 1 and all(layout.list is None for layout in layouts):
        chosen.sort(key=lambda pair: pair.image)
        lost.sort(key=lambda pair: pair.image)
    uses = Counter(_without_ending(pair.image) for pair in (*chosen, *lost))
    shared = {name for name, number in uses.items() if number > 1}
    chosen, lost = (
        [replace(pair, shares_stem=True) if shared and _without_ending(pair.image) in shared else pair for pair in part]
        for part in (chosen, lost)
    )
    return SplitFiles(chosen, lost, kind[1], tuple(layout for layout, *_ in same_kind))


def _describe_search(root: Path, layout: Layout) -> str:
    """What was looked for under a layout, and what in it may not mean what it seems to."""
    if layout.list is not None:
        is_there = (root / layout.list).is_file()
        return f"{layout.list} with {layout.images}" if is_there else f"the list {layout.list}, which is not there"
    if "{" in layout.images:
        return f"{layout.images} (braces stand for themselves, and .* is any ending)"
    if not set("*?") & set(layout.images):
        return f"{layout.images} (without a * it is one file; {layout.images}/*.* are the images in a folder)"
    return layout.images


def _kind(layout: Layout) -> tuple[bool, bool]:
    return layout.masks is None, layout.train_ids


def _pairs_of_layout(card: DatasetCard, tree: Tree, layout: Layout) -> tuple[list[Pair], list[Pair]]:
    good: list[Pair] = []
    missing: list[Pair] = []
    wanted = _pairs_of_list(card, tree, layout) if layout.list is not None else _pairs_of_pattern(tree, layout)
    for image, template in wanted:
        found = tree.find(image)
        mask = None if template is None else tree.find(template)
        if found is None or (template is not None and mask is None):
            missing.append(Pair(found or image, template))
        else:
            good.append(Pair(found, mask))
    return good, missing


def _pairs_of_pattern(tree: Tree, layout: Layout) -> Iterator[tuple[str, str | None]]:
    for image, groups in tree.match(layout.images):
        if layout.stems is not None and not layout.stems[0] <= PurePosixPath(image).stem <= layout.stems[1]:
            continue
        yield image, None if layout.masks is None else fill(layout.masks, _fields(image, groups))


def _pairs_of_list(card: DatasetCard, tree: Tree, layout: Layout) -> Iterator[tuple[str, str | None]]:
    assert layout.list is not None
    path = tree.root / layout.list
    if not path.is_file():
        return
    lines = {number: line.strip() for number, line in enumerate(read_lines(path), start=1) if line.strip()}
    if not lines:
        raise ValueError(f"{path}: the list of data set {card.name!r} holds no stem; is the file complete?")
    pairs = []
    for number, line in lines.items():
        stem, columns = _stem_of_line(line, tree, layout.images)
        if stem is None:
            raise ValueError(f"{path}:{number}: {line!r} leads out of the root folder; a stem is a name below it")
        mask = None if layout.masks is None else fill(layout.masks, {"stem": stem})
        if mask is not None:
            named = [found for column in columns if (found := _mask_of_column(column, tree)) is not None]
            if named and tree.find(mask) not in named:
                raise ValueError(
                    f"{path}:{number}: the line names the mask {named[0]}, but by 'masks' of the card it is {mask}; "
                    "correct the one or the other"
                )
        pairs.append((fill(layout.images, {"stem": stem}), mask))
    if all("," in line for line in lines.values()) and not any(tree.find(image) for image, _ in pairs):
        raise ValueError(
            f"{path}: no line of the list names an image, the first is {next(iter(lines.values()))!r}; columns are "
            "told apart by blanks: write them in the place of the commas"
        )
    yield from pairs


def _mask_of_column(column: str, tree: Tree) -> str | None:
    """The file that a further column of a list names, where it may be a mask."""
    if ending_of(column) not in MASK_ENDINGS:
        return None
    path = column.replace("\\", "/").removeprefix("./")
    return tree.find(path.removeprefix(f"{tree.root.absolute().as_posix()}/"))


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text file in UTF-8, in UTF-16 with a byte order mark, or else in Latin-1."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    # Unlike str.splitlines, which also splits at characters that names may hold.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _stem_of_line(line: str, tree: Tree, template: str) -> tuple[str | None, list[str]]:
    """Returns the stem that a line means, the first reading that names an image or else the plainest one, and the rest.

    A line may be a stem, a name with its ending, or a path, relative or absolute (of another machine, too); further
    columns (a label, a flag, a mask) may follow.
    """
    plainest = None
    first, *columns = line.split()
    for text, others in ((line, []), (first, columns)):
        for stem in _readings(text.replace("\\", "/"), template):
            if stem.startswith("/") or ".." in stem.split("/"):
                continue
            if tree.find(fill(template, {"stem": stem})) is not None:
                return stem, others
            plainest = stem
    return plainest, []


def _readings(text: str, template: str) -> Iterator[str]:
    text = text.removeprefix("./")
    yield text
    without_ending = os.path.splitext(text)[0] if ending_of(text) in IMAGE_ENDINGS else text
    # A path of another machine: the name alone, since the template says the folder.
    yield without_ending.rpartition("/")[2] if text.startswith("/") else without_ending
    before, after = (part.replace("{{", "{").replace("}}", "}") for part in template.split("{stem}", 1))
    folder = before.rpartition("/")[0]
    if folder and f"/{folder}/" in f"/{without_ending}":
        yield f"/{without_ending}".rpartition(f"/{folder}/")[2]
    ending = r"\.\w+" if after.endswith(".*") else ""
    whole = rf"{re.escape(before)}(.+){re.escape(after.removesuffix('.*'))}{ending}"
    match = re.fullmatch(rf"(?:.*/)?{whole}", text, re.IGNORECASE)
    if match is not None:
        yield match[1]


def _fields(image: str, groups: tuple[str, ...]) -> dict[str, str]:
    return {"stem": PurePosixPath(image).stem} | {str(i): group for i, group in enumerate(groups, start=1)}


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Returns a template with its fields filled in; `{{` and `}}` stand for braces.

    Example:
        >>> fill("masks/{stem}.png", {"stem": "a"}), fill("{{a}}/{1}.png", {"1": "b"})
        ('masks/a.png', '{a}/b.png')
    """

    def value(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        return fields[match[1]]

    # A "**" that matched nothing leaves an empty folder name behind.
    return TEMPLATE_FIELD.sub(value, template).replace("//", "/")


def template_regex(template: str, *, ending: str) -> re.Pattern[str]:
    """Returns a regular expression of the masks that a template means, whatever its fields and with another ending."""
    parts = re.split(r"(\{\{|\}\}|\{\w+\})", template.rpartition(".")[0] or template)
    # A field may be the path that "**" stood for.
    known = {"{{": re.escape("{"), "}}": re.escape("}")}
    return re.compile("".join(known.get(p, ".*" if i % 2 else re.escape(p)) for i, p in enumerate(parts)) + ending)
