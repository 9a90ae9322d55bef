"""A card for a folder of images and masks, proposed from what is found there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from aucseg.datasets.card import MAX_RAW_ID, DatasetCard, Layout, default_color, unpack_color
from aucseg.datasets.dataset import SegmentationDataset
from aucseg.datasets.mask_files import encoding_of_mode, mode_and_format
from aucseg.datasets.scan import scan_samples
from aucseg.datasets.scan_cache import ScanCache

_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_MASK_NAME = re.compile(r"mask|label|annot|gt|seg|target", re.IGNORECASE)
_IMAGE_NAME = re.compile(r"im(a?g|age)|photo|rgb|picture|input", re.IGNORECASE)
_SPLIT_NAME = re.compile(r"^(train|val|test)", re.IGNORECASE)
_MAX_COLORS = 1024


@dataclass(frozen=True)
class _Files:
    """The files of one folder with one ending."""

    folder: PurePosixPath
    ending: str
    stems: tuple[str, ...]


def propose_card(
    root: str | Path, *, num_workers: int = 0, progress: bool = False, cache: ScanCache | None = None
) -> DatasetCard:
    """Return a card for a folder of images and masks: layout, splits, mask encoding, and a class for each id found.

    Folders with names such as ``images`` and ``masks`` are matched by their files' names; where the names of the
    folders do not tell, the files do (masks are grey or palette files). The classes get names like ``class_7``: give
    them real ones.

    Raises:
        ValueError: No such folder, nothing that looks like images with masks, or masks that cannot be read as ids.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: there is no such folder, and no data set card of this name")
    images, masks = _sort_files(root)
    splits = _propose_splits(root, images, masks)
    first = next(iter(splits.values()))
    encoding = _find_encoding(root, first)
    name = re.sub(r"\W+", "_", root.resolve().name).strip("_").lower() or "my_data"
    card = DatasetCard(
        name=name,
        title=root.resolve().name,
        class_names=("class_0",),
        palette=((0, 0, 0),),
        splits={split: (layout,) for split, layout in splits.items()},
        raw_ids=((0,),),
        mask_encoding=encoding,
    )
    ids = _find_ids(card, root, num_workers, progress, cache)
    ignored = _ignored_id(ids, encoding)
    kept = [raw for raw in sorted(ids) if raw != ignored]
    colors = [unpack_color(raw) if encoding == "rgb" else default_color(i + 1) for i, raw in enumerate(kept)]
    return replace(
        card,
        class_names=tuple(
            "class_" + ("_".join(map(str, unpack_color(raw))) if encoding == "rgb" else str(raw)) for raw in kept
        ),
        palette=tuple(colors),
        raw_ids=tuple((raw,) for raw in kept),
        ignore_ids=() if ignored is None else (ignored,),
        ignore_index=255 if len(kept) <= 255 else -1,
    )


def _sort_files(root: Path) -> tuple[list[_Files], list[_Files]]:
    stems: dict[tuple[PurePosixPath, str], list[str]] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in _ENDINGS and not any(part.startswith(".") for part in path.relative_to(root).parts):
            folder = PurePosixPath(path.relative_to(root).parent.as_posix())
            stems.setdefault((folder, path.suffix), []).append(path.stem)
    images: list[_Files] = []
    masks: list[_Files] = []
    for (folder, ending), names in stems.items():
        files = _Files(folder, ending, tuple(names))
        (masks if _looks_like_masks(root, files) else images).append(files)
    if not images or not masks:
        missing = "images" if masks else "masks" if images else "images and masks"
        raise ValueError(
            f"{root}: found no {missing} (files that end in {', '.join(_ENDINGS)}; masks are grey or palette files, "
            "or lie in a folder whose name says so); write a card by hand, see the shipped ones"
        )
    return images, masks


def _looks_like_masks(root: Path, files: _Files) -> bool:
    # The last folder whose name tells decides: "labels/train" are masks.
    for part in reversed(files.folder.parts):
        if _MASK_NAME.search(part):
            return True
        if _IMAGE_NAME.search(part):
            return False
    mode, file_format = mode_and_format(root / files.folder / (files.stems[0] + files.ending))
    return mode in ("1", "L", "P", "I;16", "I") and file_format not in ("JPEG", "MPO")


