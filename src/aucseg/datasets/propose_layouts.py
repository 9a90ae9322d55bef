"""Which files of a folder are images, which are masks, which go together: proposed from their names."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from aucseg.datasets.card_layout import Layout
from aucseg.datasets.mask_files import mode_and_format
from aucseg.datasets.naming import IMAGE, MASK, affixes, kind_of_name, picture_of, place_of, split_of_path
from aucseg.datasets.tree import IMAGE_ENDINGS, Tree, normalized, pattern_regex

_MASK_MODES = ("1", "L", "P", "I;16", "I;16B", "I")
_ENDINGS = IMAGE_ENDINGS | {".npy"}


@dataclass(frozen=True)
class _File:
    path: str
    folder: str
    stem: str
    ending: str

    @classmethod
    def of(cls, path: str) -> _File:
        folder, _, name = path.rpartition("/")
        stem, ending = os.path.splitext(name)
        return cls(path, folder, stem, ending)

    @property
    def name(self) -> str:
        return self.stem + self.ending


@dataclass(frozen=True)
class _Match:
    image: _File
    mask: _File


def propose_layouts(tree: Tree) -> dict[str, tuple[Layout, ...]]:
    """Returns the layouts of the splits of a folder without a card.

    Four readings are tried, and the one that pairs most images is taken: the folder nearest the root whose name tells
    says whether its files are images or masks; the last such folder; the names of the files; what is in them (masks
    are grey or palette files). Where no folder tells the names of the files do, and else what is in them.

    Raises:
        ValueError: Nothing looks like images with masks.
    """
    files = [_File.of(path) for path in tree.files(_ENDINGS)]
    first_of = {(file.folder, file.ending.lower()): file.path for file in reversed(files)}

    @cache
    def content(folder: str, ending: str) -> str:
        try:
            mode, file_format = mode_and_format(tree.root / first_of[folder, ending])
        except ValueError:
            return IMAGE
        return MASK if mode in _MASK_MODES and file_format not in ("JPEG", "MPO") else IMAGE

    def by_content(file: _File) -> str:
        return content(file.folder, file.ending.lower())

    named = {file.folder for file in files if _says_mask(file.stem)}

    def by_folder(parts: Sequence[str], file: _File) -> str:
        kind = next((kind for part in parts if (kind := kind_of_name(part))), None)
        if kind is None and file.folder in named:
            return MASK if _says_mask(file.stem) else IMAGE
        return kind or by_content(file)

    readings: list[Callable[[_File], str]] = [
        lambda file: by_folder(file.folder.split("/"), file),
        lambda file: by_folder(file.folder.split("/")[::-1], file),
        lambda file: MASK if _says_mask(file.stem) else IMAGE,
        by_content,
    ]
    best: list[_Match] = []
    seen: list[tuple[list[_File], list[_File]]] = []
    for reading in readings:
        images: list[_File] = []
        masks: list[_File] = []
        for file in files:
            (masks if reading(file) == MASK else images).append(file)
        seen.append((images, masks))
        matches = _match(images, masks)
        if len(matches) > len(best):
            best = matches
    if not best:
        raise ValueError(_message(tree, *max(seen, key=lambda found: min(len(found[0]), len(found[1])))))
    return _layouts(best, files)


def _says_mask(stem: str) -> bool:
    prefix, _, suffix = affixes(stem)
    return kind_of_name(suffix or prefix) == MASK


def _message(tree: Tree, images: list[_File], masks: list[_File]) -> str:
    if images and masks:
        folders = (", ".join(sorted({file.folder or "." for file in files})[:5]) for files in (images, masks))
        return (
            f"{tree.root}: the images in {next(folders)} and the masks in {next(folders)} have no names in common "
            "that tell one mask for each image; write a card by hand, see the shipped ones"
        )
    missing = "images" if masks else "masks" if images else "images and masks"
    return (
        f"{tree.root}: found no {missing} (files that end in {', '.join(sorted(_ENDINGS))}; masks are grey or palette "
        "files, or lie in a folder whose name says so); write a card by hand, see the shipped ones"
    )


def _match(images: list[_File], masks: list[_File]) -> list[_Match]:
    """Pairs images with masks: of the same picture, in folders that go together, one mask an image."""
    images_in, masks_in = _by_folder(images), _by_folder(masks)
    matches: list[_Match] = []
    for folder, partners in _partners(images_in, masks_in).items():
        found = [_match_folders(images_in[folder], masks_in[partner]) for partner in partners]
        # Of several folders of masks (ids, colours, instances) the fullest; then the shortest name.
        fullest: list[_Match] = max(found, key=len)
        matches += fullest
    owners = Counter(match.mask.path for match in matches)
    return [match for match in matches if owners[match.mask.path] == 1]


def _by_folder(files: list[_File]) -> dict[str, list[_File]]:
    grouped: dict[str, list[_File]] = defaultdict(list)
    for file in files:
        grouped[file.folder].append(file)
    return grouped


def _partners(images_in: dict[str, list[_File]], masks_in: dict[str, list[_File]]) -> dict[str, list[str]]:
    """For each folder of images the folders that its masks may lie in."""
    at_place: dict[tuple[str, ...], list[str]] = defaultdict(list)
    with_picture: dict[str, list[str]] = defaultdict(list)
    for folder, files in masks_in.items():
        at_place[place_of(folder)].append(folder)
        for file in files:
            with_picture[picture_of(file.stem)].append(folder)
    taken = {place_of(folder) for folder in images_in} & set(at_place)
    partners: dict[str, list[str]] = {}
    for folder, files in images_in.items():
        place = place_of(folder)
        same_place = sorted(at_place.get(place, []), key=lambda other: (other != folder, len(other), other))
        if same_place:
            partners[folder] = same_place
            continue
        counts = Counter(
            other
            for file in files
            for other in {o for name in (file.stem, file.name) for o in with_picture.get(picture_of(name), [])}
        )
        split = split_of_path(folder)
        likely = [
            other
            for other, count in counts.items()
            if 2 * count > len(files)
            and place_of(other) not in taken
            and (split is None or split_of_path(other) in (None, split))
        ]
        if likely:
            distance = {other: len(set(place_of(other)) ^ set(place)) for other in likely}
            nearest = min(distance.values())
            partners[folder] = sorted(
                (other for other in likely if distance[other] == nearest), key=lambda other: (len(other), other)
            )
    return partners


def _match_folders(images: list[_File], masks: list[_File]) -> list[_Match]:
    of_stem: dict[str, list[_File]] = defaultdict(list)
    of_picture: dict[str, list[_File]] = defaultdict(list)
    for mask in masks:
        of_stem[normalized(mask.stem)].append(mask)
        of_picture[picture_of(mask.stem)].append(mask)
    num_images = Counter(picture_of(image.stem) for image in images)
    choices = []
    for image in images:
        # "rgb_0.png" and "image_0.png" may each have a mask of the same name, although both show picture 0.
        found = [mask for name in (image.stem, image.name) for mask in of_stem.get(normalized(name), [])]
        if num_images[picture_of(image.stem)] == 1:
            found += of_picture.get(picture_of(image.stem), [])
        choices.append([_Match(image, mask) for mask in dict.fromkeys(found)])
    # Where an image has several masks ("_mask", "_gt"), that of the way of naming which pairs most, else the first.
    usual = Counter(_naming(match) for choice in choices for match in choice)
    return [max(choice, key=lambda match: usual[_naming(match)]) for choice in choices if choice]


def _naming(match: _Match) -> tuple[str, str, str, str]:
    """What stands before and after the common part of the names of image and mask."""
    mask_stem = normalized(match.mask.stem)
    if mask_stem == normalized(match.image.stem) and picture_of(match.image.stem):
        return "", "", "", ""
    if mask_stem == normalized(match.image.name):
        return "", "", "", match.image.ending
    before, _, after = affixes(match.image.stem)
    mask_before, _, mask_after = affixes(match.mask.stem)
    return before, after, mask_before, mask_after


def _layouts(matches: list[_Match], files: list[_File]) -> dict[str, tuple[Layout, ...]]:
    groups: dict[tuple[str, ...], list[_Match]] = defaultdict(list)
    for match in matches:
        has_picture = str(bool(picture_of(match.image.stem)))
        groups[(match.image.folder, match.mask.folder, has_picture, *_naming(match))].append(match)
    splits: dict[str, dict[Layout, None]] = defaultdict(dict)
    split_of = {file.path: split_of_path(file.folder) or "train" for file in files}
    for key, group in sorted(groups.items()):
        split = split_of_path(key[0]) or split_of_path(key[1]) or "train"
        split_of.update((match.image.path, split) for match in group)
        splits[split].update(dict.fromkeys(_layouts_of_group(group)))
    return {
        split: tuple(_merged(list(splits[split]), split, split_of))
        for split in ("train", "val", "test")
        if split in splits
    }


def _layouts_of_group(group: list[_Match]) -> list[Layout]:
    """The layouts of images and masks in one folder each that are named in one way."""
    image_endings = Counter(match.image.ending for match in group)
    mask_endings = Counter(match.mask.ending for match in group)
    first = group[0]
    folder, mask_folder = first.image.folder, first.mask.folder
    before, after, mask_before, mask_after = _naming(first)
    if folder == mask_folder:
        # With any ending an image would be its own mask.
        endings = sorted({(match.image.ending.lower(), match.mask.ending.lower()) for match in group})
    else:
        endings = [(_ending(image_endings), _ending(mask_endings))]
    # Else a picture without a name of its own ("image.png" in a folder for each sample).
    has_name = bool(affixes(first.image.stem)[1]) or not (before or after)
    name = f"{before}*{after}" if has_name else first.image.stem
    wildcard = f"{{{len(re.findall('[*?]', folder)) + 1}}}" if has_name else ""
    template = f"{_escaped(mask_before)}{wildcard}{_escaped(mask_after)}"
    return [
        Layout(images=_below(folder, name + ending), masks=_below(_escaped(mask_folder), template + mask_ending))
        for ending, mask_ending in endings
    ]


def _ending(endings: Counter[str]) -> str:
    """The ending of a pattern, which fits in upper and lower case; several become any ending."""
    if len(endings) == 1:
        return next(iter(endings))
    lower = {ending.lower() for ending in endings}
    return lower.pop() if len(lower) == 1 else ".*"


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _merged(layouts: list[Layout], split: str, split_of: dict[str, str]) -> list[Layout]:
    """Layouts whose folders differ in one place, the same in images and masks, become one with a wildcard."""

    @cache
    def is_of_this_split(pattern: str) -> bool:
        regex = pattern_regex(pattern)
        return not any(other != split and regex.fullmatch(path) for path, other in split_of.items())

    merged: list[Layout] = []
    for layout in layouts:
        for i, other in enumerate(merged):
            together = _merge(other, layout)
            if together is not None and is_of_this_split(together.images):
                merged[i] = together
                break
        else:
            merged.append(layout)
    return merged


def _merge(one: Layout, other: Layout) -> Layout | None:
    a, b = one.images.split("/"), other.images.split("/")
    if len(a) != len(b):
        return None
    places = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    if len(places) != 1 or places[0] == len(a) - 1:
        return None
    name = b[places[0]]
    # A wildcard of its own would not be told from that of the place.
    if any("*" in part or "?" in part for part in a[: places[0]]) or "*" in name or "?" in name:
        return None
    assert one.masks is not None
    assert other.masks is not None
    shifted = other.masks.replace("{1}", "{2}")
    masks = ["{1}" if part == _escaped(name) else part for part in shifted.split("/")]
    images = "/".join(["*" if i == places[0] else x for i, x in enumerate(a)])
    merged = Layout(images=images, masks="/".join(masks))
    before = (merged.masks or "").replace("{1}", _escaped(a[places[0]])).replace("{2}", "{1}")
    return (
        replace(one, images=merged.images, masks=merged.masks) if a[places[0]] == "*" or one.masks == before else None
    )
