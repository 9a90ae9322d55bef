"""A card for a folder of images and masks, proposed from what is found there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from aucseg.datasets.card import DatasetCard
from aucseg.datasets.card_classes import MAX_RAW_ID
from aucseg.datasets.colors import default_color, unpack_color
from aucseg.datasets.files import SampleError
from aucseg.datasets.mask_checks import Palettes, describe_soft_edges, find_soft_edges
from aucseg.datasets.mask_files import encoding_of_mode, mode_and_format
from aucseg.datasets.propose_bands import with_bands
from aucseg.datasets.propose_layouts import propose_layouts
from aucseg.datasets.scan import scan_samples
from aucseg.datasets.scan_cache import ScanCache
from aucseg.datasets.split import SplitOfFiles
from aucseg.datasets.tree import Tree

# Of the training images, to validate on where a folder has no validation split.
HELD_OUT_SHARE = 0.2
_MAX_COLORS = 1024
# Masks that are looked at for soft edges, where there are many ids.
_MANY_IDS = 8
_NUM_LOOKED_AT = 16


@dataclass
class _Ids:
    """What the masks hold: ids, for each of them the places of the training images with it, and palettes."""

    ids: set[int] = field(default_factory=set)
    images_with: dict[int, list[int]] = field(default_factory=dict)
    palettes: Palettes = field(default_factory=Palettes)


def propose_card(
    root: str | Path,
    *,
    num_workers: int = 0,
    progress: bool = False,
    cache: ScanCache | None = None,
    tile: int | None = None,
    tree: Tree | None = None,
) -> DatasetCard:
    """Returns a card for a folder of images and masks: layout, splits, mask encoding, and a class for each id found.

    Images and masks are told by the names of their folders and files, or else by what is in the files (masks are grey
    or palette files), and paired by what their names have in common, across endings, upper and lower case and
    compositions of characters. The classes get names like `class_7`: give them real ones. Palette masks whose
    palettes differ from file to file become classes by colour. Without a validation split a fifth of the training
    images is held out for that. Images of more than 8 bits, or of bands that are no colours, get `bands` and
    `value_range`. With `tile` larger images and masks are read by windows of this side. `tree` has the files of the
    folder where they are listed already.

    Raises:
        ImportError: Images that rasterio alone reads, without it.
        ValueError: No such folder; nothing that looks like images with masks; masks that do not hold ids (soft edges,
            lossy compression, indices that mean different things), or one id alone; images of several kinds.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: there is no such folder, and no data set card of this name")
    name = re.sub(r"\W+", "_", root.resolve().name).strip("_").lower() or "my_data"
    card = DatasetCard(
        name=name,
        title=root.resolve().name,
        class_names=("class_0",),
        palette=((0, 0, 0),),
        splits=propose_layouts(tree or Tree(root)),
        raw_ids=((0,),),
    )
    if "val" not in card.splits:
        card = replace(card, held_out_share=HELD_OUT_SHARE)
    datasets = [SplitOfFiles(card, root, split, on_error="skip", tile=tile) for split in card.splits]
    card = replace(card, mask_encoding=_find_encoding(datasets))
    found = _find_ids(card, datasets, num_workers, progress, cache)
    if found.palettes.differ:
        if not found.palettes.colors_are_ids:
            raise ValueError(f"{root}: {found.palettes.describe()[0]}")
        card = replace(card, mask_encoding="rgb")
        found = _find_ids(card, datasets, num_workers, progress, cache)
    ignored = _ignored_id(found.ids, card.mask_encoding)
    kept = [raw for raw in sorted(found.ids) if raw != ignored]
    if len(kept) < 2:
        raise ValueError(
            f"{root}: all masks hold the id {kept[0]} alone, so there is nothing to tell apart; are these the masks?"
        )
    is_rgb = card.mask_encoding == "rgb"
    file_colors = {index: next(iter(colors)) for index, colors in found.palettes.colors.items()} if not is_rgb else {}
    has_palette = bool(file_colors) and min(file_colors[raw] for raw in kept) >= 0
    colors = [
        unpack_color(raw if is_rgb else file_colors[raw]) if is_rgb or has_palette else default_color(i + 1)
        for i, raw in enumerate(kept)
    ]
    card = replace(
        card,
        class_names=tuple("class_" + ("_".join(map(str, unpack_color(raw))) if is_rgb else str(raw)) for raw in kept),
        palette=tuple(colors),
        raw_ids=tuple((raw,) for raw in kept),
        ignore_ids=() if ignored is None else (ignored,),
        ignore_index=255 if len(kept) <= 255 else -1,
        check_palette=has_palette,
    )
    card = with_bands(card, datasets, {raw: found.images_with[raw] for raw in kept if raw in found.images_with})
    try:
        DatasetCard.from_yaml(card.to_yaml(), "the proposed card")
    except ValueError as error:
        raise ValueError(f"{root}: {error}; rename the folder or file") from error
    return card