def _propose_splits(root: Path, images: Sequence[_Files], masks: Sequence[_Files]) -> dict[str, Layout]:
    splits: dict[str, Layout] = {}
    unmatched = []
    for files in images:
        candidates = [layout for other in masks if (layout := _pair(files, other)) is not None]
        if not candidates:
            unmatched.append(str(files.folder))
            continue
        # Of several folders of masks the one nearest by name: "images/train" goes with "masks/train".
        layout = max(candidates, key=lambda c: len(set(Path(c.masks or "").parts) & set(files.folder.parts)))
        named = next((m[1].lower() for part in files.folder.parts if (m := _SPLIT_NAME.match(part))), "train")
        if named not in splits:
            splits[named] = layout
        elif (merged := _merge(splits[named], layout)) is not None:
            splits[named] = merged
        else:
            splits["_".join((named, *files.folder.parts))] = layout
    if not splits:
        raise ValueError(
            f"{root}: the images in {', '.join(unmatched)} and the masks in "
            f"{', '.join(str(m.folder) for m in masks)} have no names in common; write a card by hand, see the "
            "shipped ones"
        )
    return splits


def _pair(images: _Files, masks: _Files) -> Layout | None:
    """Return the layout that pairs most of the images with masks of the same name, up to endings such as ``_mask``."""
    mask_stems = set(masks.stems)
    if sum(stem in mask_stems for stem in images.stems) * 2 > len(images.stems):
        affixes = ("", "")
    else:
        # The commonest way in which a mask's name goes on where the image's ends or differs.
        found: Counter[tuple[str, str]] = Counter()
        by_start: dict[str, list[str]] = {}
        for stem in masks.stems:
            by_start.setdefault(_core(stem), []).append(stem)
        for stem in images.stems:
            core = _core(stem)
            for other in by_start.get(core, []):
                found[stem[len(core) :], other[len(core) :]] += 1
        if not found or found.most_common(1)[0][1] * 2 <= len(images.stems):
            return None
        affixes = found.most_common(1)[0][0]
    return Layout(
        images=str(images.folder / f"*{affixes[0]}{images.ending}"),
        masks=str(masks.folder / f"{{1}}{affixes[1]}{masks.ending}"),
    )


def _core(stem: str) -> str:
    """Return a stem without the words at its end that say what kind of file it is."""
    return re.sub(
        r"([_.-]?(gtFine|labelIds|mask|masks|label|labels|seg|gt|annot|image|img|rgb|leftImg8bit))+$",
        "",
        stem,
        flags=re.I,
    )


def _merge(one: Layout, other: Layout) -> Layout | None:
    """Return one layout for two whose folders differ in one place, the same in images and masks."""
    a, b = one.images.split("/"), other.images.split("/")
    if len(a) != len(b):
        return None
    places = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    if len(places) != 1 or places[0] == len(a) - 1:
        return None
    name = b[places[0]]
    assert one.masks is not None
    assert other.masks is not None
    masks = [("{1}" if part == name else part) for part in other.masks.replace("{1}", "{2}").split("/")]
    merged = Layout(images="/".join(["*" if i == places[0] else x for i, x in enumerate(a)]), masks="/".join(masks))
    fits = a[places[0]] == "*" or one.masks == (merged.masks or "").replace("{1}", a[places[0]]).replace("{2}", "{1}")
    return merged if fits else None


def _find_encoding(root: Path, layout: Layout) -> str:
    assert layout.masks is not None
    pattern = re.sub(r"\{\d\}", "*", layout.masks)
    first = min(root.glob(pattern))
    mode, _ = mode_and_format(first)
    encoding = encoding_of_mode(mode)
    if encoding is None:
        raise ValueError(f"{first}: a mask of mode {mode} holds no ids; save it as an 8-bit grey PNG")
    return encoding


def _find_ids(card: DatasetCard, root: Path, num_workers: int, progress: bool, cache: ScanCache | None) -> set[int]:
    ids: set[int] = set()
    for split in card.splits:
        dataset = SegmentationDataset(card, root, split, on_error="skip")
        scans = scan_samples(dataset, num_workers=num_workers, progress=progress, check_images=False, cache=cache)
        for sample in scans:
            if sample.raw is not None:
                ids.update(sample.raw.ids.tolist())
            if len(ids) > _MAX_COLORS:
                raise ValueError(
                    f"{dataset.mask_path(sample.index)}: more than {_MAX_COLORS} different values in the masks: "
                    "these are no ids; soft edges or lossy compression mix the colours of classes, so make the "
                    "masks again without them"
                )
    if not ids:
        raise ValueError(
            f"{root}: not one mask can be read as {card.mask_encoding}; run the check with a card written by hand"
        )
    return ids


def _ignored_id(ids: set[int], encoding: str) -> int | None:
    """Return the id that by custom means "ignore": the largest one there is, unless the masks are just 0 and that."""
    largest = MAX_RAW_ID[encoding]
    return largest if encoding != "rgb" and largest in ids and len(ids) > 2 else None