def _find_encoding(datasets: Sequence[SplitOfFiles]) -> str:
    """The encoding of most masks; those with another are findings of the check."""
    example_of: dict[str, Path] = {}
    counts: dict[str, int] = {}
    problem = None
    for dataset in datasets:
        # Of an image in tiles the mask once.
        places = {pair.mask: index for index, pair in enumerate(dataset.pairs)}
        for index in places.values():
            path = dataset.mask_path(index)
            try:
                mode, _ = mode_and_format(path)
            except SampleError as error:
                problem = problem or error
                continue
            example_of.setdefault(mode, path)
            counts[mode] = counts.get(mode, 0) + 1
    if not counts:
        raise ValueError(f"not one mask can be read: {problem}")
    if "1" in counts and "L" in counts:
        raise ValueError(
            f"{example_of['1']} is a mask of 1 bit a pixel, {example_of['L']} of 8: the ids 1 of the one and 255 of "
            "the other may mean the same; save all masks in one form"
        )
    by_encoding: dict[str, int] = {}
    for mode, count in counts.items():
        encoding = encoding_of_mode(mode)
        if encoding is not None:
            by_encoding[encoding] = by_encoding.get(encoding, 0) + count
    if not by_encoding:
        mode, path = next(iter(example_of.items()))
        raise ValueError(f"{path}: a mask of mode {mode} holds no ids; save it as an 8-bit grey PNG")
    return max(by_encoding, key=lambda encoding: by_encoding[encoding])


def _find_ids(
    card: DatasetCard,
    datasets: Sequence[SplitOfFiles],
    num_workers: int,
    progress: bool,
    cache: ScanCache | None,
) -> _Ids:
    found = _Ids()
    problem = ""
    for dataset in datasets:
        dataset.card = card
        scans = scan_samples(dataset, num_workers=num_workers, progress=progress, check_images=False, cache=cache)
        for sample in scans:
            if sample.raw is None:
                problem = problem or "; ".join(sample.errors)
                continue
            found.ids.update(sample.raw.ids.tolist())
            if dataset is datasets[0]:
                for raw in sample.raw.ids.tolist():
                    found.images_with.setdefault(raw, []).append(sample.index)
            found.palettes.add(sample.raw, dataset.pairs[sample.index].mask or "")
            if len(found.ids) > _MAX_COLORS:
                raise ValueError(
                    f"{dataset.mask_path(sample.index)}: more than {_MAX_COLORS} different values in the masks: "
                    "these are not ids; soft edges or lossy compression mix the colours of classes, so make the "
                    "masks again without them"
                )
    if not found.ids:
        raise ValueError(f"not one mask can be read as {card.mask_encoding}: {problem}")
    if len(found.ids) >= _MANY_IDS:
        _check_edges(card, datasets)
    return found


def _check_edges(card: DatasetCard, datasets: Sequence[SplitOfFiles]) -> None:
    places = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    masks = []
    for dataset, index in places[:: max(1, len(places) // _NUM_LOOKED_AT)]:
        try:
            masks.append(dataset.read_raw(index))
        except SampleError:  # noqa: PERF203
            continue
    edges = find_soft_edges(masks)
    if edges is not None:
        raise ValueError(f"{datasets[0].root}: {describe_soft_edges(edges, card.mask_encoding == 'rgb')}")


def _ignored_id(ids: set[int], encoding: str) -> int | None:
    """Returns the id that by custom means "ignore": the largest one there is, unless the masks are just 0 and that."""
    largest = MAX_RAW_ID[encoding]
    return largest if encoding != "rgb" and largest in ids and len(ids) > 2 else None
